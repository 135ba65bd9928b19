//! Connecting: the servers in turn, and the check of a new session.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, SimpleQueryMessage};
use r2d2::ManageConnection;
use r2d2_postgres::PostgresConnectionManager;
use tbd_deadline::Deadline;
use uuid::Uuid;

use super::config::{Candidate, DatabaseConfig, TargetSessionAttrs};
use super::error::{DatabaseError, io_error};
use super::limit::TimeLimit;
use super::tls::{Negotiator, tls_reason};

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
pub(super) fn connect(config: &DatabaseConfig) -> Result<Link, DatabaseError> {
    connect_within(config, HANDSHAKE_TIMEOUT)
}

fn connect_within(
    config: &DatabaseConfig,
    handshake_timeout: Duration,
) -> Result<Link, DatabaseError> {
    let (candidates, mut reasons) = config.candidates();
    let budget = Deadline::after(config.connect_timeout + handshake_timeout);
    let last = candidates.len();
    let is_only_one = config.other_servers.is_empty();
    for (number, candidate) in candidates.iter().enumerate() {
        let addresses_left = u32::try_from(last - number).unwrap_or(u32::MAX);
        let share = budget.remaining() / addresses_left;
        match attempt(config, candidate, share, handshake_timeout) {
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
    share: Duration,
    handshake_timeout: Duration,
) -> Result<Link, DatabaseError> {
    let deadline = Deadline::after(share);
    let mark = Uuid::now_v7().simple().to_string();
    let (client, limit) = open(config, candidate, &mark, deadline, handshake_timeout)?;
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
    candidate: &Candidate<'_>,
    mark: &str,
    deadline: Deadline,
    handshake_timeout: Duration,
) -> Result<(Client, TimeLimit), DatabaseError> {
    let mut failure = None;
    for way in config.tls.ways() {
        let mut driver = config.driver_config(candidate, mark);
        driver.connect_timeout(config.connect_timeout.min(deadline.remaining()));
        let limit = TimeLimit::new();
        let negotiator = Negotiator {
            host: candidate.host.to_owned(),
            way,
            limit: limit.clone(),
            deadline,
            handshake_timeout,
        };
        let manager = PostgresConnectionManager::new(driver, negotiator);
        // The driver panics when it cannot get a descriptor for its event loop ("FIXME don't
        // unwrap"). A shortage of descriptors passes, but a panic would cost the pool this
        // connection's place for good.
        match catch_unwind(AssertUnwindSafe(|| manager.connect())) {
            // The answer arrived at the moment of the cut.
            Ok(_) if limit.is_cut() => return Err(unavailable(config, DatabaseError::NO_ANSWER)),
            Ok(Ok(client)) => return Ok((client, limit)),
            Ok(Err(error)) => {
                let is_final = !is_of_encryption(&error);
                // The reason why TLS failed says more than a refusal of plain text.
                failure.get_or_insert(DatabaseError::connecting(config, &error));
                if is_final {
                    break;
                }
            }
            Err(_) => {
                let reason = "the driver could not start (out of file descriptors?)";
                return Err(unavailable(config, reason));
            }
        }
    }
    Err(failure.unwrap_or_else(|| unavailable(config, DatabaseError::NO_ANSWER)))
}

/// Whether a session might open without encryption: TLS failed, or pg_hba.conf has no line for it.
/// A wrong password is not repeated in plain text.
fn is_of_encryption(error: &postgres::Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        None => io_error(error).is_some_and(|error| tls_reason(error, "").is_some()),
    }
}

fn unavailable(config: &DatabaseConfig, reason: &str) -> DatabaseError {
    DatabaseError::Unavailable {
        location: config.location(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;
    use std::time::Instant;

    #[test]
    fn a_server_that_accepts_and_says_nothing_is_given_up() {
        // A bound, listening socket is enough: the kernel accepts.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = DatabaseConfig::new("127.0.0.1", port, "tbd", "secret", "tbd");
        let started = Instant::now();
        thread::scope(|scope| {
            for handshake in [300, 600, 900].map(Duration::from_millis) {
                let config = &config;
                scope.spawn(move || {
                    let error = connect_within(config, handshake).err().unwrap();
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
        let error = connect_within(&config, Duration::from_secs(2))
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
        let error = connect(&config).err().unwrap();
        assert!(matches!(error, DatabaseError::Unavailable { .. }));
        assert!(error.to_string().contains("no-such-host.invalid:5432/tbd"));
    }

    #[test]
    fn a_server_that_hangs_up_is_unavailable() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || listener.accept().map(drop));
        let config = DatabaseConfig::new("127.0.0.1", port, "tbd", "secret", "tbd");
        let error = connect(&config).err().unwrap();
        assert!(
            matches!(error, DatabaseError::Unavailable { .. }),
            "{error}"
        );
        server.join().unwrap().unwrap();
    }
}
