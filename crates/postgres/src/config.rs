//! Database configuration: servers, limits, and the settings of each session.

use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::time::Duration;

use postgres::Config;
use postgres::config::{SslMode, SslNegotiation};

use super::tls::Tls;

/// How long an idle connection may be silent before the kernel probes the peer.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// The pause between probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// Unanswered probes before the connection counts as broken.
const KEEPALIVE_RETRIES: u32 = 3;
/// How long sent bytes may stay unacknowledged by the peer's kernel before the connection counts as
/// broken.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// A transaction left open by a hung process releases its locks after this time, which exceeds any
/// wait of this system's transactions.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);

/// The requirement for a server; the names are libpq's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSessionAttrs {
    /// Any server.
    Any,
    /// A server whose transactions may write: neither a standby nor read-only by default.
    ReadWrite,
    /// A server that is not in recovery.
    Primary,
}

/// One address of a server.
pub(super) struct Candidate<'a> {
    pub host: &'a str,
    pub port: u16,
    /// None for a Unix socket.
    pub address: Option<IpAddr>,
}

/// How to reach the database, and the limits to apply. `Debug` shows everything but the password.
#[derive(Clone)]
pub struct DatabaseConfig {
    /// A host name, an address, or the folder of a Unix socket (if it begins with `/`). On a Unix
    /// socket a frozen server is not detected.
    pub host: String,
    /// The TCP port; for a Unix socket, the number in the socket's name.
    pub port: u16,
    /// Further servers (host, port), tried in this order when the earlier ones cannot be used.
    pub other_servers: Vec<(String, u16)>,
    /// The requirement for a server.
    pub target: TargetSessionAttrs,
    /// The encryption.
    pub tls: Tls,
    /// The role to log in as.
    pub user: String,
    /// Its password. Sent only as the authentication method requires, and never printed.
    pub password: String,
    /// The database's name.
    pub name: String,
    /// The maximum number of pooled connections (at least 1).
    pub max_conns: u32,
    /// Idle connections that the pool keeps ready. [`Pool`](super::Pool) gives the exact meaning.
    pub max_idle_conns: u32,
    /// A connection older than this is replaced when it is next idle.
    pub conn_max_lifetime: Duration,
    /// The server cancels a statement that runs longer (SQLSTATE 57014). Zero: no limit.
    pub statement_timeout: Duration,
    /// How long a statement waits for a row, table or index lock (SQLSTATE 55P03). Zero: no limit.
    pub lock_timeout: Duration,
    /// How long establishing a TCP connection may take, for each address. Several addresses share
    /// this and the time for authentication.
    pub connect_timeout: Duration,
    /// The name of this program in `pg_stat_activity`.
    pub application_name: String,
}

impl DatabaseConfig {
    /// The given database with the defaults: 25 connections, of which 5 are kept idle, renewed
    /// after 5 minutes. Statements take at most 5 s and wait at most 3 s for a lock; connecting
    /// takes at most 2 s. Sessions are not encrypted.
    pub fn new(host: &str, port: u16, user: &str, password: &str, name: &str) -> Self {
        Self {
            host: host.to_owned(),
            port,
            other_servers: Vec::new(),
            target: TargetSessionAttrs::ReadWrite,
            tls: Tls::default(),
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

    /// Every address of every server, in the order to try them, and why some servers have none.
    ///
    /// The look-up happens for every connection, so it follows a database that moved. It also keeps
    /// the driver from starting a thread for it. Blocks as long as the system's resolver; an
    /// address needs no look-up.
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

    /// The driver's configuration for one server. `mark` identifies the session: it is the value of
    /// a custom setting, which only the start-up message carries.
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
            // The driver then hands over the socket before the first byte (see `tls`). For a Unix
            // socket it would refuse that.
            .ssl_mode(match candidate.address {
                Some(_) => SslMode::Require,
                None => SslMode::Disable,
            })
            .ssl_negotiation(SslNegotiation::Direct)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .notice_callback(|notice| log::debug!("{}: {}", notice.severity(), notice.message()));
        config
    }

    /// Settings sent with the start-up message: they hold from the first statement on and cost
    /// nothing.
    ///
    /// `enable_seqscan`: all of the program's statements find their rows by an index. Without this
    /// setting, a statement planned while its table is small scans the whole table. It would still
    /// do so while the table grows, since a prepared statement keeps its plan until autovacuum has
    /// analyzed the table (a minute, or many).
    ///
    /// `jit`: `enable_seqscan=off` prices the few scans that no index serves (the version table,
    /// the outbox's count) at 10^10, far above `jit_above_cost`. A server with LLVM would then
    /// compile even the smallest statements.
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
            .field("tls", &self.tls)
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
