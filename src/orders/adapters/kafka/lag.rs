//! How far the workers are behind, whether there are any or not.

use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::metrics::KafkaMetrics;
use tbd_deadline::Deadline;
use tbd_deadline::StopSignal;
use tbd_kafka::Cluster;
use tbd_kafka::admin::Admin;

/// How often it is measured.
const INTERVAL: Duration = Duration::from_secs(5);
/// What one measurement may take.
const BUDGET: Duration = Duration::from_secs(5);

/// Starts the thread `kafka-lag`, which reports `kafka_consumer_lag` of every partition
/// of `topic` from what `group` has committed and where the logs end: it is right for
/// members that are idle, busy, stopped or gone. While Kafka cannot be asked, nothing is
/// reported. Every api and worker does so, so that somebody always does; take the
/// maximum. Ends by `stop`.
///
/// # Errors
/// When the thread cannot be started.
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
            while !stop.is_stopped() {
                let lags = admin.lag(&group, &[&topic], Deadline::after(BUDGET));
                if let Err(error) = &lags {
                    log::debug!("the lag is not known: {error}");
                    metrics.consumer_lag.reset();
                }
                for ((topic, partition), lag) in lags.unwrap_or_default() {
                    let labels = [&*topic, &partition.to_string(), &group];
                    metrics.consumer_lag.with_label_values(&labels).set(lag);
                }
                stop.wait_for(INTERVAL);
            }
        })
}
