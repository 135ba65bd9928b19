//! The heartbeat thread, which keeps a member alive while its owner works on a batch.
//!
//! It has its own connection. It shares only the state machine with the polling thread, and neither
//! holds the machine's lock across I/O. It sleeps on a condition variable until the next heartbeat
//! is due or something changes.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::ApiKey;
use crate::ErrorCode;

use super::MemberConfig;
use super::consumer_machine::{Answer, HeartbeatRequest};
use super::coordinator;
use super::machine::{Coordinator, HeartbeatStep, Identity};
use super::member::Member;
use crate::connection::{Connection, Interrupts};
use crate::wait::Waker;
use crate::{Cluster, Error, lock};
use tbd_deadline::Deadline;

/// The state that the two threads of a consumer share.
#[derive(Debug)]
pub(crate) struct MembershipShared {
    machine: Mutex<Member>,
    changed: Condvar,
    waker: Waker,
    /// The topics subscribed to.
    topics: Mutex<Arc<[Arc<str>]>>,
    /// Closes the heartbeat thread's connection.
    interrupts: Arc<Interrupts>,
    /// Whether the heartbeat thread has panicked.
    is_dead: AtomicBool,
    /// Why the leave of a closed member failed.
    leave_error: Mutex<Option<Error>>,
}

impl MembershipShared {
    /// Wraps a new machine; `waker` interrupts the polling thread's waits.
    pub(crate) fn new(machine: Member, topics: Arc<[Arc<str>]>, waker: Waker) -> Self {
        Self {
            machine: Mutex::new(machine),
            changed: Condvar::new(),
            waker,
            topics: Mutex::new(topics),
            interrupts: Arc::default(),
            is_dead: AtomicBool::new(false),
            leave_error: Mutex::default(),
        }
    }

    /// The topics subscribed to.
    pub(crate) fn topics(&self) -> Arc<[Arc<str>]> {
        Arc::clone(&lock(&self.topics))
    }

    /// Changes the subscription.
    pub(crate) fn set_topics(&self, topics: Arc<[Arc<str>]>) {
        *lock(&self.topics) = topics;
        self.machine().subscription_changed();
        self.notify();
    }

