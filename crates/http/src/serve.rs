//! A request's way from arrival to the thread that answers it: acceptors, queues, workers.

pub(super) mod queues;
pub(super) mod refusals;
mod respond;
mod stuck;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::admission::Admission;
use super::containment::connections::{Arrival, Connections, Next};
use super::containment::incoming::Incoming;
use super::containment::socket::DescriptorNumber;
use super::containment::watch::Watch;
use super::observer::Observer;
use super::request::path_of;
use super::router::Router;
use refusals::Refusals;
use tbd_deadline::lock;

pub use respond::is_sane_request_id;

/// What all threads of one server share.
pub(super) struct ServerShared {
    pub(super) router: Router,
    pub(super) request_timeout: Duration,
    pub(super) body_limit: usize,
    pub(super) local_port: u16,
    /// Held by the acceptor that waits for tiny_http.
    pub(super) intake: Mutex<()>,
    pub(super) connections: Connections<Exchange>,
    pub(super) admission: Admission,
    pub(super) refusals: Refusals,
    pub(super) watch: Arc<Watch>,
    /// The self-check's request target, secret from clients.
    pub(super) ping: String,
    /// While set, each response is its connection's last.
    pub(super) stopping: AtomicBool,
    /// To the pool's threads.
    pub(super) queue: Sender<Work>,
    /// To the probe threads.
    pub(super) probes: Sender<Work>,
    /// To the thread that lingers on connections before it closes them.
    pub(super) lingering: Sender<Linger>,
}

/// The threads that a request belongs to. Only the pool's threads, busy threads, queue and queue
/// time are counted: reading the metrics must not change them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    Pool,
    Probes,
}

/// What a thread of the pool takes from its queue.
pub(super) enum Work {
    Answer(Exchange),
    /// Work of another server of the process, and when it arrived.
    Task(Instant, Task),
    Stop,
}

/// Work for the pool's threads that is no request: called once, or dropped if the server has ended.
pub type Task = Box<dyn FnOnce(Turn) + Send>;

/// Why a [`Task`] is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// A thread of the pool has time for it.
    Run,
    /// There is no capacity: it must end at once, without blocking.
    Refused,
}

/// What the lingering thread takes from its queue.
pub(super) enum Linger {
    Until(Box<Incoming>, VecDeque<Exchange>),
    Stop,
}

/// A request in progress, with its time of arrival.
pub(super) struct Exchange {
    request: Incoming,
    peer: SocketAddr,
    arrived: Instant,
    /// Whether no later request of its connection is answered.
    last: bool,
    /// Whether no handler is to see it.
    refused: bool,
}

/// Reasons for refusing requests unhandled, as label values.
pub const SHED: [&str; 5] = [QUEUE_FULL, OVERLOAD, PROBES_FULL, PIPELINE, LATE];
const QUEUE_FULL: &str = "queue_full";
const OVERLOAD: &str = "overload";
const PROBES_FULL: &str = "probes";
const PIPELINE: &str = "pipeline";
const LATE: &str = "deadline";

impl ServerShared {
    /// Takes the next request from tiny_http and dispatches it, unless an earlier one of its
    /// connection is in progress. Blocks on nothing else: a request that finds neither a free
    /// thread nor a place in the queue is refused.
    ///
    /// # Errors
    /// tiny_http's: its accept thread has ended, or `unblock` was called.
    pub(super) fn accept(
        &self,
        observer: &mut dyn Observer,
        tiny: &tiny_http::Server,
    ) -> std::io::Result<()> {
        // The one lock that is held across a wait. `recv` and entering the request must be one
        // step, or two acceptors could swap a connection's requests. Only acceptors take this lock,
        // and the ones that wait for it would wait in `recv` otherwise. `unblock` ends `recv` at
        // shutdown.
        let intake = lock(&self.intake);
        let request = Incoming::new(tiny.recv()?);
        // Only Unix sockets have no address, and the server listens on none.
        let Some(peer) = request.remote_addr().copied() else {
            return Ok(());
        };
        if request.url() == self.ping {
            drop(intake);
            pong(request);
            return Ok(());
        }
        let exchange = Exchange {
            request,
            peer,
            arrived: Instant::now(),
            last: false,
            refused: false,
        };
        let arrival = self.connections.arrived(peer, exchange);
        drop(intake);
        match arrival {
            Arrival::Go(exchange) => self.dispatch(observer, exchange),
            Arrival::Waits => {}
            Arrival::Ended(exchange) => drop(exchange),
            Arrival::TooMany(None) => {
                observer.shed(PIPELINE);
                log::warn!(target: "tbd::http", "a client sends requests without waiting for answers: its connection is closed after the accepted ones");
                self.act_on(peer, DescriptorNumber::stop_reading);
            }
            Arrival::TooMany(surplus) => drop(surplus),
        }
        Ok(())
    }

