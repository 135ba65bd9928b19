//! Time limits for calls that wait for the server.
//!
//! The driver limits the TCP connect and nothing after it. A server that accepts and then says
//! nothing (frozen, or a proxy without a server behind it) would block the calling thread for ever.
//! So would the driver's destructor, which waits for outstanding answers. TCP's own time-outs do
//! not help, because the peer's kernel still acknowledges. So a thread watches the connections and
//! shuts down the socket of one that exceeds its limit. The driver then reads the end of the
//! connection and returns an error.
//!
//! A limit is one atomic word, so it costs a statement next to nothing. The thread checks all
//! limits periodically, and sleeps without a time-out while there is none.

use std::io;
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::Socket;
use tbd_deadline::lock;

use super::error::DatabaseError;

/// How often limits are checked while there are any. A limit at least this long is kept to the
/// millisecond; a shorter one may be exceeded by this much.
const TICK: Duration = Duration::from_millis(250);

/// The value that means no limit.
const UNLIMITED: u64 = u64::MAX;

/// Watches connections on one thread, `database-watchdog`. The thread starts with the first
/// connection. It is joined when the last clone and the last [`TimeLimit`] are dropped. It waits
/// only for its next check, so the join takes no time.
#[derive(Clone, Default)]
pub(super) struct Watchdog(Arc<Owner>);

#[derive(Default)]
struct Owner {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    epoch: Instant,
    /// The thread sleeps until it is woken: the next caller that sets a limit must wake it.
    asleep: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// One for each open connection, so the pool's size is the bound.
    watched: Vec<Arc<Watched>>,
    stopping: bool,
}

struct Watched {
    /// Nanoseconds since the epoch, or [`UNLIMITED`].
    limit: AtomicU64,
    /// The socket was shut down: the connection cannot be used any more.
    cut: AtomicBool,
    socket: Socket,
    shared: Arc<Shared>,
}

/// How long a connection may wait for the server. Dropping it ends the watching.
pub(super) struct TimeLimit(Option<(Arc<Watched>, Watchdog)>);

/// A limit in force; dropping it lifts it.
#[must_use]
pub(super) struct Limited(Option<Arc<Watched>>);

impl Watchdog {
    /// Watches a connection; `socket` is a duplicate of its socket. No limit is set yet. Does not
    /// block.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(super) fn watch(&self, socket: Socket) -> io::Result<TimeLimit> {
        self.start()?;
        let shared = &self.0.shared;
        let watched = Arc::new(Watched {
            limit: AtomicU64::new(UNLIMITED),
            cut: AtomicBool::new(false),
            socket,
            shared: Arc::clone(shared),
        });
        lock(&shared.state).watched.push(Arc::clone(&watched));
        Ok(TimeLimit(Some((watched, self.clone()))))
    }

    fn start(&self) -> io::Result<()> {
        let mut thread = lock(&self.0.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.0.shared);
            let started = thread::Builder::new()
                .name("database-watchdog".to_owned())
                .spawn(move || shared.run())?;
            *thread = Some(started);
        }
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        lock(&self.shared.state).stopping = true;
        self.shared.changed.notify_one();
        let thread = self
            .thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            let _ = thread.join();
        }
    }
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            asleep: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut state = lock(&self.state);
        let mut just_woken = false;
        while !state.stopping {
            let mut earliest = self.look(&state);
            if earliest.is_none() && !just_woken {
                // Set before the second check: a limit that is set after this finds the flag, and
                // wakes the thread.
                self.asleep.store(true, Ordering::SeqCst);
                earliest = self.look(&state);
                if earliest.is_none() {
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                    // Sleep one tick before going idle again. Otherwise each short statement would
                    // wake the thread, although it is over before the next check.
                    just_woken = true;
                }
                self.asleep.store(false, Ordering::SeqCst);
            } else {
                let pause = earliest.map_or(TICK, |earliest| earliest.min(TICK));
                (state, _) = self
                    .changed
                    .wait_timeout(state, pause)
                    .unwrap_or_else(PoisonError::into_inner);
                just_woken = false;
            }
        }
    }

    /// Cuts the connections beyond their limits. Returns the time until the next limit, if there is
    /// one.
    fn look(&self, state: &State) -> Option<Duration> {
        let now = self.now();
        let mut earliest = UNLIMITED;
        for watched in &state.watched {
            let limit = watched.limit.load(Ordering::SeqCst);
            if limit > now {
                earliest = earliest.min(limit);
            } else if watched.limit.compare_exchange(
                limit,
                UNLIMITED,
                Ordering::SeqCst,
                Ordering::SeqCst,
            ) == Ok(limit)
            {
                // On failure of the exchange, the answer arrived at this moment.
                watched.cut();
            }
        }
        (earliest != UNLIMITED).then(|| Duration::from_nanos(earliest - now))
    }

    fn now(&self) -> u64 {
        nanos(self.epoch.elapsed())
    }
}

