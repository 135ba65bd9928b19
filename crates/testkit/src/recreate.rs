//! Recreation of a topic: delete it, and create another of the same name.

use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_kafka::admin::{TopicSpec, all};
use tbd_kafka::{Admin, ClientConfig, Cluster};
use uuid::Uuid;

use crate::eventually;

const SOON: Duration = Duration::from_secs(60);

/// Deletes a topic and creates it again, with a copy on each of `brokers`. Returns once every broker
/// knows the new one: until then a broker acknowledges records into the old topic, and they are lost.
pub fn recreate_topic(brokers: &[String], name: &str, partitions: i32) {
    let old = known_id(&brokers[0], name);
    let admin = Admin::new(cluster(&brokers[0]));
    admin
        .delete_topics(&[name], Deadline::after(SOON))
        .and_then(all)
        .expect("delete the topic");
    let spec = TopicSpec::new(
        name.to_owned(),
        partitions,
        brokers.len().try_into().expect("few brokers"),
    );
    admin
        .create_topics(&[spec], Deadline::after(SOON))
        .and_then(all)
        .expect("create the topic");
    for broker in brokers {
        eventually(SOON, "the new topic to be known", || {
            known_id(broker, name).filter(|id| Some(*id) != old)
        });
    }
}

/// The id of the topic as one broker knows it.
fn known_id(broker: &str, name: &str) -> Option<Uuid> {
    // The client knows no other broker yet, so it asks this one.
    let cluster = cluster(broker);
    let asked = cluster.refresh(&[name], Deadline::after(SOON));
    asked.expect("ask for the topic");
    let is_there = cluster.topic_error(name).is_none();
    cluster.topic_id(name).filter(|_| is_there)
}

fn cluster(broker: &str) -> Cluster {
    Cluster::new(ClientConfig::new([broker]))
}
