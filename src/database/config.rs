//! Where the database is and what every session with it is told.

use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::time::Duration;

use postgres::Config;
use postgres::config::SslMode;

use super::error::DatabaseError;

/// How long an idle connection may be silent before the kernel asks the peer whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// The pause between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// How many of them may go unanswered.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay unacknowledged by the peer's kernel before the connection counts as broken.
pub(super) const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction left open by a process that hangs gives its locks back after this long. Longer than any
/// transaction of ours waits for anything.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// How to reach the database and how to behave there. `Debug` shows everything but the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// A host name, an address, or the folder of a Unix socket (when it begins with `/`; then a frozen server is
    /// not noticed).
    pub host: String,
    /// The TCP port; for a Unix socket, the number in the socket's name.
    pub port: u16,
    /// The role to log in as.
    pub user: String,
    /// Its password. Sent to the server only as the authentication method asks for it, and never printed.
    pub password: String,
    /// The database's name.
    pub name: String,
    /// At most this many pooled connections at once (at least 1).
    pub max_conns: u32,
    /// How many idle connections the pool keeps ready: see [`Pool`](super::Pool) for what this means exactly.
    pub max_idle_conns: u32,
    /// A connection older than this is replaced when it is next idle.
    pub conn_max_lifetime: Duration,
    /// The server cancels a statement that runs longer (SQLSTATE 57014). Zero: never.
    pub statement_timeout: Duration,
    /// The server gives up waiting for a row, table or index lock after this long (SQLSTATE 55P03). Zero: never.
    pub lock_timeout: Duration,
    /// How long a TCP connection may take to be established, per address.
    pub connect_timeout: Duration,
    /// What `pg_stat_activity` calls us.
    pub application_name: String,
}

impl DatabaseConfig {
    /// The given database with the defaults: 25 connections of which 5 are kept idle, renewed after 5 minutes,
    /// statements of at most 5 s that wait at most 3 s for a lock, and 2 s to connect.
    pub fn new(host: &str, port: u16, user: &str, password: &str, name: &str) -> Self {
        Self {
            host: host.to_owned(),
            port,
            user: user.to_owned(),
            password: password.to_owned(),
            name: name.to_owned(),
            max_conns: 25,
            max_idle_conns: 5,
            conn_max_lifetime: Duration::from_secs(300),
            statement_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(2),
            application_name: "tbd".to_owned(),
        }
    }

    /// `host:port/database`, for messages.
    pub fn location(&self) -> String {
        format!("{}:{}/{}", self.host, self.port, self.name)
    }

    /// The driver's view of this configuration, with the host's addresses looked up.
    ///
    /// Looking up here, afresh for every connection, follows a database that moved, and keeps the driver from
    /// starting a thread of its own for it. Blocks for as long as the system's resolver takes; an address needs
    /// no look-up.
    pub(super) fn resolve(&self) -> Result<Config, DatabaseError> {
        let mut config = self.driver_config();
        if self.is_unix_socket() {
            config.host(&self.host);
            return Ok(config);
        }
        for address in self.addresses()? {
            config.host(&self.host).hostaddr(address);
        }
        Ok(config)
    }

    /// Whether the host is the folder of a Unix socket.
    pub(super) fn is_unix_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    fn addresses(&self) -> Result<Vec<IpAddr>, DatabaseError> {
        if let Ok(address) = self.host.parse() {
            return Ok(vec![address]);
        }
        let unknown = |reason: String| DatabaseError::Unavailable {
            location: self.location(),
            reason: format!("the host name cannot be resolved ({reason})"),
        };
        let mut addresses: Vec<IpAddr> = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|error| unknown(error.to_string()))?
            .map(|address| address.ip())
            .collect();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(unknown("it has no address".to_owned()));
        }
        Ok(addresses)
    }

    fn driver_config(&self) -> Config {
        let mut config = Config::new();
        config
            .port(self.port)
            .user(&self.user)
            .password(&self.password)
            .dbname(&self.name)
            .application_name(&self.application_name)
            .options(&self.session_options())
            .connect_timeout(self.connect_timeout)
            .ssl_mode(SslMode::Disable)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .notice_callback(|notice| log::debug!("{}: {}", notice.severity(), notice.message()));
        config
    }

    /// Settings that travel with the start-up message: they hold from the first statement on and cost nothing.
    ///
    /// `enable_seqscan`: every statement of ours finds its rows by an index. Without this, one that is planned while a
    /// table is small reads all of it, and goes on reading all of it while the table grows, since the plan of a
    /// prepared statement is kept until autovacuum has looked at the table (a minute, or many).
    ///
    /// `jit`: `enable_seqscan=off` prices the few scans that no index serves (the version table, the outbox's count)
    /// at 10^10, far above `jit_above_cost`. A server with LLVM would then compile our smallest statements.
    pub fn session_options(&self) -> String {
        format!(
            "-c statement_timeout={} -c lock_timeout={} -c idle_in_transaction_session_timeout={} -c timezone=UTC \
             -c enable_seqscan=off -c jit=off",
            self.statement_timeout.as_millis(),
            self.lock_timeout.as_millis(),
            IDLE_IN_TRANSACTION_TIMEOUT.as_millis(),
        )
    }
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DatabaseConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("password", &"***")
            .field("name", &self.name)
            .field("max_conns", &self.max_conns)
            .field("max_idle_conns", &self.max_idle_conns)
            .field("conn_max_lifetime", &self.conn_max_lifetime)
            .field("statement_timeout", &self.statement_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("application_name", &self.application_name)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_never_printed() {
        let config = DatabaseConfig::new("localhost", 5432, "tbd", "hunter2", "tbd");
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!config.location().contains("hunter2"));
        let driver = config.driver_config();
        assert!(!format!("{driver:?}").contains("hunter2"));
    }

    #[test]
    fn a_host_name_that_does_not_exist_is_a_database_that_is_away() {
        let config = DatabaseConfig::new("no-such-host.invalid", 5432, "tbd", "secret", "tbd");
        let error = config.resolve().expect_err("an invalid name");
        assert!(matches!(error, DatabaseError::Unavailable { .. }));
        assert!(error.to_string().contains("no-such-host.invalid:5432/tbd"));
    }
}
