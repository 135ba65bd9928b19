//! The connection pool: check-out without a round trip, and early failure during an outage.

use std::fmt;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use r2d2::{HandleError, ManageConnection};
use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use super::config::DatabaseConfig;
use super::connection::Connection;
use super::error::DatabaseError;
use super::hooks::{Hooks, NoHooks};
use tbd_deadline::{Deadline, lock};

/// Threads that open connections. Three attempts in parallel refill an emptied pool quickly, and a
/// hung one does not delay the others.
const CONNECT_THREADS: usize = 3;
/// r2d2 repeats a failed attempt to connect after a growing pause of at most half of this. So the
/// pool notices within half a second that the database is back.
const RECONNECT_PAUSE_TWICE: Duration = Duration::from_secs(1);
/// Idle connections beyond the configured number are closed when unused for this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a waiting caller checks for an outage: r2d2 wakes it only for a connection.
const WAIT_SLICE: Duration = Duration::from_millis(100);
/// How long a caller waits for a connection to come back when the last attempt to connect failed
/// but connections are in use.
const PATIENCE_DURING_OUTAGE: Duration = Duration::from_millis(250);
/// How long a suspect connection may take to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// A pool of at most `max_conns` connections. Cheap to clone; all clones are the same pool.
///
/// **No I/O** when it is built: it needs no database then. It connects in the background, on
/// threads named `database-connect-N`. They end with the last clone, after an attempt in progress.
///
/// **`max_idle_conns`.** r2d2 has a *minimum* of idle connections and no maximum. So the number is
/// used as that minimum (at least 1, at most `max_conns`). The pool keeps that many ready, and may
/// hold more while it is busy. It closes the surplus a minute (at most 90 s) after its last use.
/// `conn_max_lifetime` is checked whenever a connection comes back, and every 30 s for idle ones. A
/// random part of it, at most a tenth, is subtracted, so that connections opened together are not
/// renewed together.
///
/// **Check-out** costs no round trip. After the loss of one connection all others are suspect,
/// since a restart or a fail-over breaks all of them. A suspect must answer a ping (within 1 s)
/// before it is handed out again.
#[derive(Clone)]
pub struct Pool {
    pool: r2d2::Pool<Manager>,
    shared: Arc<Shared>,
}

/// How the pool is used at a given moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Connections that callers hold.
    pub in_use: u32,
    /// Connections ready to be handed out.
    pub idle: u32,
    /// Callers waiting for a connection.
    pub waiting: u32,
    /// The maximum number of connections.
    pub max: u32,
}

struct Shared {
    config: DatabaseConfig,
    hooks: Arc<dyn Hooks>,
    waiting: AtomicU32,
    /// Counts lost connections. A connection last known to live before the latest loss is suspect.
    losses: AtomicU64,
    /// Why the latest attempt to connect, or the latest ping of a suspect, failed; none when it
    /// succeeded. Its lock is held only for an assignment or a clone.
    outage: Mutex<Option<DatabaseError>>,
}

impl Shared {
    fn set_outage(&self, reason: Option<DatabaseError>) {
        let message = reason.as_ref().map(ToString::to_string);
        let before = mem::replace(&mut *lock(&self.outage), reason);
        // Logged once per outage, and outside the lock.
        match (before, message) {
            (None, Some(message)) => log::warn!("{message}"),
            (Some(_), None) => log::info!("the database {} is back", self.config.location()),
            _ => {}
        }
    }

    fn outage(&self) -> Option<DatabaseError> {
        lock(&self.outage).clone()
    }
}

impl Pool {
    /// A pool for `config` without hooks. See [`with_hooks`](Self::with_hooks).
    pub fn new(config: DatabaseConfig) -> Result<Self, DatabaseError> {
        Self::with_hooks(config, Arc::new(NoHooks))
    }

