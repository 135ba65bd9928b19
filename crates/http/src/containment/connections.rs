//! One request at a time per connection.
//!
//! The fault: tiny_http reads ahead. A client that pipelines has any number of requests here at
//! once. A thread that writes the second response first blocks inside tiny_http until the first is
//! written.
//!
//! Skip this file if this suffices: a connection's next request waits here, without a thread, until
//! the previous one is answered. A connection with too many requests is closed once the accepted
//! ones are answered.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::unfinished;
use tbd_deadline::{Deadline, lock};

/// Requests of one connection that may wait behind the one in progress.
const PIPELINE: usize = 32;

/// How long bytes that still arrive on an ended connection are ignored. Leftovers of an unread body
/// that look like requests arrive within milliseconds. A new connection cannot reuse the client's
/// port that soon.
const AFTERMATH: Duration = Duration::from_secs(2);

/// At this size the map of ended connections is purged of those past [`AFTERMATH`].
const ENDED: usize = 1024;

/// The connections that have a request in the server. `T` is the request.
pub(crate) struct Connections<T> {
    state: Mutex<ConnectionsState<T>>,
    idle: Condvar,
    /// Gets a message after a connection's first request, unless one is there already.
    newcomers: Sender<()>,
}

struct ConnectionsState<T> {
    /// Connections that have sent a request, until [`Connections::forget`] finds
    /// them gone.
    known: HashMap<SocketAddr, Known<T>>,
    /// How many connections have a request in progress.
    busy: usize,
    /// Ended connections, with the time of their end.
    ended: HashMap<SocketAddr, Instant>,
}

struct Known<T> {
    /// Whether a request is in progress; the others wait.
    busy: bool,
    waiting: VecDeque<T>,
    /// The latest request over the limit. It is kept as long as the connection lives, because
    /// dropping it could wait for its body.
    surplus: Option<T>,
    /// When the last request arrived or was answered.
    last: Instant,
}

/// What to do with a request that arrived.
pub(crate) enum Arrival<T> {
    /// Answer it, then call [`Connections::next`].
    Go(T),
    /// Nothing: the request waits for the one before it.
    Waits,
    /// Drop the request unanswered: its connection was ended.
    Ended(T),
    /// Stop reading: more than [`PIPELINE`] requests wait, and this connection's further requests
    /// are not answered. Holds the previous surplus request, whose bytes were all read, to be
    /// dropped; `None` for the first.
    TooMany(Option<T>),
}

/// What to do when a request is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// Answer this one.
    Go {
        request: T,
        /// Whether no later request is answered.
        last: bool,
    },
    /// Nothing: no request waits.
    Idle,
    /// End the connection, then drop this request: every accepted request is answered, and no other
    /// will be.
    End(T),
}

impl<T> Connections<T> {
    pub(crate) fn new(newcomers: Sender<()>) -> Self {
        Self {
            state: Mutex::new(ConnectionsState {
                known: HashMap::new(),
                busy: 0,
                ended: HashMap::new(),
            }),
            idle: Condvar::new(),
            newcomers,
        }
    }

    /// Enters a request of `peer` that arrived.
    pub(crate) fn arrived(&self, peer: SocketAddr, request: T) -> Arrival<T> {
        let mut state = lock(&self.state);
        // Nearly always empty, so this costs nothing.
        if let Some(at) = state.ended.get(&peer) {
            if at.elapsed() < AFTERMATH {
                return Arrival::Ended(request);
            }
            state.ended.remove(&peer);
        }
        let now = Instant::now();
        let known = state.known.entry(peer).or_insert_with(|| {
            let _ = self.newcomers.try_send(());
            Known {
                busy: false,
                waiting: VecDeque::new(),
                surplus: None,
                last: now,
            }
        });
        known.last = now;
        if known.surplus.is_some() {
            Arrival::TooMany(known.surplus.replace(request))
        } else if !known.busy {
            known.busy = true;
            state.busy += 1;
            Arrival::Go(request)
        } else if known.waiting.len() < PIPELINE {
            known.waiting.push_back(request);
            Arrival::Waits
        } else {
            known.surplus = Some(request);
            Arrival::TooMany(None)
        }
    }

    /// Marks the request in progress as answered. The caller answers the next one.
    pub(crate) fn next(&self, peer: SocketAddr) -> Next<T> {
        let mut guard = lock(&self.state);
        let state = &mut *guard;
        let Some(known) = state.known.get_mut(&peer) else {
            return Next::Idle;
        };
        known.last = Instant::now();
        if let Some(request) = known.waiting.pop_front() {
            let last = known.waiting.is_empty() && known.surplus.is_some();
            return Next::Go { request, last };
        }
        known.busy = false;
        state.busy -= 1;
        if state.busy == 0 {
            self.idle.notify_all();
        }
        match known.surplus.take() {
            None => Next::Idle,
            Some(request) => {
                state.end(peer);
                Next::End(request)
            }
        }
    }

    /// Forgets the connections that were gone at `seen`: not `open` then, and without a request
    /// since. This bounds the map by the number of open connections.
    pub(crate) fn forget(&self, seen: Instant, open: impl Fn(&SocketAddr) -> bool) {
        lock(&self.state)
            .known
            .retain(|peer, known| known.busy || known.last >= seen || open(peer));
    }

    /// The state of `peer`'s connection.
    pub(crate) fn look_up(&self, peer: SocketAddr) -> unfinished::Known {
        match lock(&self.state).known.get(&peer) {
            None => unfinished::Known::Silent,
            Some(known) if known.busy => unfinished::Known::Busy,
            Some(known) => unfinished::Known::Since(known.last),
        }
    }

