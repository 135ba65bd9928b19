mod kafka_producer;
