//! PostgreSQL settings: the variables that begin with `DB_`.

use std::time::Duration;

use super::Secret;
use super::reader::{Reader, choice, host, list, number, text, untrimmed_text};

/// The required role of a PostgreSQL server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionTarget {
    /// Any server.
    Any,
    /// A server that accepts writes.
    ReadWrite,
    /// A server that is not a standby.
    Primary,
}

/// PostgreSQL.
#[derive(Clone, Debug)]
pub struct DatabaseSettings {
    /// Host (name, address or folder of a Unix socket) and port of each server, in the order to try
    /// them; at least one.
    pub servers: Vec<(String, u16)>,
    /// The required role of a server.
    pub target: SessionTarget,
    /// User.
    pub user: String,
    /// Password.
    pub password: Secret,
    /// Database.
    pub name: String,
    /// Maximum number of connections.
    pub max_conns: u32,
    /// Maximum number of idle connections, at most `max_conns`.
    pub max_idle_conns: u32,
    /// Age at which a connection is replaced.
    pub conn_max_lifetime: Duration,
}

/// The limits of a program's connection pool.
pub(super) struct PoolLimits {
    pub max_conns: u32,
    pub max_idle_conns: u32,
    pub conn_max_lifetime: Duration,
}

pub(super) fn database_settings(reader: &mut Reader<'_>, pool: PoolLimits) -> DatabaseSettings {
    DatabaseSettings {
        servers: servers(reader),
        target: reader.get(
            "DB_TARGET_SESSION_ATTRS",
            choice(&[
                ("read-write", SessionTarget::ReadWrite),
                ("primary", SessionTarget::Primary),
                ("any", SessionTarget::Any),
            ]),
        ),
        user: reader.get("DB_USER", text(63)),
        password: Secret(reader.get("DB_PASSWORD", untrimmed_text(usize::MAX))),
        name: reader.get("DB_NAME", text(63)),
        max_conns: pool.max_conns,
        max_idle_conns: pool.max_idle_conns,
        conn_max_lifetime: pool.conn_max_lifetime,
    }
}

/// As in libpq: one port for all hosts, or one for each.
fn servers(reader: &mut Reader<'_>) -> Vec<(String, u16)> {
    let hosts = reader.get("DB_HOST", list(host));
    let mut ports = reader.get("DB_PORT", list(number(1..=u16::MAX)));
    if let [port] = ports[..] {
        ports = vec![port; hosts.len()];
    } else if ports.len() != hosts.len() {
        let allowed = format!(
            "one port, or as many as DB_HOST has hosts ({})",
            hosts.len()
        );
        reader.refuse_combination("DB_PORT", allowed);
    }
    hosts.into_iter().zip(ports).collect()
}
