//! Connecting, and access to the socket that the driver hides, for a [`Watchdog`].
//!
//! The driver calls back at one point between connecting the socket and sending the first byte: it
//! asks for a TLS connector. There is no TLS here (`sslmode=disable`), but at this point the socket
//! can be found. Another thread may be connecting to the same server, so each attempt marks its
//! socket: the driver sets a unique `TCP_USER_TIMEOUT` on it. The mark is removed as soon as the
//! socket is found, before it can have an effect.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postgres::tls::{MakeTlsConnect, NoTlsStream};
use postgres::{Client, NoTls, SimpleQueryMessage, Socket};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use uuid::Uuid;

use super::config::{Candidate, DatabaseConfig, TCP_USER_TIMEOUT, TargetSessionAttrs};
use super::error::DatabaseError;
use super::watchdog::{TimeLimit, Watchdog};
use tbd_deadline::{Deadline, lock};
use tbd_sockets as sockets;

/// How long the server may take for authentication once TCP is connected.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long closing a session may take.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// The check of a session: whether it was opened here, and what its server may do.
const SESSION: &str = "SELECT current_setting('tbd.session', true), pg_is_in_recovery(), \
                       current_setting('transaction_read_only')";

/// The driver's session, and the time limit for waiting on it.
pub(super) struct Link {
    // Dropped in this order: the goodbye is watched too.
    pub client: Client,
    pub limit: TimeLimit,
    /// The server's host and port.
    pub server: (String, u16),
    mark: String,
    location: String,
    target: TargetSessionAttrs,
}

impl Link {
    /// Whether the session has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.limit.is_cut() || self.client.is_closed()
    }

    /// Checks that the session was opened here and that its server is acceptable. One round trip;
    /// prepares no statement.
    ///
    /// # Errors
    /// [`DatabaseError::ReadOnly`]: the server is not acceptable. [`DatabaseError::Rejected`]: the
    /// session is a pooler's. Otherwise the error of the query.
    pub(super) fn verify(&mut self) -> Result<(), DatabaseError> {
        let answer = self.client.simple_query(SESSION)?;
        let row = answer.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let column = |number: usize| row.and_then(|row| row.try_get(number).ok().flatten());
        if column(0) != Some(&self.mark) {
            return Err(DatabaseError::pooler(self.location.clone()));
        }
        let is_acceptable = match self.target {
            TargetSessionAttrs::Any => true,
            TargetSessionAttrs::ReadWrite => column(2) == Some("off"),
            TargetSessionAttrs::Primary => column(1) == Some("f"),
        };
        is_acceptable.then_some(()).ok_or(DatabaseError::ReadOnly)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The driver says goodbye when it is dropped, and first waits for outstanding answers. That
        // wait is limited; on a closed session there is none.
        if self.is_closed() {
            self.limit.cut();
        } else {
            self.limit.set(FAREWELL_TIMEOUT);
        }
    }
}

/// Connects to the first acceptable server. Waits for the resolver, then `connect_timeout` plus 5 s
/// in total. Each address gets an equal share of the time left for connecting, authentication and a
/// round trip. The result has no limit in force.
pub(super) fn connect(config: &DatabaseConfig, watchdog: &Watchdog) -> Result<Link, DatabaseError> {
    connect_within(config, watchdog, HANDSHAKE_TIMEOUT)
}

fn connect_within(
    config: &DatabaseConfig,
    watchdog: &Watchdog,
    handshake_timeout: Duration,
) -> Result<Link, DatabaseError> {
    let (candidates, mut reasons) = config.candidates();
    let budget = Deadline::after(config.connect_timeout + handshake_timeout);
    let last = candidates.len();
    let is_only_one = config.other_servers.is_empty();
    for (number, candidate) in candidates.iter().enumerate() {
        let addresses_left = u32::try_from(last - number).unwrap_or(u32::MAX);
        let share = budget.remaining() / addresses_left;
        match attempt(config, candidate, watchdog, share, handshake_timeout) {
            Err(DatabaseError::Unavailable { reason, .. }) if is_only_one => reasons.push(reason),
            Err(DatabaseError::Unavailable { reason, .. }) => {
                reasons.push(format!("{}:{}: {reason}", candidate.host, candidate.port));
            }
            // As in libpq, a refusal by one server ends the search.
            outcome => return outcome,
        }
    }
    reasons.dedup();
    Err(unavailable(config, &reasons.join("; ")))
}

