"""librdkafka, as another client next to tbd's.

librdkafka.py consume BROKER TOPIC GROUP STRATEGY
    A member of the group until its standard input ends. Prints a JSON object a line: {"owned": [partition, ...]} when
    that changes, {"partition": 0, "offset": 0, "key": "k", "value": "v"} for each record, which it then commits.
librdkafka.py produce BROKER TOPIC COMPRESSION
    Publishes each line "key<TAB>value" of its standard input.
librdkafka.py transact BROKER TOPIC
    The same, each in a transaction of its own, which is aborted where the key is "aborted".
librdkafka.py commit BROKER TOPIC GROUP OFFSET METADATA
    Commits an offset of partition 0.
librdkafka.py committed BROKER TOPIC GROUP
    Prints what the group has committed of partition 0: {"offset": 0, "metadata": "m"}.
"""

import json
import sys
import threading

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition


def say(what):
    print(json.dumps(what), flush=True)


def text(data):
    return None if data is None else data.decode()


def consume(broker, topic, group, strategy):
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    consumer = Consumer(
        {
            "bootstrap.servers": broker,
            "group.id": group,
            "partition.assignment.strategy": strategy,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 300,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.subscribe([topic])
    owned = []
    while not stop.is_set():
        records = consumer.consume(100, 0.1)
        now = sorted(one.partition for one in consumer.assignment())
        if now != owned:
            owned = now
            say({"owned": owned})
        for one in records:
            if one.error():
                print(one.error(), file=sys.stderr)
                continue
            say({"partition": one.partition(), "offset": one.offset(), "key": text(one.key()), "value": text(one.value())})
        if records:
            try:
                consumer.commit(asynchronous=False)
            except KafkaException as error:  # a rebalance; the next commit covers the kept partitions
                print(error, file=sys.stderr)
    consumer.close()
    say({"owned": []})


def produce(broker, topic, compression):
    producer = Producer(
        {"bootstrap.servers": broker, "compression.type": compression, "partitioner": "murmur2_random", "linger.ms": 50}
    )
    failed = []
    for line in sys.stdin:
        key, value = line.rstrip("\n").split("\t")
        producer.produce(topic, value, key, on_delivery=lambda error, _: error and failed.append(error))
    if producer.flush(20) or failed:
        sys.exit(f"not delivered: {failed}")


def transact(broker, topic):
    producer = Producer({"bootstrap.servers": broker, "transactional.id": topic})
    producer.init_transactions()
    for line in sys.stdin:
        key, value = line.rstrip("\n").split("\t")
        producer.begin_transaction()
        producer.produce(topic, value, key)
        producer.flush()
        if key == "aborted":
            producer.abort_transaction()
        else:
            producer.commit_transaction()


def outside(broker, group):
    return Consumer({"bootstrap.servers": broker, "group.id": group, "enable.auto.commit": False})


def commit(broker, topic, group, offset, metadata):
    consumer = outside(broker, group)
    consumer.commit(offsets=[TopicPartition(topic, 0, int(offset), metadata)], asynchronous=False)
    consumer.close()


def committed(broker, topic, group):
    consumer = outside(broker, group)
    [one] = consumer.committed([TopicPartition(topic, 0)], 20)
    say({"offset": one.offset, "metadata": one.metadata})
    consumer.close()


if __name__ == "__main__":
    commands = {"consume": consume, "produce": produce, "transact": transact, "commit": commit, "committed": committed}
    commands[sys.argv[1]](*sys.argv[2:])