    /// A pool for `config`. Fails only for an invalid configuration (no connections, no lifetime).
    /// An outage shows only at a check-out.
    pub fn with_hooks(
        config: DatabaseConfig,
        hooks: Arc<dyn Hooks>,
    ) -> Result<Self, DatabaseError> {
        if config.max_conns == 0 || config.conn_max_lifetime.is_zero() {
            return Err(DatabaseError::Driver(
                "the pool needs at least one connection and a lifetime above zero".to_owned(),
            ));
        }
        let threads = ScheduledThreadPool::builder()
            .num_threads(CONNECT_THREADS)
            .thread_name_pattern("database-connect-{}")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let builder = r2d2::Pool::builder()
            .max_size(config.max_conns)
            .min_idle(Some(config.max_idle_conns.clamp(1, config.max_conns)))
            .max_lifetime(Some(config.conn_max_lifetime))
            .idle_timeout(Some(IDLE_TIMEOUT))
            .connection_timeout(RECONNECT_PAUSE_TWICE)
            .test_on_check_out(false)
            .thread_pool(Arc::new(threads))
            .error_handler(Box::new(Quiet));
        let shared = Arc::new(Shared {
            config,
            hooks,
            waiting: AtomicU32::new(0),
            losses: AtomicU64::new(0),
            outage: Mutex::new(None),
        });
        let pool = builder.build_unchecked(Manager {
            shared: Arc::clone(&shared),
        });
        Ok(Self { pool, shared })
    }

    /// Checks out a connection. Dropping it returns it to the pool.
    ///
    /// **Blocks** until a connection is free, at most until `deadline`. During an outage it fails
    /// within 250 ms, with the reason of the last attempt to connect. A server at its connection
    /// limit is no outage while it serves the pool's connections. After a loss, the ping of a
    /// suspect may add up to 1 s, even past the deadline: a shorter ping would condemn a good
    /// connection.
    pub fn get(&self, deadline: Deadline) -> Result<PooledConnection, DatabaseError> {
        let started = Instant::now();
        let outcome = match self.idle() {
            Some(connection) => Ok(connection),
            None => self.wait(started, deadline),
        };
        self.shared.hooks.connection_waited(started.elapsed());
        outcome
    }

    /// How the pool is used now.
    pub fn status(&self) -> PoolStatus {
        let state = self.pool.state();
        PoolStatus {
            in_use: state.connections.saturating_sub(state.idle_connections),
            idle: state.idle_connections,
            waiting: self.shared.waiting.load(Ordering::Relaxed),
            max: self.pool.max_size(),
        }
    }

    pub(super) fn hooks(&self) -> &dyn Hooks {
        &*self.shared.hooks
    }

    /// The configuration of the pool.
    pub fn config(&self) -> &DatabaseConfig {
        &self.shared.config
    }

    /// A verified idle connection, if there is one. Blocks only for the pings that follow a loss. A
    /// broken connection fails its ping at once, and the first silent one ends the search.
    fn idle(&self) -> Option<PooledConnection> {
        while let Some(connection) = self.pool.try_get() {
            match self.verify(connection) {
                Ok(connection) => return Some(connection),
                Err(Suspect::Broken) => {}
                Err(Suspect::Silent) => break,
            }
        }
        None
    }

    fn wait(
        &self,
        started: Instant,
        deadline: Deadline,
    ) -> Result<PooledConnection, DatabaseError> {
        let _waiting = Waiting::new(&self.shared.waiting);
        loop {
            if let Some(reason) = self.shared.outage() {
                // A server out of connections still serves the pool's, and one of those comes back.
                let serves = matches!(reason, DatabaseError::OutOfResources { .. });
                let is_patient = serves || started.elapsed() < PATIENCE_DURING_OUTAGE;
                if self.pool.state().connections == 0 || !is_patient {
                    return Err(reason);
                }
            }
            let slice = deadline.remaining().min(WAIT_SLICE);
            if slice.is_zero() {
                return Err(DatabaseError::PoolTimeout {
                    waited: started.elapsed(),
                    max: self.pool.max_size(),
                });
            }
            if let Ok(connection) = self.pool.get_timeout(slice)
                && let Ok(connection) = self.verify(connection)
            {
                return Ok(connection);
            }
        }
    }