/// A session with the server at `candidate`, if the server is acceptable.
fn attempt(
    config: &DatabaseConfig,
    candidate: &Candidate<'_>,
    watchdog: &Watchdog,
    share: Duration,
    handshake_timeout: Duration,
) -> Result<Link, DatabaseError> {
    let finder = candidate.address.is_some().then(|| Finder {
        port: candidate.port,
        mark: next_mark(),
        watchdog: watchdog.clone(),
        handshake_end: Deadline::after(share),
        handshake_timeout,
    });
    let mark = Uuid::now_v7().simple().to_string();
    let mut driver = config.driver_config(candidate, &mark);
    driver.connect_timeout(config.connect_timeout.min(share));
    let (client, limit) = open(config, driver, finder)?;
    let mut link = Link {
        client,
        limit,
        server: (candidate.host.to_owned(), candidate.port),
        mark,
        location: config.location(),
        target: config.target,
    };
    let verified = link.verify();
    link.limit.clear();
    let reason = match verified {
        _ if link.limit.is_cut() => DatabaseError::NO_ANSWER.to_owned(),
        Ok(()) => return Ok(link),
        Err(error @ (DatabaseError::Rejected { .. } | DatabaseError::OutOfResources { .. })) => {
            return Err(error);
        }
        Err(DatabaseError::ReadOnly) => {
            "the server is read-only, and DB_TARGET_SESSION_ATTRS asks for another one".to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(unavailable(config, &reason))
}

/// The driver's session, with its limit still in force.
fn open(
    config: &DatabaseConfig,
    mut driver: postgres::Config,
    finder: Option<Finder>,
) -> Result<(Client, TimeLimit), DatabaseError> {
    if let Some(finder) = &finder {
        driver.tcp_user_timeout(finder.mark);
    }
    let found = Arc::new(Mutex::new(TimeLimit::never()));
    let hook = AfterConnect {
        finder,
        found: Arc::clone(&found),
    };
    let manager = PostgresConnectionManager::new(driver, hook);
    // The driver panics when it cannot get a descriptor for its event loop ("FIXME don't unwrap").
    // A shortage of descriptors passes, but a panic would cost the pool this connection's place for
    // good.
    let outcome = catch_unwind(AssertUnwindSafe(|| manager.connect()));
    let limit = std::mem::replace(&mut *lock(&found), TimeLimit::never());
    match outcome {
        // The answer arrived at the moment of the cut.
        Ok(Ok(_) | Err(_)) if limit.is_cut() => Err(unavailable(config, DatabaseError::NO_ANSWER)),
        Ok(Ok(client)) => Ok((client, limit)),
        Ok(Err(error)) => Err(DatabaseError::connecting(config, &error)),
        Err(_) => Err(unavailable(
            config,
            "the driver could not start (out of file descriptors?)",
        )),
    }
}

fn unavailable(config: &DatabaseConfig, reason: &str) -> DatabaseError {
    DatabaseError::Unavailable {
        location: config.location(),
        reason: reason.to_owned(),
    }
}

/// A user time-out in milliseconds that serves as a mark: implausible as a setting, and different
/// for each attempt.
fn next_mark() -> Duration {
    static ATTEMPTS: AtomicU64 = AtomicU64::new(0);
    const RANGE: u64 = 1_000_000_000;
    let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    Duration::from_millis(RANGE + attempt % RANGE)
}

/// Finds a socket that was just connected by its mark.
#[derive(Clone)]
struct Finder {
    port: u16,
    mark: Duration,
    watchdog: Watchdog,
    handshake_end: Deadline,
    handshake_timeout: Duration,
}

impl Finder {
    /// A duplicate of the marked socket, with the mark removed. Fails rather than leave a
    /// connection without limits.
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

/// The driver's TLS connector factory. It is called once for each address, right after the connect.
#[derive(Clone)]
struct AfterConnect {
    /// None for a Unix socket.
    finder: Option<Finder>,
    /// Receives the limit of the latest socket.
    found: Arc<Mutex<TimeLimit>>,
}

impl MakeTlsConnect<Socket> for AfterConnect {
    type Stream = NoTlsStream;
    type TlsConnect = NoTls;
    type Error = io::Error;

    fn make_tls_connect(&mut self, _domain: &str) -> io::Result<NoTls> {
        if let Some(finder) = &self.finder {
            let limit = finder.watchdog.watch(finder.find()?)?;
            limit.set(
                finder
                    .handshake_timeout
                    .min(finder.handshake_end.remaining()),
            );
            *lock(&self.found) = limit;
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
        // A bound, listening socket is enough: the kernel accepts.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = DatabaseConfig::new("127.0.0.1", port, "tbd", "secret", "tbd");
        let watchdog = Watchdog::default();
        let started = Instant::now();
        // Several at once: each must find its own socket.
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
    fn several_silent_servers_share_the_time_that_one_would_have() {
        let listeners = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let ports = listeners
            .each_ref()
            .map(|it| it.local_addr().unwrap().port());
        let others = ports[1..]
            .iter()
            .map(|port| ("127.0.0.1".to_owned(), *port));
        let config = DatabaseConfig {
            other_servers: others.collect(),
            connect_timeout: Duration::from_millis(500),
            ..DatabaseConfig::new("127.0.0.1", ports[0], "tbd", "secret", "tbd")
        };
        let started = Instant::now();
        let error = connect_within(&config, &Watchdog::default(), Duration::from_secs(2))
            .err()
            .unwrap()
            .to_string();
        // One after another they would take 8 s.
        assert!(started.elapsed() < Duration::from_secs(5));
        for port in ports {
            let reason = format!("127.0.0.1:{port}: no answer in time");
            assert!(error.contains(&reason), "{error}");
        }
    }

    #[test]
    fn a_host_name_that_does_not_exist_makes_the_database_unavailable() {
        let config = DatabaseConfig::new("no-such-host.invalid", 5432, "tbd", "secret", "tbd");
        let error = connect(&config, &Watchdog::default()).err().unwrap();
        assert!(matches!(error, DatabaseError::Unavailable { .. }));
        assert!(error.to_string().contains("no-such-host.invalid:5432/tbd"));
    }

    #[test]
    fn a_server_that_hangs_up_is_unavailable() {
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
