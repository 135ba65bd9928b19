//! Connecting, and finding the socket that the driver keeps to itself, so that a [`Watchdog`] can watch it.
//!
//! The driver lets its user in at one place between connecting the socket and the first byte on it: it asks for a
//! TLS. There is none here (`sslmode=disable`), but the question is the moment to look for the socket. To be sure that
//! it is the one just connected, and not that of another thread connecting to the same server, each attempt wears a
//! mark that the driver puts on its socket for us: a `TCP_USER_TIMEOUT` that no other has. The mark is taken off as
//! soon as the socket is found, before it could have an effect.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postgres::tls::{MakeTlsConnect, NoTlsStream};
use postgres::{Client, NoTls, Socket};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;

use super::config::{DatabaseConfig, TCP_USER_TIMEOUT};
use super::error::DatabaseError;
use super::watchdog::{TimeLimit, Watchdog};
use crate::sockets;

/// How long the server may take to authenticate us once the TCP connection stands.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long closing a session may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// The driver's session, and the limit to waiting for it.
pub(super) struct Link {
    // Dropped in this order: saying goodbye is watched, too.
    pub client: Client,
    pub limit: TimeLimit,
}

impl Link {
    /// Whether the session has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.limit.is_cut() || self.client.is_closed()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The driver says goodbye as it is dropped, and first waits for answers still due: not for ever, and not at
        // all when there is no use.
        if self.is_closed() {
            self.limit.cut();
        } else {
            self.limit.set(FAREWELL_TIMEOUT);
        }
    }
}

/// Connects. Waits for the resolver, then for each of the host's addresses at most `connect_timeout` and 5 s for the
/// server to authenticate us. No limit is in force on the result.
pub(super) fn connect(config: &DatabaseConfig, watchdog: &Watchdog) -> Result<Link, DatabaseError> {
    connect_within(config, watchdog, HANDSHAKE_TIMEOUT)
}

fn connect_within(
    config: &DatabaseConfig,
    watchdog: &Watchdog,
    handshake_timeout: Duration,
) -> Result<Link, DatabaseError> {
    let finder = (!config.is_unix_socket()).then(|| Finder {
        port: config.port,
        mark: next_mark(),
        watchdog: watchdog.clone(),
        handshake_timeout,
    });
    let mut driver = config.resolve()?;
    if let Some(finder) = &finder {
        driver.tcp_user_timeout(finder.mark);
    }
    let found = Arc::new(Mutex::new(TimeLimit::never()));
    let hook = AfterConnect {
        finder,
        found: Arc::clone(&found),
    };
    let manager = PostgresConnectionManager::new(driver, hook);
    // The driver panics when it cannot get a descriptor for its event loop ("FIXME don't unwrap"). Running out of
    // descriptors passes; a panic would cost the pool this connection's place for good.
    let outcome = catch_unwind(AssertUnwindSafe(|| manager.connect()));
    let limit = std::mem::replace(
        &mut *found.lock().unwrap_or_else(PoisonError::into_inner),
        TimeLimit::never(),
    );
    limit.clear();
    let unavailable = |reason: &str| DatabaseError::Unavailable {
        location: config.location(),
        reason: reason.to_owned(),
    };
    match outcome {
        // The last word came at the moment of the cut.
        Ok(Ok(_) | Err(_)) if limit.is_cut() => Err(unavailable(DatabaseError::NO_ANSWER)),
        Ok(Ok(client)) => Ok(Link { client, limit }),
        Ok(Err(error)) => Err(DatabaseError::connecting(config, &error)),
        Err(_) => Err(unavailable(
            "the driver could not start (out of file descriptors?)",
        )),
    }
}

/// A user time-out in milliseconds that nobody would set for its own sake, different from one attempt to the next.
fn next_mark() -> Duration {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    const RANGE: u64 = 1_000_000_000;
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    Duration::from_millis(RANGE + attempt % RANGE)
}

/// Knows a socket that was just connected by its mark.
#[derive(Clone)]
struct Finder {
    port: u16,
    mark: Duration,
    watchdog: Watchdog,
    handshake_timeout: Duration,
}

impl Finder {
    /// A duplicate of the marked socket, with the mark taken off. An error rather than a connection without limits.
    fn find(&self) -> io::Result<socket2::Socket> {
        let mut failure = io::Error::other("the connection's socket cannot be found");
        for fd in sockets::connected(|_, peer| peer.port() == self.port)? {
            let socket = match sockets::duplicate(fd) {
                Ok(duplicate) => socket2::Socket::from(duplicate),
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            if matches!(socket.tcp_user_timeout(), Ok(Some(mark)) if mark == self.mark) {
                socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
                return Ok(socket);
            }
        }
        Err(failure)
    }
}

/// What the driver takes for a maker of TLS: called once for each address, when the socket has just been connected.
#[derive(Clone)]
struct AfterConnect {
    /// None for a Unix socket.
    finder: Option<Finder>,
    /// Where the limit of the latest socket goes.
    found: Arc<Mutex<TimeLimit>>,
}

impl MakeTlsConnect<Socket> for AfterConnect {
    type Stream = NoTlsStream;
    type TlsConnect = NoTls;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _domain: &str) -> io::Result<NoTls> {
        if let Some(finder) = &self.finder {
            let limit = finder.watchdog.watch(finder.find()?)?;
            limit.set(finder.handshake_timeout);
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) = limit;
        }
        Ok(NoTls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;
    use std::time::Instant;

    fn open_to(port: u16) -> usize {
        sockets::connected(|_, peer| peer.port() == port)
            .unwrap()
            .len()
    }

    #[test]
    fn a_server_that_accepts_and_says_nothing_is_given_up() {
        // Bound and listening is enough: the kernel accepts.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = DatabaseConfig::new("127.0.0.1", port, "tbd", "secret", "tbd");
        let watchdog = Watchdog::default();
        let started = Instant::now();
        // Several at once: each has to find its own socket.
        thread::scope(|scope| {
            for handshake in [300, 600, 900].map(Duration::from_millis) {
                let (config, watchdog) = (&config, &watchdog);
                scope.spawn(move || {
                    let error = connect_within(config, watchdog, handshake).err().unwrap();
                    assert!(started.elapsed() >= handshake);
                    assert!(started.elapsed() < handshake + Duration::from_secs(2));
                    assert_eq!(
                        error.to_string(),
                        format!(
                            "the database 127.0.0.1:{port}/tbd is unavailable: no answer in time"
                        )
                    );
                });
            }
        });
        assert_eq!(open_to(port), 0);
    }

    #[test]
    fn a_server_that_hangs_up_is_away() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || listener.accept().map(drop));
        let config = DatabaseConfig::new("127.0.0.1", port, "tbd", "secret", "tbd");
        let error = connect(&config, &Watchdog::default()).err().unwrap();
        assert!(
            matches!(error, DatabaseError::Unavailable { .. }),
            "{error}"
        );
        server.join().unwrap().unwrap();
        assert_eq!(open_to(port), 0);
    }
}
