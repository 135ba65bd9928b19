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
/// metric is absent, as for a partition that is gone. Every api and worker measures, so that one always does; take the maximum.
/// `stop` ends the thread.
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
                if let Err(error) = &lags {
                    log::debug!("the lag is not known: {error}");
                    metrics.consumer_lag.reset();
                }
                let lags = lags.unwrap_or_default();
                // The topic was created again with fewer partitions.
                for name in shown.iter().filter(|name| !lags.contains_key(*name)) {
                    let labels = [&*name.topic, &name.partition.to_string(), &group];
                    let _ = metrics.consumer_lag.remove_label_values(&labels);
                }
                shown = lags.keys().cloned().collect();
                for (name, lag) in lags {
                    let labels = [&*name.topic, &name.partition.to_string(), &group];
                    match lag {
                        Ok(lag) => metrics.consumer_lag.with_label_values(&labels).set(lag),
                        Err(error) => {
                            log::debug!("the lag of {name} is not known: {error}");
                            // It has no value if it never had one.
                            let _ = metrics.consumer_lag.remove_label_values(&labels);
                        }
                    }
                }
                stop.wait_for(INTERVAL);
            }
        })
}
