//! One request at a time per connection.
//!
//! tiny_http reads ahead: a client that does not wait for its answers
//! (pipelining) has many requests here at once, any number of them, and a
//! thread that writes the second answer first waits inside tiny_http for the
//! first one. So a connection's next request waits here, holding no thread,
//! until the one before is answered. A connection with too many is ended as
//! soon as those that were taken are answered.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::unfinished;
use tbd_deadline::{Deadline, lock};

/// Requests of one connection that may wait behind the one being answered.
const PIPELINE: usize = 32;

/// How long what still comes from an ended connection is ignored: leftovers of
/// an unread body that look like requests arrive within milliseconds. The same
/// client port could be a new connection only later than that.
const AFTERMATH: Duration = Duration::from_secs(2);

/// From this number on, ended connections that are over are looked for.
const ENDED: usize = 1024;

/// The connections that have a request here. `T` is the request.
pub(crate) struct Connections<T> {
    state: Mutex<ConnectionsState<T>>,
    idle: Condvar,
}

struct ConnectionsState<T> {
    /// Connections that have sent a request, until [`Connections::forget`] finds
    /// them gone.
    known: HashMap<SocketAddr, Known<T>>,
    /// How many of them have one in progress.
    busy: usize,
    /// Ended connections and when they were.
    ended: HashMap<SocketAddr, Instant>,
}

struct Known<T> {
    /// Whether a request is in progress; the others wait.
    busy: bool,
    waiting: VecDeque<T>,
    /// The latest request that was too many. It is kept for as long as the connection
    /// lives: dropping it could wait for its body.
    surplus: Option<T>,
    /// When the last request came or was answered.
    last: Instant,
}

/// What to do with a request that came in.
pub(crate) enum Arrival<T> {
    /// Answer it, then call [`Connections::next`].
    Go(T),
    /// It waits for the one before it.
    Waits,
    /// Its connection was ended: drop it unanswered.
    Ended(T),
    /// More than [`PIPELINE`] wait, and from now on this connection's requests are not
    /// answered. Holds the surplus request before this one, of which nothing is still to be
    /// read, to be dropped; `None` at the first.
    TooMany(Option<T>),
}

/// What to do when a request is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next<T> {
    /// Answer this one.
    Go {
        request: T,
        /// No later one is answered.
        last: bool,
    },
    /// Nothing is here.
    Idle,
    /// All that were taken are answered, and nothing more will be: end the connection, then
    /// drop this.
    End(T),
}

impl<T> Connections<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(ConnectionsState {
                known: HashMap::new(),
                busy: 0,
                ended: HashMap::new(),
            }),
            idle: Condvar::new(),
        }
    }

    /// A request of `peer` came in.
    pub(crate) fn arrived(&self, peer: SocketAddr, request: T) -> Arrival<T> {
        let mut state = lock(&self.state);
        // Nearly always empty: then this costs nothing.
        if let Some(at) = state.ended.get(&peer) {
            if at.elapsed() < AFTERMATH {
                return Arrival::Ended(request);
            }
            state.ended.remove(&peer);
        }
        let now = Instant::now();
        let known = state.known.entry(peer).or_insert_with(|| Known {
            busy: false,
            waiting: VecDeque::new(),
            surplus: None,
            last: now,
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

    /// The request in progress is answered; the next one is the caller's.
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

    /// Forgets the connections that were gone at `seen`: not `open` then, and
    /// without a request since. So no more are remembered than are open.
    pub(crate) fn forget(&self, seen: Instant, open: impl Fn(&SocketAddr) -> bool) {
        lock(&self.state)
            .known
            .retain(|peer, known| known.busy || known.last >= seen || open(peer));
    }

    /// What is known of the connection of `peer`.
    pub(crate) fn look_up(&self, peer: SocketAddr) -> unfinished::Known {
        match lock(&self.state).known.get(&peer) {
            None => unfinished::Known::Silent,
            Some(known) if known.busy => unfinished::Known::Busy,
            Some(known) => unfinished::Known::Since(known.last),
        }
    }

    /// From now on nothing of `peer` is answered. Returns what was waiting, to be
    /// dropped outside the lock, after the connection.
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

    /// Waits until no request is in progress; false when the deadline came first.
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

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_connections_requests_go_one_after_the_other() {
        let connections = Connections::new();
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
    fn of_too_many_requests_those_that_were_taken_are_answered() {
        let connections = Connections::new();
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
            // There is place, but the one before this was not taken.
            assert_eq!(arrived(request + 98), Some(request + 97));
        }
        assert_eq!(connections.next(peer(1)), Next::End(PIPELINE + 98));
        assert!(matches!(connections.arrived(peer(1), 0), Arrival::Ended(0)));
        assert!(connections.wait_until_idle(Deadline::after(Duration::ZERO)));
    }

    #[test]
    fn what_an_ended_connection_still_sends_is_not_answered() {
        let connections = Connections::new();
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
        let connections = Connections::new();
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
        // Answered after the look that did not see it yet.
        connections.next(peer(3));
        connections.forget(seen, |_| false);
        assert_ne!(connections.look_up(peer(3)), Silent);
    }

    #[test]
    fn idle_is_when_nothing_is_in_progress() {
        let connections = Connections::new();
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