    /// The connection's next request, once the one before is answered.
    fn next(&self, peer: SocketAddr) -> Option<Exchange> {
        match self.connections.next(peer) {
            Next::Go { request, last } => Some(Exchange { last, ..request }),
            Next::Idle => None,
            Next::End(surplus) => {
                self.finish(surplus.request, VecDeque::new(), peer);
                None
            }
        }
    }

    /// Queues a request, or refuses it and continues with its connection's next one.
    pub(super) fn dispatch(&self, observer: &mut dyn Observer, exchange: Exchange) {
        let mut next = Some(exchange);
        while let Some(exchange) = next {
            let target = exchange.request.url();
            let lane = match self.router.is_probe(&path_of(target)) {
                true => Lane::Probes,
                false => Lane::Pool,
            };
            let work = Work::Answer(exchange);
            let refused = match lane {
                Lane::Pool => self.enqueue(observer, work),
                Lane::Probes => rejected(self.probes.try_send(work), PROBES_FULL),
            };
            next = match refused {
                Some((Work::Answer(exchange), reason)) => self.refuse(observer, exchange, reason),
                _ => None,
            };
        }
    }

    /// Queues work for the pool's threads. Returns work that was refused, with the reason.
    fn enqueue(&self, observer: &mut dyn Observer, work: Work) -> Option<(Work, &'static str)> {
        if !self.admission.may_wait(Instant::now(), self.queue.len()) {
            return Some((work, OVERLOAD));
        }
        // Counted before `try_send`: a thread may take the work and count it off at once.
        observer.queued();
        let refused = rejected(self.queue.try_send(work), QUEUE_FULL);
        if refused.is_some() {
            observer.dequeued();
        }
        refused
    }

    /// Queues a task, or refuses it at once.
    pub(super) fn submit(&self, observer: &mut dyn Observer, task: Task) {
        let work = Work::Task(Instant::now(), task);
        if let Some((Work::Task(_, task), reason)) = self.enqueue(observer, work) {
            observer.shed(reason);
            task(Turn::Refused);
        }
    }

    /// The main loop of a pool or probe thread: answers until it takes a stop message.
    pub(super) fn work(&self, observer: &mut dyn Observer, queue: &Receiver<Work>, lane: Lane) {
        loop {
            if lane == Lane::Pool {
                self.admission.free();
            }
            let Ok(work) = queue.recv() else {
                return;
            };
            let (arrived, peer) = match &work {
                Work::Answer(exchange) => (exchange.arrived, Some(exchange.peer)),
                Work::Task(arrived, _) => (*arrived, None),
                Work::Stop => return,
            };
            if lane == Lane::Pool {
                observer.dequeued();
                observer.busy(arrived.elapsed());
                self.admission.take(Instant::now(), queue.len());
            }
            // `answer` catches the panics of handlers; this catches the rest.
            let worked = catch_unwind(AssertUnwindSafe(|| self.perform(observer, work, lane)));
            if worked.is_err() {
                log::error!(target: "tbd::http", "a request ended in a panic outside its handler");
            }
            if lane == Lane::Pool {
                observer.free();
            }
            if let Some(next) = peer.and_then(|peer| self.next(peer)) {
                self.dispatch(observer, next);
            }
        }
    }

    fn perform(&self, observer: &mut dyn Observer, work: Work, lane: Lane) {
        match work {
            Work::Answer(exchange) => self.answer(observer, exchange, |request| {
                let outcome = self.handle(request);
                if lane == Lane::Pool {
                    self.admission.answered(Instant::now());
                }
                outcome
            }),
            Work::Task(_, task) => {
                task(Turn::Run);
                self.admission.answered(Instant::now());
            }
            Work::Stop => {}
        }
    }
}

/// The work that a queue did not take.
fn rejected(
    sent: Result<(), TrySendError<Work>>,
    reason: &'static str,
) -> Option<(Work, &'static str)> {
    match sent.err()? {
        TrySendError::Full(work) | TrySendError::Disconnected(work) => Some((work, reason)),
    }
}

/// Answers the self-check.
fn pong(request: Incoming) {
    let mut writer = request.into_writer();
    let _ = writer
        .write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        .and_then(|()| writer.flush());
}
