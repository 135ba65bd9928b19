//! Where the database is and what every session with it is told.

use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::time::Duration;

use postgres::Config;
use postgres::config::SslMode;

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

/// What a server must be to be used; the names are libpq's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Any server.
    Any,
    /// One whose transactions may write: neither a standby nor read-only by default.
    ReadWrite,
    /// One that is not in recovery.
    Primary,
}

/// One address of a server.
pub(super) struct Candidate<'a> {
    pub host: &'a str,
    pub port: u16,
    /// None for a Unix socket.
    pub address: Option<IpAddr>,
}

/// How to reach the database and how to behave there. `Debug` shows everything but the password.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// A host name, an address, or the folder of a Unix socket (when it begins with `/`; then a frozen server is
    /// not noticed).
    pub host: String,
    /// The TCP port; for a Unix socket, the number in the socket's name.
    pub port: u16,
    /// Further servers (host, port), to be tried in this order when the ones before cannot be used.
    pub other_servers: Vec<(String, u16)>,
    /// What a server must be to be used.
    pub target: TargetSessionAttrs,
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
    /// How long a TCP connection may take to be established, per address. Several addresses share this and the time
    /// that a server has to authenticate us.
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
            other_servers: Vec::new(),
            target: TargetSessionAttrs::ReadWrite,
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

    /// `host:port/database`, for messages; several servers are separated by commas.
    pub fn location(&self) -> String {
        let servers: Vec<String> = self
            .servers()
            .map(|(host, port)| format!("{host}:{port}"))
            .collect();
        format!("{}/{}", servers.join(","), self.name)
    }

    fn servers(&self) -> impl Iterator<Item = (&str, u16)> {
        let others = self.other_servers.iter();
        std::iter::once((&*self.host, self.port)).chain(others.map(|(host, port)| (&**host, *port)))
    }

    /// Every address of every server, in the order in which they are to be tried; and why some have none.
    ///
    /// Looking up here, for every connection, follows a database that moved, and keeps the driver from
    /// starting a thread of its own for it. Blocks for as long as the system's resolver takes; an address needs
    /// no look-up.
    pub(super) fn candidates(&self) -> (Vec<Candidate<'_>>, Vec<String>) {
        let mut candidates = Vec::new();
        let mut unknown = Vec::new();
        for (host, port) in self.servers() {
            match addresses(host, port) {
                Ok(addresses) => {
                    let candidate = |address| Candidate {
                        host,
                        port,
                        address,
                    };
                    candidates.extend(addresses.into_iter().map(candidate));
                }
                Err(reason) => unknown.push(reason),
            }
        }
        (candidates, unknown)
    }

    /// The driver's view of this configuration, for one server. `mark` identifies the session: it is the value of a
    /// setting of ours, which only the start-up message carries.
    pub(super) fn driver_config(&self, candidate: &Candidate<'_>, mark: &str) -> Config {
        let mut config = Config::new();
        config.host(candidate.host);
        if let Some(address) = candidate.address {
            config.hostaddr(address);
        }
        config
            .port(candidate.port)
            .user(&self.user)
            .password(&self.password)
            .dbname(&self.name)
            .application_name(&self.application_name)
            .options(&format!("{} -c tbd.session={mark}", self.session_options()))
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

fn addresses(host: &str, port: u16) -> Result<Vec<Option<IpAddr>>, String> {
    if host.starts_with('/') {
        return Ok(vec![None]);
    }
    if let Ok(address) = host.parse() {
        return Ok(vec![Some(address)]);
    }
    let mut addresses: Vec<Option<IpAddr>> = (host, port)
        .to_socket_addrs()
        .map_err(|error| format!("the host name {host} cannot be resolved ({error})"))?
        .map(|address| Some(address.ip()))
        .collect();
    addresses.dedup();
    match addresses.is_empty() {
        true => Err(format!("the host name {host} has no address")),
        false => Ok(addresses),
    }
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DatabaseConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("other_servers", &self.other_servers)
            .field("target", &self.target)
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
        let (candidates, _) = config.candidates();
        let driver = config.driver_config(&candidates[0], "mark");
        assert!(!format!("{driver:?}").contains("hunter2"));
    }

    #[test]
    fn servers_are_tried_in_their_order_and_an_unknown_one_is_passed_over() {
        let config = DatabaseConfig {
            other_servers: vec![
                ("no-such-host.invalid".to_owned(), 2),
                ("127.0.0.2".to_owned(), 3),
                ("/run/postgresql".to_owned(), 4),
            ],
            ..DatabaseConfig::new("127.0.0.1", 1, "tbd", "secret", "tbd")
        };
        let (candidates, unknown) = config.candidates();
        let ports: Vec<u16> = candidates.iter().map(|it| it.port).collect();
        assert_eq!(ports, [1, 3, 4]);
        assert_eq!(candidates[2].address, None);
        assert_eq!(unknown.len(), 1);
        assert!(unknown[0].contains("no-such-host.invalid"), "{unknown:?}");
        assert!(
            config
                .location()
                .starts_with("127.0.0.1:1,no-such-host.invalid:2,")
        );
    }
}