    /// Ends answering for `peer`. Returns the requests that waited, to be dropped outside the lock
    /// and after the connection.
    pub(crate) fn ended(&self, peer: SocketAddr) -> VecDeque<T> {
        let mut state = lock(&self.state);
        state.end(peer);
        let Some(known) = state.known.get_mut(&peer) else {
            return VecDeque::new();
        };
        let mut left = std::mem::take(&mut known.waiting);
        left.extend(known.surplus.take());
        left
    }

    /// Waits until no request is in progress. Returns false when the deadline came first.
    pub(crate) fn wait_until_idle(&self, deadline: Deadline) -> bool {
        let mut state = lock(&self.state);
        while state.busy > 0 {
            let left = deadline.remaining();
            if left.is_zero() {
                return false;
            }
            state = self
                .idle
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl<T> ConnectionsState<T> {
    fn end(&mut self, peer: SocketAddr) {
        if self.ended.len() >= ENDED {
            self.ended.retain(|_, at| at.elapsed() < AFTERMATH);
        }
        self.ended.insert(peer, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections<T>() -> Connections<T> {
        Connections::new(crossbeam_channel::bounded(1).0)
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_connections_requests_go_one_after_the_other() {
        let connections = connections();
        assert!(matches!(
            connections.arrived(peer(1), 'a'),
            Arrival::Go('a')
        ));
        assert!(matches!(connections.arrived(peer(1), 'b'), Arrival::Waits));
        assert!(matches!(
            connections.arrived(peer(2), 'c'),
            Arrival::Go('c')
        ));
        let (request, last) = ('b', false);
        assert_eq!(connections.next(peer(1)), Next::Go { request, last });
        assert_eq!(connections.next(peer(1)), Next::Idle);
        assert!(matches!(
            connections.arrived(peer(1), 'd'),
            Arrival::Go('d')
        ));
    }

    #[test]
    fn each_new_client_is_announced_once() {
        let (newcomers, announced) = crossbeam_channel::bounded(1);
        let connections = Connections::new(newcomers);
        assert!(matches!(connections.arrived(peer(1), ()), Arrival::Go(())));
        assert_eq!(announced.try_recv(), Ok(()));
        connections.next(peer(1));
        assert!(matches!(connections.arrived(peer(1), ()), Arrival::Go(())));
        assert!(announced.is_empty());
        assert!(matches!(connections.arrived(peer(2), ()), Arrival::Go(())));
        assert_eq!(announced.try_recv(), Ok(()));
    }

    #[test]
    fn of_too_many_requests_those_that_were_taken_are_answered() {
        let connections = connections();
        assert!(matches!(connections.arrived(peer(1), 0), Arrival::Go(0)));
        for n in 1..=PIPELINE {
            assert!(matches!(connections.arrived(peer(1), n), Arrival::Waits));
        }
        let arrived = |n| match connections.arrived(peer(1), n) {
            Arrival::TooMany(before) => before,
            _ => panic!("{n} is not too many"),
        };
        assert_eq!([arrived(97), arrived(98)], [None, Some(97)]);
        for request in 1..=PIPELINE {
            let last = request == PIPELINE;
            assert_eq!(connections.next(peer(1)), Next::Go { request, last });
            // There is room, but the one before this was refused.
            assert_eq!(arrived(request + 98), Some(request + 97));
        }
        assert_eq!(connections.next(peer(1)), Next::End(PIPELINE + 98));
        assert!(matches!(connections.arrived(peer(1), 0), Arrival::Ended(0)));
        assert!(connections.wait_until_idle(Deadline::after(Duration::ZERO)));
    }

    #[test]
    fn what_an_ended_connection_still_sends_is_not_answered() {
        let connections = connections();
        assert!(matches!(
            connections.arrived(peer(1), 'a'),
            Arrival::Go('a')
        ));
        assert!(matches!(connections.arrived(peer(1), 'b'), Arrival::Waits));
        assert_eq!(connections.ended(peer(1)), ['b']);
        assert!(matches!(
            connections.arrived(peer(1), 'c'),
            Arrival::Ended('c')
        ));
        assert_eq!(connections.next(peer(1)), Next::Idle);
        assert!(matches!(
            connections.arrived(peer(1), 'd'),
            Arrival::Ended('d')
        ));
    }

    #[test]
    fn only_connections_that_are_gone_are_forgotten() {
        use unfinished::Known::{Busy, Silent};
        let connections = connections();
        for port in [1, 2, 3] {
            assert!(matches!(
                connections.arrived(peer(port), ()),
                Arrival::Go(())
            ));
        }
        connections.next(peer(1));
        connections.next(peer(2));
        let seen = Instant::now();
        connections.forget(seen, |open| *open == peer(2));
        assert_eq!(connections.look_up(peer(1)), Silent);
        assert_ne!(connections.look_up(peer(2)), Silent);
        assert_eq!(connections.look_up(peer(3)), Busy);
        // Answered after the look, which has not seen it yet.
        connections.next(peer(3));
        connections.forget(seen, |_| false);
        assert_ne!(connections.look_up(peer(3)), Silent);
    }

    #[test]
    fn idle_is_when_nothing_is_in_progress() {
        let connections = connections();
        assert!(connections.wait_until_idle(Deadline::after(Duration::ZERO)));
        assert!(matches!(
            connections.arrived(peer(1), 'a'),
            Arrival::Go('a')
        ));
        assert!(!connections.wait_until_idle(Deadline::after(Duration::ZERO)));
        assert_eq!(connections.next(peer(1)), Next::Idle);
        assert!(connections.wait_until_idle(Deadline::after(Duration::ZERO)));
    }
}
