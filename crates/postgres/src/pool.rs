//! The pool of connections: hands one out without asking the server first, and says no early when it must.

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
use super::watchdog::Watchdog;
use tbd_deadline::{Deadline, lock};

/// Threads that open connections. Three attempts at once refill an emptied pool quickly, and one that hangs does
/// not hold up the others.
const CONNECT_THREADS: usize = 3;
/// r2d2 repeats a failed attempt to connect after a growing pause of at most half of this: the database is found
/// again within half a second of its return.
const RECONNECT_PAUSE_TWICE: Duration = Duration::from_secs(1);
/// Connections beyond the wanted number of idle ones are closed when unused for this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A waiting caller looks this often whether the database has meanwhile gone away: r2d2 wakes it for a connection
/// only.
const WAIT_SLICE: Duration = Duration::from_millis(100);
/// While the last attempt to connect failed but connections are still in use, a caller waits this long for one of
/// them to be given back.
const PATIENCE_DURING_OUTAGE: Duration = Duration::from_millis(250);
/// How long a connection under suspicion may take to prove itself.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// A pool of at most `max_conns` connections. Cheap to clone; all clones are the same pool.
///
/// **No I/O** when it is built: it works with the database away and connects in the background, on threads named
/// `database-connect-N` that end with the last clone (an attempt under way is finished first).
///
/// **`max_idle_conns`.** r2d2 knows a *minimum* of idle connections, no maximum. So the number is used as that
/// minimum (at least 1, at most `max_conns`): the pool keeps that many ready ahead of need, may hold more while it
/// is busy, and closes what is beyond the number a minute (at most 90 s) after its last use. `conn_max_lifetime` is
/// looked at whenever a connection comes back, and every 30 s for idle ones; a tenth of it is spread at random so
/// that connections opened together are not all renewed together.
///
/// **Check-out** costs no round trip. When a connection was lost, all others are under suspicion, since a restart
/// or a fail-over breaks all of them: each has to answer one ping (within 1 s) before it is handed out again.
#[derive(Clone)]
pub struct Pool {
    pool: r2d2::Pool<Manager>,
    shared: Arc<Shared>,
}

/// How the pool is used at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// Connections that callers hold.
    pub in_use: u32,
    /// Connections ready to be handed out.
    pub idle: u32,
    /// Callers waiting for one.
    pub waiting: u32,
    /// The most there may be.
    pub max: u32,
}

struct Shared {
    config: DatabaseConfig,
    hooks: Arc<dyn Hooks>,
    waiting: AtomicU32,
    /// Counts lost connections: one that was last known to live before the latest loss is under suspicion.
    losses: AtomicU64,
    /// Why the latest attempt to connect, or to get a sign of life, failed; none when it succeeded. Held for an assignment or a clone only.
    outage: Mutex<Option<DatabaseError>>,
}

impl Shared {
    fn set_outage(&self, reason: Option<DatabaseError>) {
        let message = reason.as_ref().map(ToString::to_string);
        let before = mem::replace(&mut *lock(&self.outage), reason);
        // Once per outage, and outside the lock.
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
    /// A pool for `config` that tells nobody what happens in it. See [`with_hooks`](Self::with_hooks).
    pub fn new(config: DatabaseConfig) -> Result<Self, DatabaseError> {
        Self::with_hooks(config, Arc::new(NoHooks))
    }

    /// A pool for `config`. Fails only for a configuration that makes no sense (no connections, no lifetime); that
    /// the database is away shows when a connection is wanted.
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
            watchdog: Watchdog::default(),
        });
        Ok(Self { pool, shared })
    }

    /// Checks out a connection. It goes back when dropped.
    ///
    /// **Blocks** until one is free, at most until `deadline`; at once or nearly so (250 ms) it fails with the reason
    /// of the last attempt to connect when the database is known to be away. A server at its connection limit is not
    /// away while it serves the pool's connections. After a loss, the ping of a suspect may add up to 1 s, even past
    /// the deadline: cutting it short would condemn a good connection.
    pub fn get(&self, deadline: Deadline) -> Result<PooledConnection, DatabaseError> {
        let started = Instant::now();
        let outcome = match self.idle() {
            Some(connection) => Ok(connection),
            None => self.wait(started, deadline),
        };
        self.shared.hooks.connection_waited(started.elapsed());
        outcome
    }

    /// How the pool is used right now.
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

    /// The configuration it was made with.
    pub fn config(&self) -> &DatabaseConfig {
        &self.shared.config
    }

    /// An idle connection that may be trusted, if there is one. Waits for nothing, save for the pings that follow a
    /// loss: connections that are known to be broken fail theirs at once, and the first one that stays silent ends
    /// the search.
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
                // A server out of connections still serves the pool's: one of them comes back.
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

    /// `connection`, ready for use; or why it was dropped.
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

/// What is wrong with a connection that was about to be handed out.
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

/// A connection on loan from the pool; use it as a [`Connection`]. Dropping it gives it back.
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

/// A connection as r2d2 keeps it.
struct Pooled {
    connection: Connection,
    /// The count of losses when it was last known to live.
    losses_seen: u64,
    /// When it is to be replaced.
    expires: Deadline,
}

struct Manager {
    shared: Arc<Shared>,
    watchdog: Watchdog,
}

impl ManageConnection for Manager {
    type Connection = Pooled;
    type Error = DatabaseError;

    fn connect(&self) -> Result<Pooled, DatabaseError> {
        let losses_seen = self.shared.losses.load(Ordering::Acquire);
        let hooks = Arc::clone(&self.shared.hooks);
        match Connection::open(&self.shared.config, &self.watchdog, hooks) {
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

/// `lifetime` less up to a tenth, at random.
fn spread(lifetime: Duration) -> Duration {
    // The last byte of a UUIDv7 is random: no need for a generator of our own.
    let share = u32::from(uuid::Uuid::now_v7().as_bytes()[15]);
    lifetime - lifetime / 10 * share / u32::from(u8::MAX)
}

/// r2d2 would log every failed attempt to connect; [`Shared::set_outage`] logs the first one of an outage.
#[derive(Debug)]
struct Quiet;

impl HandleError<DatabaseError> for Quiet {
    fn handle_error(&self, _error: DatabaseError) {}
}

/// Counts a caller as waiting for as long as it lives, so that no way out can forget to count down.
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
