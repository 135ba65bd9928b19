//! PostgreSQL settings: the variables that begin with `DB_`.

use std::time::Duration;

use tbd_postgres::{DatabaseConfig, Identity, Roots, SslMode, TargetSessionAttrs};

use super::files::{identity, readable_file};
use super::reader::{Reader, host, list, optional, port, text, untrimmed_text};

/// Encryption of the sessions with PostgreSQL.
#[derive(Clone, Debug)]
pub struct DatabaseTls {
    /// Whether, and with which check of the server.
    pub mode: SslMode,
    /// The CAs for the check.
    pub roots: Option<Roots>,
    /// The program's own certificate.
    pub identity: Option<Identity>,
}

/// PostgreSQL.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// Everything but encryption, whose files are read later.
    pub config: DatabaseConfig,
    /// Encryption.
    pub tls: DatabaseTls,
}

/// The limits of a program's connection pool.
pub(super) struct PoolLimits {
    pub max_conns: u32,
    pub max_idle_conns: u32,
    pub conn_max_lifetime: Duration,
}

pub(super) fn pool_limits(reader: &mut Reader<'_>) -> PoolLimits {
    const IDLE: &str = "DB_MAX_IDLE_CONNS";
    let max_conns = reader.number("DB_MAX_CONNS");
    // The table's upper bound is another variable.
    let max_idle_conns = reader.get(IDLE, |text| {
        let number = text.trim().parse().ok();
        number.filter(|number: &u32| (1..=1000).contains(number))
    });
    // A default adapts to an explicit value; two explicit values must agree.
    if max_idle_conns > max_conns && reader.is_given(IDLE) {
        let allowed = format!("at most DB_MAX_CONNS, which is {max_conns}");
        reader.refuse_combination(IDLE, allowed);
    }
    PoolLimits {
        max_conns,
        max_idle_conns: max_idle_conns.min(max_conns),
        conn_max_lifetime: reader.duration("DB_CONN_MAX_LIFETIME"),
    }
}

pub(super) fn database_settings(reader: &mut Reader<'_>, pool: PoolLimits) -> DatabaseSettings {
    let targets = [
        ("read-write", TargetSessionAttrs::ReadWrite),
        ("primary", TargetSessionAttrs::Primary),
        ("any", TargetSessionAttrs::Any),
    ];
    let mut servers = servers(reader, list(host), "DB_HOST", "DB_PORT").into_iter();
    // A list has at least one.
    let (host, port) = servers.next().unwrap_or_default();
    let target = reader.choice("DB_TARGET_SESSION_ATTRS", &targets);
    let tls = tls(reader);
    let user: String = reader.get("DB_USER", text(63));
    let password: String = reader.get("DB_PASSWORD", untrimmed_text(usize::MAX));
    let name: String = reader.get("DB_NAME", text(63));
    let config = DatabaseConfig {
        other_servers: servers.collect(),
        target,
        max_conns: pool.max_conns,
        max_idle_conns: pool.max_idle_conns,
        conn_max_lifetime: pool.conn_max_lifetime,
        ..DatabaseConfig::new(&host, port, &user, &password, &name)
    };
    DatabaseSettings { config, tls }
}

/// The standby for reads, in the same database with the same login and limits. `None`: the primary
/// answers all reads.
pub(super) fn read_database(
    reader: &mut Reader<'_>,
    primary: &DatabaseSettings,
) -> Option<DatabaseSettings> {
    let hosts = |text: &str| optional(list(host))(text).map(Option::unwrap_or_default);
    let mut servers = servers(reader, hosts, "DB_READ_HOST", "DB_READ_PORT").into_iter();
    let (host, port) = servers.next()?;
    let config = DatabaseConfig {
        host,
        port,
        other_servers: servers.collect(),
        target: TargetSessionAttrs::Any,
        ..primary.config.clone()
    };
    let tls = primary.tls.clone();
    Some(DatabaseSettings { config, tls })
}

/// As in libpq: one port for all hosts, or one for each.
fn servers(
    reader: &mut Reader<'_>,
    parse_hosts: impl Fn(&str) -> Option<Vec<String>>,
    host_variable: &'static str,
    port_variable: &'static str,
) -> Vec<(String, u16)> {
    let hosts = reader.get(host_variable, parse_hosts);
    let mut ports = reader.get(port_variable, list(port));
    if let [port] = ports[..] {
        ports = vec![port; hosts.len()];
    } else if ports.len() != hosts.len() {
        let allowed = format!(
            "one port, or as many as {host_variable} has hosts ({})",
            hosts.len()
        );
        reader.refuse_combination(port_variable, allowed);
    }
    hosts.into_iter().zip(ports).collect()
}

fn tls(reader: &mut Reader<'_>) -> DatabaseTls {
    const MODE: &str = "DB_SSLMODE";
    const ROOTS: &str = "DB_SSLROOTCERT";
    let modes = [
        ("disable", SslMode::Disable),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];
    let mode = reader.choice(MODE, &modes);
    let roots = reader.get(
        ROOTS,
        optional(|text| match text.trim() {
            "system" => Some(Roots::System),
            file => readable_file(file).map(Roots::File),
        }),
    );
    match (mode, &roots) {
        (SslMode::VerifyCa | SslMode::VerifyFull, None) if !reader.is_given(ROOTS) => {
            reader.refuse_combination(ROOTS, format!("given: {MODE} asks for a check"));
        }
        // Anybody can get a certificate of a public CA for some name, so libpq refuses this too.
        (mode, Some(Roots::System)) if mode != SslMode::VerifyFull => {
            let allowed = format!("verify-full, as {ROOTS} is system");
            reader.refuse_combination(MODE, allowed);
        }
        _ => {}
    }
    DatabaseTls {
        mode,
        roots,
        identity: identity(reader, "DB_SSLCERT", "DB_SSLKEY"),
    }
}
