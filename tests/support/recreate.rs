//! Deletes a topic and creates another one of the same name.

use std::time::Duration;

use tbd::deadline::Deadline;
use tbd::kafka::admin::TopicSpec;
use tbd::kafka::{Admin, ClientConfig, Cluster};

use super::eventually;

const SOON: Duration = Duration::from_secs(60);

/// Deletes a topic of one broker and creates it again. Returns once the broker has heard of it: until then it
/// acknowledges records into the old topic, which go with that.
pub fn recreate_topic(broker: &str, name: &str, partitions: i32) {
    let cluster = Cluster::new(ClientConfig {
        brokers: vec![broker.to_owned()],
        ..ClientConfig::default()
    });
    let known_id = || {
        let asked = cluster.refresh(&[name], Deadline::after(SOON));
        asked.expect("ask for the topic");
        let is_there = cluster.topic_error(name).is_none();
        cluster.topic_id(name).filter(|_| is_there)
    };
    let old = known_id();
    let admin = Admin::new(cluster.clone());
    admin
        .delete_topics(&[name], Deadline::after(SOON))
        .expect("delete the topic");
    let spec = TopicSpec {
        name: name.to_owned(),
        partitions,
        replication: 1,
    };
    admin
        .create_topics(&[spec], Deadline::after(SOON))
        .expect("create the topic");
    eventually(SOON, "the new topic to be known", || {
        known_id().filter(|id| Some(*id) != old)
    });
}
