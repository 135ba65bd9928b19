//! What programs expect of a producer that they choose as a library.

use super::*;
use crate::producer::Partitioner;

#[derive(Default)]
struct Panicking;

impl ProducerHooks for Panicking {
    fn record_settled(&self, _: &str, _: Duration, _: &Outcome) {
        panic!("a bug in a hook");
    }

    fn request_ended(&self, _: i32, _: usize, _: usize, _: Result<(), &Error>) {
        panic!("a bug in a hook");
    }
}

#[test]
fn a_panic_in_a_hook_stops_no_thread_of_the_client() {
    let broker = broker(|incoming| incoming.answer(&written(incoming, 0, 5)));
    let config = ProducerConfig::default();
    let producer = start_at(vec![broker.address()], config, Arc::new(Panicking));
    for _ in 0..3 {
        publish(&producer, "v", in_ms(10_000)).unwrap();
    }
    producer.close(in_ms(10_000)).unwrap();
}

#[test]
fn a_thread_that_ends_by_a_panic_fails_everything_that_waits() {
    let broker = broker(|_| Reply::Silence);
    let producer = start(&broker);
    let pending = producer.send(record("v"), in_ms(60_000)).unwrap();
    producer
        .shared
        .run_thread("kafka-producer-1", || panic!("a bug in the client"));
    let refused = producer.send(record("v"), in_ms(60_000)).err().unwrap();
    assert!(matches!(refused.cause, Error::Panicked { .. }), "{refused}");
    producer.flush(in_ms(60_000)).unwrap_err();
    drop(producer);
    pending.wait(in_ms(10_000)).unwrap_err();
}

#[test]
fn a_producer_without_topics_is_not_ready_while_the_cluster_is_down() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let producer = start_at(vec![address], ProducerConfig::default(), Arc::new(()));
    let error = producer.warm_up(in_ms(300)).unwrap_err();
    let Error::Timeout {
        cause: Some(cause), ..
    } = &error
    else {
        panic!("{error}");
    };
    assert!(matches!(**cause, Error::Unreachable { .. }), "{error}");
}

#[test]
fn a_silent_broker_does_not_hold_up_the_end_of_a_producer() {
    let broker = FakeBroker::start(|_, _| Reply::Silence);
    let config = ProducerConfig {
        topics: vec!["t".to_owned()],
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    broker.wait_for_connections(1);
    let started = Instant::now();
    drop(producer);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_setting_out_of_its_range_is_named() {
    type Spoil = fn(&mut ProducerConfig);
    let wrong: [(&str, Spoil); 5] = [
        ("linger", |it| it.linger = Duration::MAX),
        ("request_timeout", |it| it.request_timeout = Duration::MAX),
        ("request_bytes", |it| it.request_bytes = 0),
        ("max_in_flight", |it| it.max_in_flight = 6),
        ("delivery_timeout", |it| {
            it.delivery_timeout = Duration::ZERO
        }),
    ];
    for (field, spoil) in wrong {
        let mut config = ProducerConfig::default();
        spoil(&mut config);
        let cluster = Cluster::new(ClientConfig::default());
        let error = Producer::start(cluster, config, Arc::new(()))
            .err()
            .unwrap();
        assert!(error.to_string().contains(field), "{error}");
    }
}

#[test]
fn the_applications_partitioner_decides_and_a_wrong_partition_is_named() {
    let broker = broker(|incoming| incoming.answer(&written(incoming, 0, 5)));
    let config = ProducerConfig {
        partitioner: Partitioner::new(|topic, key, count| {
            assert_eq!((topic, key, count), ("t", Some(&b"key"[..]), 1));
            Some(-1)
        }),
        ..ProducerConfig::default()
    };
    let producer = start_at(vec![broker.address()], config, Arc::new(()));
    let error = publish(&producer, "v", in_ms(10_000)).unwrap_err();
    assert!(error.to_string().contains("0 to 0, not -1"), "{error}");
    let mut chosen = record("v");
    chosen.partition = Some(0);
    producer
        .send(chosen, in_ms(10_000))
        .unwrap()
        .wait(in_ms(10_000))
        .unwrap();
}
