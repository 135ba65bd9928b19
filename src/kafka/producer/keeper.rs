//! The thread that finds out what the senders need: who leads what, a producer
//! id, a sender for a new leader. It also sorts out what waited too long.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kafka_protocol::messages::{ApiKey, InitProducerIdRequest, ProducerId};

use super::batch::Identity;
use super::{Node, Shared, sender, wait};
use crate::deadline::Deadline;
use crate::kafka::config::Backoff;
use crate::kafka::error::Error;

/// How often a cluster that answers is asked for a leader it does not have yet. An
/// election takes most of a publish budget; what follows should take little.
const ELECTION_PERIOD: Duration = Duration::from_millis(100);

/// How often at least a cluster that answers is asked for a topic that is not there yet.
const MISSING_PERIOD: Duration = Duration::from_millis(250);

/// How often overdue records are looked for while there are any.
const SWEEP_PERIOD: Duration = Duration::from_millis(500);

/// The longest one question to the cluster may take. Nothing interrupts it, so it
/// is also the longest that closing the producer may be late.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(3);

/// Works until the producer stops, then joins the senders.
pub(super) fn run(shared: &Arc<Shared>) {
    let config = shared.cluster.config();
    let mut keeper = Keeper {
        shared,
        senders: Vec::new(),
        backoff: Backoff::new(config.reconnect_backoff, config.reconnect_backoff_max),
        asked: Instant::now(),
    };
    while keeper.wait_for_errand() {
        keeper.run_once();
    }
    for sender in keeper.senders {
        if sender.join().is_err() {
            log::error!("a kafka producer's sender panicked");
        }
    }
}

struct Keeper<'a> {
    shared: &'a Arc<Shared>,
    senders: Vec<JoinHandle<()>>,
    backoff: Backoff,
    /// When the cluster was last asked who leads what.
    asked: Instant,
}

impl Keeper<'_> {
    /// Waits until something is to be found out; false when it is time to end.
    fn wait_for_errand(&self) -> bool {
        let max_age = self.shared.cluster.config().metadata_max_age;
        loop {
            let overdue = {
                let mut state = self.shared.state();
                if state.stopping {
                    return false;
                }
                let age = self.asked.elapsed();
                let records = &state.records;
                if records.needs_leaders() || records.needs_identity() || age >= max_age {
                    return true;
                }
                let until_old = max_age - age;
                let pause = if records.outstanding() > 0 {
                    until_old.min(SWEEP_PERIOD)
                } else {
                    until_old
                };
                state = wait(&self.shared.errand, state, pause);
                state.records.sweep(Instant::now())
            };
            self.shared.tell(overdue);
        }
    }

    fn run_once(&mut self) {
        let result = self.find_leaders().and_then(|()| self.find_identity());
        let mut state = self.shared.state();
        let mut failed = Vec::new();
        let pause = match result {
            Ok(()) => {
                self.backoff.reset();
                if state.refusal().is_some() {
                    state.trouble = None;
                }
                let waits = state.records.needs_leaders() || state.records.needs_identity();
                waits.then_some(ELECTION_PERIOD)
            }
            Err(error) => {
                log::debug!("kafka producer: {error}");
                // No broker lets us in.
                if matches!(error, Error::Tls { .. } | Error::Authentication { .. }) {
                    failed = state.records.fail_queued(None, &error);
                }
                state.trouble = Some(error);
                self.shared.progress.notify_all();
                let pause = self.backoff.next_pause();
                // A cluster that answers, and whose topics are just being made.
                Some(match &state.trouble {
                    Some(Error::Broker { .. }) => pause.min(MISSING_PERIOD),
                    _ => pause,
                })
            }
        };
        failed.extend(state.records.sweep(Instant::now()));
        drop(state);
        self.shared.tell(failed);
        let mut state = self.shared.state();
        if let Some(pause) = pause {
            let until = Deadline::after(pause);
            let warming = state.warming;
            // Who comes to warm up has reason to think that it works now.
            while !state.stopping && !until.is_past() && state.warming <= warming {
                state = wait(&self.shared.errand, state, until.remaining());
            }
        }
    }

    fn find_leaders(&mut self) -> Result<(), Error> {
        let topics = {
            let mut state = self.shared.state();
            let due = self.asked.elapsed() >= self.shared.cluster.config().metadata_max_age;
            if !due && !state.records.needs_leaders() {
                return Ok(());
            }
            state.records.clear_doubt();
            state.records.topic_names()
        };
        self.asked = Instant::now();
        let refreshed = self
            .shared
            .cluster
            .refresh(&topics, Deadline::after(QUESTION_TIMEOUT));
        let leaders = {
            let mut state = self.shared.state();
            if refreshed.is_err() {
                state.records.doubt_leaders();
            }
            state.records.learn(&self.shared.cluster);
            state.records.leader_nodes()
        };
        for node in leaders {
            self.ensure_sender(node)?;
        }
        self.shared.state().wake_all();
        self.shared.progress.notify_all();
        refreshed?;
        self.missing_topic(&topics)
    }

    /// A topic that is not there keeps its records waiting; the reason is worth
    /// telling.
    fn missing_topic(&self, topics: &[Arc<str>]) -> Result<(), Error> {
        let cluster = &self.shared.cluster;
        let missing = topics
            .iter()
            .filter(|topic| cluster.partitions(topic).is_none());
        match missing
            .filter_map(|topic| cluster.topic_error(topic))
            .next()
        {
            Some(code) => Err(Error::Broker {
                api: ApiKey::Metadata,
                code,
            }),
            None => Ok(()),
        }
    }

    fn ensure_sender(&mut self, id: i32) -> Result<(), Error> {
        let node = {
            let mut state = self.shared.state();
            if state.stopping || state.nodes.contains_key(&id) {
                return Ok(());
            }
            let node = Arc::new(Node::new(id));
            state.nodes.insert(id, Arc::clone(&node));
            node
        };
        let shared = Arc::clone(self.shared);
        let spawned = std::thread::Builder::new()
            .name(format!("kafka-producer-{id}"))
            .spawn(move || sender::run(&shared, &node));
        match spawned {
            Ok(handle) => {
                self.senders.push(handle);
                Ok(())
            }
            Err(error) => {
                let mut state = self.shared.state();
                state.nodes.remove(&id);
                state.records.doubt_leaders();
                Err(Error::Resource {
                    reason: error.to_string(),
                })
            }
        }
    }

    fn find_identity(&self) -> Result<(), Error> {
        if !self.shared.state().records.needs_identity() {
            return Ok(());
        }
        let deadline = Deadline::after(QUESTION_TIMEOUT);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(None)
            .with_transaction_timeout_ms(i32::MAX)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let response = self
            .shared
            .cluster
            .connect_any(deadline)?
            .call(&request, deadline)?;
        Error::check(ApiKey::InitProducerId, response.error_code)?;
        let mut state = self.shared.state();
        state.records.set_identity(Identity {
            producer_id: response.producer_id.0,
            epoch: response.producer_epoch,
        });
        state.wake_all();
        drop(state);
        self.shared.progress.notify_all();
        Ok(())
    }
}
