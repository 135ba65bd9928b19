//! Measurement of the consumer group's lag, independent of its members.

use std::collections::BTreeSet;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::metrics::KafkaMetrics;
use tbd_deadline::{Deadline, StopSignal};
use tbd_kafka::Cluster;
use tbd_kafka::admin::Admin;

/// The interval between measurements.
const INTERVAL: Duration = Duration::from_secs(5);
/// Time limit of one measurement.
const BUDGET: Duration = Duration::from_secs(5);

/// Starts the thread `kafka-lag`, which sets `kafka_consumer_lag` for every partition of `topic`:
/// the end of the log minus the committed offset of `group`. The value is correct for members
/// that are idle, busy, stopped or gone. While Kafka or a partition's leader is unavailable, the
/// metric is absent, as for a partition that is gone. Every api and worker measures, so that one
/// always does; take the maximum. `stop` ends the thread.
///
/// # Errors
/// The thread cannot be started.
pub fn watch_lag(
    cluster: Cluster,
    group: String,
    topic: String,
    metrics: KafkaMetrics,
    stop: StopSignal,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("kafka-lag".to_owned())
        .spawn(move || {
            let admin = Admin::new(cluster);
            let mut shown = BTreeSet::new();
            while !stop.is_stopped() {
                let lags = admin.lag(&group, &topic, Deadline::after(BUDGET));
                let lags = lags.unwrap_or_else(|error| {
                    log::debug!("the lag is not known: {error}");
                    Default::default()
                });
                let mut known = BTreeSet::new();
                for (name, lag) in lags {
                    match lag {
                        Ok(lag) => {
                            let labels = [&*name.topic, &name.partition.to_string(), &group];
                            metrics.consumer_lag.with_label_values(&labels).set(lag);
                            known.insert(name);
                        }
                        Err(error) => log::debug!("the lag of {name} is not known: {error}"),
                    }
                }
                // Some may be gone: a topic can be created again with fewer partitions.
                for name in shown.difference(&known) {
                    let labels = [&*name.topic, &name.partition.to_string(), &group];
                    let _ = metrics.consumer_lag.remove_label_values(&labels);
                }
                shown = known;
                stop.wait_for(INTERVAL);
            }
        })
}