impl Watched {
    fn set(&self, duration: Duration) {
        let limit = self.shared.now().saturating_add(nanos(duration));
        self.limit.store(limit, Ordering::SeqCst);
        if self.shared.asleep.load(Ordering::SeqCst)
            && self.shared.asleep.swap(false, Ordering::SeqCst)
        {
            // Under the lock, so that a thread about to wait does not miss it.
            let _state = lock(&self.shared.state);
            self.shared.changed.notify_one();
        }
    }

    fn clear(&self) {
        self.limit.store(UNLIMITED, Ordering::SeqCst);
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        // Fails only for a socket that the peer has already closed.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl TimeLimit {
    /// For a connection that is not watched: no limit ever.
    pub(super) fn never() -> Self {
        Self(None)
    }

    /// Sets the limit to `duration` from now.
    pub(super) fn set(&self, duration: Duration) {
        if let Some((watched, _)) = &self.0 {
            watched.set(duration);
        }
    }

    /// Lifts the limit.
    pub(super) fn clear(&self) {
        if let Some((watched, _)) = &self.0 {
            watched.clear();
        }
    }

    /// Sets the limit to `duration` from now for as long as the returned value lives.
    pub(super) fn hold(&self, duration: Duration) -> Limited {
        self.set(duration);
        Limited(self.0.as_ref().map(|(watched, _)| Arc::clone(watched)))
    }

    /// Ends the connection now.
    pub(super) fn cut(&self) {
        if let Some((watched, _)) = &self.0 {
            watched.cut();
        }
    }

    /// `error`, or the exceeded limit if that caused the loss.
    pub(super) fn explain(&self, error: DatabaseError) -> DatabaseError {
        match error {
            DatabaseError::ConnectionLost(_) if self.is_cut() => {
                DatabaseError::ConnectionLost(DatabaseError::NO_ANSWER.to_owned())
            }
            error => error,
        }
    }

    /// Whether the connection was cut.
    pub(super) fn is_cut(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(|(watched, _)| watched.cut.load(Ordering::SeqCst))
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        if let Some((watched, watchdog)) = &self.0 {
            let mut state = lock(&watchdog.0.shared.state);
            state.watched.retain(|other| !Arc::ptr_eq(other, watched));
        }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        if let Some(watched) = &self.0 {
            watched.clear();
        }
    }
}

/// Saturates after 584 years, which equals [`UNLIMITED`].
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    const SHORT: Duration = Duration::from_millis(50);

    /// A client of a server that says nothing, and the server's end.
    fn silence() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    fn watch(watchdog: &Watchdog, client: &TcpStream) -> TimeLimit {
        let duplicate = client.try_clone().unwrap();
        watchdog.watch(Socket::from(duplicate)).unwrap()
    }

    #[test]
    fn waiting_ends_at_the_limit_and_not_before() {
        let watchdog = Watchdog::default();
        let (mut client, _server) = silence();
        let limit = watch(&watchdog, &client);
        // Once while the thread is awake, and once after it had time to fall asleep.
        for pause in [Duration::ZERO, TICK * 3] {
            let (mut other, _server) = silence();
            let other_limit = watch(&watchdog, &other);
            thread::sleep(pause);
            let started = Instant::now();
            other_limit.set(SHORT);
            assert_eq!(other.read(&mut [0]).unwrap(), 0);
            assert!(started.elapsed() >= SHORT);
            assert!(started.elapsed() < SHORT + TICK * 4);
            assert!(other_limit.is_cut());
        }
        assert!(!limit.is_cut());
        limit.cut();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_limit_that_was_lifted_cuts_nothing() {
        let watchdog = Watchdog::default();
        let (client, _server) = silence();
        let limit = watch(&watchdog, &client);
        drop(limit.hold(SHORT));
        limit.set(SHORT);
        limit.clear();
        limit.set(Duration::MAX);
        // A later limit that ends proves that the thread checked all of them.
        let (mut other, _server) = silence();
        let other_limit = watch(&watchdog, &other);
        other_limit.set(SHORT * 2);
        assert_eq!(other.read(&mut [0]).unwrap(), 0);
        assert!(!limit.is_cut());
    }

    #[test]
    fn the_thread_ends_with_the_last_who_needs_it() {
        let watchdog = Watchdog::default();
        let shared = Arc::downgrade(&watchdog.0.shared);
        let (client, _server) = silence();
        let limit = watch(&watchdog, &client);
        drop(watchdog);
        assert!(shared.upgrade().is_some());
        drop(limit);
        assert!(shared.upgrade().is_none());
    }

    #[test]
    fn a_limit_costs_less_than_a_microsecond() {
        let watchdog = Watchdog::default();
        let (client, _server) = silence();
        let limit = watch(&watchdog, &client);
        const TIMES: u32 = 100_000;
        let started = Instant::now();
        for _ in 0..TIMES {
            drop(limit.hold(Duration::from_secs(7)));
        }
        let each = started.elapsed() / TIMES;
        println!("{each:?} each");
        // Unoptimised, and on a busy machine.
        assert!(each < Duration::from_micros(5), "{each:?}");
    }
}