    /// Whether the heartbeat thread has panicked: nobody keeps the member alive.
    pub(crate) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::SeqCst)
    }

    /// Locks the machine. Never keep the guard across I/O.
    pub(crate) fn machine(&self) -> MutexGuard<'_, Member> {
        // Each transition is complete or not begun, so a panic leaves the machine consistent.
        lock(&self.machine)
    }

    /// Wakes the heartbeat thread to look at the machine again.
    pub(crate) fn notify(&self) {
        self.changed.notify_all();
    }

    /// The heartbeat thread has panicked. The polling thread gives its partitions up.
    pub(crate) fn die(&self) {
        self.is_dead.store(true, Ordering::SeqCst);
        self.machine().stop();
        self.notify();
        self.waker.nudge();
    }

    /// Consumer protocol: waits until the heartbeat thread has done all it can to leave the group.
    /// Returns false when `deadline` passed first.
    pub(crate) fn wait_left(&self, deadline: Deadline) -> bool {
        let mut machine = self.machine();
        while matches!(&*machine, Member::Consumer(machine) if !machine.has_left()) {
            let left = deadline.remaining();
            if left.is_zero() {
                return false;
            }
            let woken = self.changed.wait_timeout(machine, left);
            machine = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Why the heartbeat thread could not leave, if it was to leave a closed member's group.
    pub(crate) fn take_leave_error(&self) -> Option<Error> {
        lock(&self.leave_error).take()
    }

    /// Closes the machine and interrupts the heartbeat thread's waits, so that it can be joined.
    pub(crate) fn stop(&self) {
        self.machine().stop();
        self.notify();
        self.interrupts.interrupt();
    }
}

/// Starts the thread `kafka-heartbeat-<name>`. It ends at once after [`MembershipShared::stop`],
/// unless it is connecting, which takes a heartbeat interval at most.
///
/// # Errors
/// When the operating system cannot create a thread.
pub(crate) fn spawn(
    name: &str,
    shared: Arc<MembershipShared>,
    cluster: Cluster,
    config: Arc<MemberConfig>,
) -> io::Result<JoinHandle<()>> {
    let mut thread = HeartbeatThread {
        cluster: cluster.interruptible(&shared.interrupts),
        shared: Arc::clone(&shared),
        config,
        connection: None,
        is_failing: false,
    };
    std::thread::Builder::new()
        .name(format!("kafka-heartbeat-{name}"))
        .spawn(move || {
            let works = AssertUnwindSafe(|| while thread.run_once() {});
            if std::panic::catch_unwind(works).is_err() {
                shared.die();
            }
        })
}

struct HeartbeatThread {
    shared: Arc<MembershipShared>,
    cluster: Cluster,
    config: Arc<MemberConfig>,
    connection: Option<(Coordinator, Connection)>,
    /// Whether the last heartbeat failed: a series of failures is logged once.
    is_failing: bool,
}

impl HeartbeatThread {
    /// Runs one step. Returns false after the last.
    fn run_once(&mut self) -> bool {
        let now = Instant::now();
        let mut machine = self.shared.machine();
        match machine.heartbeat_step(now) {
            HeartbeatStep::Stop => {
                drop(machine);
                self.shared.notify();
                return false;
            }
            HeartbeatStep::Wait(until) => {
                // Every wait is bounded, even with nothing due.
                let far = now + self.config.heartbeat_interval;
                let pause = until.unwrap_or(far).saturating_duration_since(now);
                let woken = self.shared.changed.wait_timeout(machine, pause);
                drop(woken.unwrap_or_else(PoisonError::into_inner));
            }
            HeartbeatStep::FindCoordinator => {
                drop(machine);
                let found =
                    coordinator::find(&self.cluster, &self.config.group_id, self.call_deadline());
                let mut machine = self.shared.machine();
                match found {
                    Ok(coordinator) => machine.coordinator_found(coordinator, Instant::now()),
                    Err(error) => {
                        log::debug!(
                            "consumer group {}: no coordinator: {error}",
                            self.config.group_id
                        );
                        machine.heartbeat_coordinator_not_found(
                            coordinator::failure(&error),
                            Instant::now(),
                        );
                    }
                }
            }
            HeartbeatStep::Send(coordinator, identity) => {
                drop(machine);
                let result = self.send_heartbeat(&coordinator, &identity);
                self.log_transition(&result);
                let result = result.map_err(|error| coordinator::failure(&error));
                let mut machine = self.shared.machine();
                let is_news = machine.classic().is_some_and(|machine| {
                    machine.heartbeat_answered(&identity, result, Instant::now())
                });
                drop(machine);
                if is_news {
                    self.shared.waker.nudge();
                }
            }
            HeartbeatStep::SendConsumer(coordinator, heartbeat) => {
                drop(machine);
                let result = self.send_consumer_heartbeat(&coordinator, &heartbeat);
                self.log_transition(&result);
                let result = result.map_err(|error| coordinator::failure(&error));
                let mut machine = self.shared.machine();
                let is_news =
                    machine.consumer_heartbeat_answered(&heartbeat, result, Instant::now());
                drop(machine);
                if is_news {
                    self.shared.waker.nudge();
                }
            }
            HeartbeatStep::Leave(coordinator, identity) => {
                let (is_closed, fatal) = (machine.is_closed(), machine.fatal());
                drop(machine);
                let (group_id, limit) = (&self.config.group_id, self.config.max_poll_interval);
                match fatal {
                    _ if is_closed => {}
                    Some(code) => log::warn!("consumer group {group_id}: leaving: {code}"),
                    None => log::warn!(
                        "consumer group {group_id}: leaving, because nobody polled for {limit:?}"
                    ),
                }
                match self.leave(coordinator, &identity, is_closed) {
                    // The polling thread goes on: it knows for how long.
                    Err(error) if is_closed && error.is_transient() => {
                        self.shared.machine().stop();
                        return true;
                    }
                    Err(error) => {
                        let group_id = &self.config.group_id;
                        log::warn!("consumer group {group_id}: leaving failed: {error}");
                        if is_closed {
                            *lock(&self.shared.leave_error) = Some(error);
                        }
                    }
                    Ok(()) => {}
                }
                self.shared.machine().leave_ended(&identity);
                self.shared.waker.nudge();
            }
        }
        true
    }

    fn log_transition<T>(&mut self, result: &Result<T, Error>) {
        let group_id = &self.config.group_id;
        match result {
            // A rebalance is not a failure.
            Err(error) if error.code() == Some(ErrorCode::RebalanceInProgress) => {}
            Err(error) if !self.is_failing => {
                log::warn!("consumer group {group_id}: heartbeat failed: {error}");
                self.is_failing = true;
            }
            Err(error) => log::debug!("consumer group {group_id}: heartbeat failed: {error}"),
            Ok(_) if self.is_failing => {
                log::info!("consumer group {group_id}: heartbeats succeed again");
                self.is_failing = false;
            }
            Ok(_) => {}
        }
    }

    fn send_consumer_heartbeat(
        &mut self,
        coordinator: &Coordinator,
        heartbeat: &HeartbeatRequest,
    ) -> Result<Answer, Error> {
        let deadline = self.call_deadline();
        let request =
            coordinator::consumer_heartbeat_request(&self.config, &self.shared.topics(), heartbeat);
        let connection = self.connection_to(coordinator, deadline)?;
        let answer = connection.call(&request, deadline)?;
        connection.check(ApiKey::ConsumerGroupHeartbeat, answer.error_code)?;
        Ok(coordinator::consumer_heartbeat_answer(answer))
    }

    fn send_heartbeat(
        &mut self,
        coordinator: &Coordinator,
        identity: &Identity,
    ) -> Result<(), Error> {
        let deadline = self.call_deadline();
        let request = coordinator::heartbeat_request(&self.config, identity);
        let connection = self.connection_to(coordinator, deadline)?;
        let answer = connection.call(&request, deadline)?;
        connection.check(ApiKey::Heartbeat, answer.error_code)
    }

    /// Tries once. Tries once more if the coordinator has moved, unless the member is closed.
    fn leave(
        &mut self,
        known: Option<Coordinator>,
        identity: &Identity,
        is_closed: bool,
    ) -> Result<(), Error> {
        if let Some(coordinator) = known {
            match self.send_leave(&coordinator, identity) {
                Err(error) if error.is_transient() && !is_closed => {
                    let group_id = &self.config.group_id;
                    log::debug!("consumer group {group_id}: leaving again: {error}");
                }
                answer => return answer,
            }
        }
        let deadline = self.call_deadline();
        let coordinator = coordinator::find(&self.cluster, &self.config.group_id, deadline)?;
        self.send_leave(&coordinator, identity)
    }

    fn send_leave(&mut self, to: &Coordinator, identity: &Identity) -> Result<(), Error> {
        let (config, deadline) = (Arc::clone(&self.config), self.call_deadline());
        let connection = self.connection_to(to, deadline)?;
        coordinator::leave(connection, &config, identity, deadline)
    }

    fn connection_to(
        &mut self,
        coordinator: &Coordinator,
        deadline: Deadline,
    ) -> Result<&mut Connection, Error> {
        if let Some((node, connection)) = &mut self.connection
            && (node != coordinator || !connection.is_usable())
        {
            self.connection = None;
        }
        let (_, connection) = match self.connection.take() {
            Some(open) => {
                // The search for the coordinator may have used another connection since.
                open.1.watched_by(&self.shared.interrupts)?;
                self.connection.insert(open)
            }
            None => {
                let connection = self.cluster.open(&coordinator.address, deadline)?;
                self.connection.insert((coordinator.clone(), connection))
            }
        };
        Ok(connection)
    }

    /// A coordinator that does not answer within a heartbeat interval is asked again. A longer wait
    /// could spend the session on one lost packet, and would slow closing down.
    fn call_deadline(&self) -> Deadline {
        Deadline::after(
            self.config
                .heartbeat_interval
                .max(Duration::from_millis(500)),
        )
    }
}
