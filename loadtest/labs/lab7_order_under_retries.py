"""A partition's order under retries."""

import lab

ORDERS = 40 if lab.SHORT else 200


def keys(topic):
    """The keys of the first ORDERS records in a topic's only partition, in its order."""
    records = lab.kafka_tool(
        "org.apache.kafka.tools.consumer.ConsoleConsumer", "--bootstrap-server", lab.ENV["KAFKA_BROKERS"], "--topic", topic, "--partition", "0",
        "--offset", "earliest", "--max-messages", str(ORDERS), "--timeout-ms", "20000",
        "--property", "print.key=true", "--property", "print.value=false")
    return records.split()


def overtaken(created, ended):
    """Orders that ended after one that had been created later."""
    position = {key: number for number, key in enumerate(created)}
    latest, count = -1, 0
    for key in ended:
        count += position[key] < latest
        latest = max(latest, position[key])
    return count


def measure(rate):
    """Orders through topics of one partition and one consumer, with this share of failing steps."""
    run = f"{lab.GROUP}-{rate}"
    names = {f"KAFKA_TOPIC_ORDER_{kind}": f"{run}.{kind.lower()}" for kind in ("CREATED", "PROCESSED", "FAILED", "DLQ")}
    settings = {**names, "KAFKA_CONSUMER_GROUP": run, "KAFKA_TOPIC_PARTITIONS": "1"}
    lab.sql("TRUNCATE orders, idempotency_keys, outbox")
    with lab.api(**settings), lab.worker(WORKER_CONCURRENCY="1", WORKER_MAX_ATTEMPTS="20", PROCESSING_TIME="5ms", PROCESSING_FAILURE_RATE=rate, **settings):
        lab.at_a_rate(100, ORDERS / 100, "POST")
        lab.wait_until("every order", 180, lambda: int(lab.sql("SELECT count(*) FROM orders WHERE status = 'completed'")) == ORDERS)
    # The worker has ended in an orderly way, so every event is in its topic.
    created, ended = (keys(names[f"KAFKA_TOPIC_ORDER_{kind}"]) for kind in ("CREATED", "PROCESSED"))
    return {"rate": rate, "created": created, "ended": ended, "overtaken": overtaken(created, ended)}


with lab.experiment():
    never, often = measure("0"), measure("0.3")
    lab.table(
        ["one partition, one consumer", "orders", "events", "overtaken"],
        [(f"PROCESSING_FAILURE_RATE={one['rate']}", len(one["created"]), len(one["ended"]), one["overtaken"]) for one in (never, often)],
    )
    lab.bars("orders that were overtaken", [(f"failure rate {one['rate']}", one["overtaken"]) for one in (never, often)], "")
    lab.claim("without a failure the events come in the order of the partition", never["overtaken"] == 0)
    lab.claim("an order that is retried is overtaken by those behind it", often["overtaken"] > 0)
    lab.claim("no order is skipped or announced twice", all(sorted(one["created"]) == sorted(one["ended"]) for one in (never, often)))
