//! When a refused client hears of it: at once, until too many refusals are asked for.
//!
//! A client that ignores `Retry-After` and returns at once costs a refusal again and again, and each
//! costs nearly as much CPU as an answer. On two cores 2,000 such clients got a third of the answers
//! that 64 clients get. So only [`ServerConfig::refusals_at_once`](crate::ServerConfig) leave at once in
//! each second. Each further one waits for [`HELD`], and its client with it: the number of clients
//! bounds the cost of refusing.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use tbd_deadline::lock;

use super::{Exchange, ServerShared};
use crate::observer::Observer;
use crate::problem;

const SECOND: Duration = Duration::from_secs(1);

/// How long each further one waits: the second that its `Retry-After` asks for.
const HELD: Duration = SECOND;

/// Refusals that may wait: each keeps a connection, and so a thread of tiny_http. Beyond this, they
/// leave at once.
const HELD_MOST: usize = 4096;

/// What the thread that sends held refusals takes from its queue.
pub(crate) enum Held {
    /// Refuse the request then.
    Until(Instant, Box<Exchange>),
    Stop,
}

/// Decides which refusals are held.
pub(crate) struct Refusals {
    /// To the thread that sends them, in the order in which they are due.
    pub(crate) held: Sender<Held>,
    /// Refusals that leave at once in each second.
    at_once: u32,
    /// The start of the current second, and the refusals that it has seen.
    second: Mutex<(Instant, u32)>,
}

impl Refusals {
    pub(super) fn new(at_once: u32, now: Instant) -> (Self, Receiver<Held>) {
        let (held, queue) = bounded(HELD_MOST);
        let refusals = Self {
            held,
            at_once,
            second: Mutex::new((now, 0)),
        };
        (refusals, queue)
    }

    fn leaves_at_once(&self, now: Instant) -> bool {
        let mut second = lock(&self.second);
        if now.saturating_duration_since(second.0) >= SECOND {
            *second = (now, 0);
        }
        second.1 = second.1.saturating_add(1);
        second.1 <= self.at_once
    }

    /// Returns the request if it cannot be held.
    fn hold(&self, now: Instant, exchange: Exchange) -> Option<Exchange> {
        let held = Held::Until(now + HELD, Box::new(exchange));
        match self.held.try_send(held).err()?.into_inner() {
            Held::Until(_, exchange) => Some(*exchange),
            Held::Stop => None,
        }
    }
}

impl ServerShared {
    /// Answers 503 instead of the handler, at once or later. Returns the connection's next request,
    /// if it is its turn. During shutdown nothing is held.
    pub(super) fn refuse(
        &self,
        observer: &mut dyn Observer,
        exchange: Exchange,
        reason: &'static str,
    ) -> Option<Exchange> {
        observer.shed(reason);
        let now = Instant::now();
        let exchange = Exchange {
            refused: true,
            ..exchange
        };
        let at_once = self.stopping.load(Ordering::Relaxed) || self.refusals.leaves_at_once(now);
        let exchange = match at_once {
            true => exchange,
            false => self.refusals.hold(now, exchange)?,
        };
        self.send_refusal(observer, exchange)
    }

    fn send_refusal(&self, observer: &mut dyn Observer, exchange: Exchange) -> Option<Exchange> {
        let peer = exchange.peer;
        self.answer(observer, exchange, |_| Err(problem::overloaded()));
        self.next(peer)
    }

    /// The main loop of the thread that sends held refusals. Each waits equally long, so the first in
    /// the queue is the first that is due.
    pub(crate) fn send_held(&self, observer: &mut dyn Observer, queue: &Receiver<Held>) {
        while let Ok(Held::Until(due, exchange)) = queue.recv() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if let Some(next) = self.send_refusal(observer, *exchange) {
                self.dispatch(observer, next);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_configured_leave_at_once_in_each_second() {
        let start = Instant::now();
        let (refusals, _held) = Refusals::new(3, start);
        for second in 0..3 {
            let now = start + second * SECOND;
            let sent = (0..10).filter(|_| refusals.leaves_at_once(now)).count();
            assert_eq!(sent, 3);
            assert!(!refusals.leaves_at_once(now + SECOND - Duration::from_millis(1)));
        }
    }
}
