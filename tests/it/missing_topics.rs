//! Missing topics: deleted, or deleted and created again, while the programs run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tbd_deadline::Deadline;
use tbd_kafka::admin::TopicSpec;
use tbd_kafka::producer::partition_for_key;
use tbd_kafka::{Admin, ClientConfig, Cluster};

use crate::support::http::get;
use crate::support::program::{Program, Stack};
use crate::support::topic::{allow, partitions, records};
use crate::support::{OwnServer, eventually, free_port, postgres, unique};

/// The time within which an order is accepted again after its topic exists.
const ACCEPTED: Duration = Duration::from_secs(15);
/// "Readiness fails within 10 s of an outage", and some for a busy machine.
const NOTICED: Duration = Duration::from_secs(15);
const SOON: Duration = Duration::from_secs(60);

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn cluster(stack: &Stack) -> Cluster {
    Cluster::new(ClientConfig::new([&stack.kafka]))
}

fn admin(stack: &Stack) -> Admin {
    Admin::new(cluster(stack))
}

fn delete(stack: &Stack, topic: &str) {
    admin(stack)
        .delete_topics(&[topic], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
}

/// Deletes a topic and creates it again; returns when the broker knows it.
fn create_again(stack: &Stack, topic: &str, partitions: i32) {
    let cluster = cluster(stack);
    let id = || {
        cluster.refresh(&[topic], soon()).unwrap();
        cluster.topic_id(topic)
    };
    let before = id();
    delete(stack, topic);
    let spec = TopicSpec::new(topic.to_owned(), partitions, 1);
    admin(stack)
        .create_topics(&[spec], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    eventually(SOON, "the broker to know the new topic", || {
        (id() != before).then_some(())
    });
}

fn reason(program: &Program) -> Option<String> {
    let ready = get("/readyz").send(&program.address()).json();
    let reason = ready["checks"]["kafka"].as_str().expect("a reason");
    (reason != "ok").then(|| reason.to_owned())
}

#[test]
fn orders_are_accepted_again_soon_after_their_topic_was_created_again() {
    let stack = Stack::new().set("KAFKA_TOPIC_PARTITIONS", "16");
    let topic = &stack.topics.created;
    let api = stack.api();
    let stop = AtomicBool::new(false);
    let end = Instant::now() + SOON;
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                    api.order(&unique("key"), 5);
                }
            });
        }
        for count in [4, 32, 32] {
            create_again(&stack, topic, count);
            let start = Instant::now();
            // Enough to reach all partitions.
            for _ in 0..20 {
                eventually(ACCEPTED, "an order to be accepted", || {
                    (api.order(&unique("key"), 7).status == 202).then_some(())
                });
            }
            let took = start.elapsed();
            assert!(took < ACCEPTED, "{count} partitions: {took:?}");
            assert_eq!(partitions(&stack.kafka, topic), count);
        }
        stop.store(true, Ordering::Relaxed);
    });
    eventually(SOON, "the outbox to be empty", || {
        (stack.count("outbox") == 0).then_some(())
    });
    let events = records(&stack.kafka, topic);
    assert!(!events.is_empty());
    for event in events {
        let partition = partition_for_key(event.key().as_bytes(), 32);
        assert_eq!(event.partition, partition, "{}", event.key());
    }
}

/// Deletes a topic that a program needs, and waits for the program to recover.
fn is_named_and_created(stack: &Stack, program: &mut Program, topic: &str) {
    delete(stack, topic);
    let start = Instant::now();
    let named = eventually(NOTICED, "readiness to fail", || reason(program));
    assert!(named.contains(topic), "{named}");
    program.become_ready(SOON);
    // Until then, only the operator creates the topic.
    assert!(start.elapsed() > Duration::from_secs(8));
    assert_eq!(partitions(&stack.kafka, topic), 3);
    let log = program.log().join("\n");
    assert!(log.contains("kafka has no topic"), "{log}");
}

#[test]
fn a_missing_topic_is_named_and_created_again() {
    let stack = Stack::new();
    let mut api = stack.api();
    is_named_and_created(&stack, &mut api, &stack.topics.created);
    eventually(ACCEPTED, "an order to be accepted", || {
        (api.order(&unique("key"), 7).status == 202).then_some(())
    });
    is_named_and_created(&stack, &mut stack.worker(), &stack.topics.processed);
}

/// A Kafka that grants its user `tbd` no right, and the address for logins.
fn strict_kafka() -> (OwnServer, String) {
    let sasl = format!("127.0.0.1:{}", free_port());
    let server = OwnServer::kafka_with(|port| {
        let controller = format!("127.0.0.1:{}", free_port());
        let login = "org.apache.kafka.common.security.plain.PlainLoginModule required";
        vec![
            format!("controller.quorum.voters=1@{controller}"),
            format!(
                "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://{controller},SASL://{sasl}"
            ),
            format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL://{sasl}"),
            "listener.security.protocol.map=\
             PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT"
                .to_owned(),
            "sasl.enabled.mechanisms=PLAIN".to_owned(),
            format!("listener.name.sasl.plain.sasl.jaas.config={login} user_tbd=\"secret\";"),
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer"
                .to_owned(),
            "super.users=User:ANONYMOUS".to_owned(),
        ]
    });
    (server, sasl)
}

#[test]
fn a_program_that_may_not_create_its_topics_says_which_right_it_lacks() {
    let (server, sasl) = strict_kafka();
    let stack = Stack::on(postgres(), sasl)
        .set("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT")
        .set("KAFKA_SASL_MECHANISM", "PLAIN")
        .set("KAFKA_SASL_USERNAME", "tbd")
        .set("KAFKA_SASL_PASSWORD", "secret");
    let mut api = stack.start_api();
    for (right, operation) in [("Describe", 8), ("Create", 5)] {
        let way_out = format!("allow this user the operation {right}");
        eventually(SOON, &way_out, || {
            let answer = get("/readyz").try_send(&api.address()).ok()?.text();
            answer.contains(&way_out).then_some(())
        });
        allow(&server.address(), "tbd", operation);
    }
    api.become_ready(SOON);
}