    /// `connection`, verified and ready for use, or the reason why it was dropped.
    fn verify(
        &self,
        mut connection: r2d2::PooledConnection<Manager>,
    ) -> Result<PooledConnection, Suspect> {
        let losses = self.shared.losses.load(Ordering::Acquire);
        let pooled = &mut *connection;
        if pooled.losses_seen != losses {
            let asked = Instant::now();
            if pooled.connection.ping(PING_TIMEOUT).is_err() {
                if asked.elapsed() < PING_TIMEOUT {
                    return Err(Suspect::Broken);
                }
                self.shared.set_outage(Some(DatabaseError::Unavailable {
                    location: self.shared.config.location(),
                    reason: "it does not answer".to_owned(),
                }));
                return Err(Suspect::Silent);
            }
            self.shared.set_outage(None);
            pooled.losses_seen = losses;
        }
        pooled
            .connection
            .reset_statement_timeout()
            .map_err(|_| Suspect::Broken)?;
        Ok(PooledConnection(connection))
    }
}

/// What is wrong with a suspect connection.
enum Suspect {
    Broken,
    Silent,
}

impl fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Pool")
            .field("config", &self.shared.config)
            .field("status", &self.status())
            .finish()
    }
}

/// A connection borrowed from the pool, for use as a [`Connection`]. Dropping it returns it.
pub struct PooledConnection(r2d2::PooledConnection<Manager>);

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0.connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0.connection
    }
}

/// A connection in r2d2's pool.
struct Pooled {
    connection: Connection,
    /// The count of losses when the connection was last known to live.
    losses_seen: u64,
    /// When the connection must be replaced.
    expires: Deadline,
}

struct Manager {
    shared: Arc<Shared>,
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = DatabaseError;

    fn connect(&self) -> Result<Pooled, DatabaseError> {
        let losses_seen = self.shared.losses.load(Ordering::Acquire);
        let hooks = Arc::clone(&self.shared.hooks);
        match Connection::open(&self.shared.config, hooks) {
            Ok(connection) => {
                self.shared.set_outage(None);
                let expires = Deadline::after(spread(self.shared.config.conn_max_lifetime));
                Ok(Pooled {
                    connection,
                    losses_seen,
                    expires,
                })
            }
            Err(error) => {
                self.shared.set_outage(Some(error.clone()));
                Err(error)
            }
        }
    }

    fn is_valid(&self, pooled: &mut Pooled) -> Result<(), DatabaseError> {
        pooled.connection.ping(PING_TIMEOUT)
    }

    fn has_broken(&self, pooled: &mut Pooled) -> bool {
        if pooled.connection.is_lost() {
            self.shared.losses.fetch_add(1, Ordering::AcqRel);
            return true;
        }
        pooled.expires.is_past()
    }
}

/// `lifetime` minus a random part of up to a tenth.
fn spread(lifetime: Duration) -> Duration {
    // The last byte of a UUIDv7 is random, so no other generator is needed.
    let share = u32::from(uuid::Uuid::now_v7().as_bytes()[15]);
    lifetime - lifetime / 10 * share / u32::from(u8::MAX)
}

/// Silences r2d2, which logs every failed attempt to connect. [`Shared::set_outage`] logs the first
/// one of an outage.
#[derive(Debug)]
struct Quiet;

impl HandleError<DatabaseError> for Quiet {
    fn handle_error(&self, _error: DatabaseError) {}
}

/// Counts a caller as waiting until dropped, so that every exit path counts down.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_shortened_by_a_tenth_at_most() {
        let lifetime = Duration::from_secs(300);
        for _ in 0..100 {
            let spread = spread(lifetime);
            assert!(spread <= lifetime && spread >= lifetime * 9 / 10 - Duration::from_millis(1));
        }
    }

    #[test]
    fn a_pool_without_connections_is_refused_instead_of_a_panic() {
        let mut config = DatabaseConfig::new("localhost", 1, "tbd", "secret", "tbd");
        config.max_conns = 0;
        assert!(Pool::new(config).is_err());
    }
}
