//! Database errors, classified by what the caller can do about them.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use postgres::error::{DbError, SqlState};

use super::config::DatabaseConfig;
use super::tls::tls_reason;

/// A failed database operation. Messages hold neither passwords nor parameters, so they may be
/// logged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DatabaseError {
    /// No connection was available: nothing was sent, so a retry is always safe.
    #[error("the database {location} is unavailable: {reason}")]
    Unavailable {
        /// `host:port/database`.
        location: String,
        /// Why, in a few words.
        reason: String,
    },
    /// The server answers but rejects the session: wrong password, unknown database. An operator
    /// must act.
    #[error("the database {location} refuses us: {reason}")]
    Rejected {
        /// `host:port/database`.
        location: String,
        /// Why, and which setting to check.
        reason: String,
    },
    /// The connection broke while a statement was in flight: its outcome is unknown.
    #[error("the connection to the database was lost: {0}")]
    ConnectionLost(String),
    /// Every pooled connection stayed busy until the caller's deadline. Nothing was sent.
    #[error("no database connection became free within {waited:?} ({max} are in use)")]
    PoolTimeout {
        /// How long the caller waited.
        waited: Duration,
        /// How many connections the pool may hold.
        max: u32,
    },
    /// The statement ran longer than the session's limit and was rolled back (57014).
    #[error("the statement took too long and was canceled")]
    StatementTimeout,
    /// Another transaction held a lock for too long; the statement was rolled back (55P03).
    #[error("another transaction kept its lock for too long")]
    LockTimeout,
    /// A deadlock (40P01) or serialization failure (40001): rolled back, and worth a retry.
    #[error("the transaction collided with another one (SQLSTATE {sqlstate})")]
    Conflict {
        /// The five-character code.
        sqlstate: String,
    },
    /// The server writes nothing (25006): a standby, or a demoted primary. Nothing took effect. The
    /// session is closed, because the next one may reach a server that writes.
    #[error("the database server is read-only")]
    ReadOnly,
    /// The server lacks a resource: disk, memory, connections (class 53), or its system failed
    /// (class 58). Nothing took effect; the session survives.
    #[error("the database server is out of resources: {message} (SQLSTATE {sqlstate})")]
    OutOfResources {
        /// The five-character code.
        sqlstate: String,
        /// The server's primary message.
        message: String,
    },
    /// The schema changed under a prepared statement inside a transaction, which was rolled back.
    /// The next attempt prepares the statement again.
    #[error("the schema changed under a prepared statement")]
    StaleStatement,
    /// Any other answer of the server: usually a bug in the program.
    #[error("the database reports an error: {message} (SQLSTATE {sqlstate})")]
    Other {
        /// The five-character code.
        sqlstate: String,
        /// The violated constraint, if there is one.
        constraint: Option<String>,
        /// The server's primary message, omitted where it might quote a value.
        message: String,
    },
    /// The driver could not convert a parameter or a column: a bug in the program.
    #[error("the database driver reports: {0}")]
    Driver(String),
}

impl DatabaseError {
    /// The reason given when a time limit of this crate ended the wait.
    pub(super) const NO_ANSWER: &str = "no answer in time";

    /// Whether a retry in a moment may succeed: connection loss, a demoted server, deadlock,
    /// serialization failure. [`retry`](super::retry()) says when a retry is *safe*.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::ConnectionLost(_)
                | Self::ReadOnly
                | Self::Conflict { .. }
                | Self::StaleStatement
        )
    }

    /// Whether the whole server is unusable, so that another statement would fail too.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Rejected { .. }
                | Self::ConnectionLost(_)
                | Self::ReadOnly
                | Self::OutOfResources { .. }
        )
    }

    /// Whether the server misses the table (42P01): the migrations have not run yet.
    pub(super) fn is_undefined_table(&self) -> bool {
        self.sqlstate() == Some("42P01")
    }

    /// Whether the same call may succeed later, with the same program: everything but a statement
    /// or a conversion that is wrong. A missing table may still come with the migrations.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Driver(_) => false,
            Self::Other { .. } => self.is_undefined_table(),
            _ => true,
        }
    }

    /// Whether this error ended the session or made it unusable.
    pub(super) fn ends_session(&self) -> bool {
        matches!(self, Self::ConnectionLost(_) | Self::ReadOnly)
    }

    /// The name of the violated constraint, if any.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            Self::Other { constraint, .. } => constraint.as_deref(),
            _ => None,
        }
    }

    /// The server's five-character code, if the error came from the server and has one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::StatementTimeout => Some("57014"),
            Self::LockTimeout => Some("55P03"),
            Self::ReadOnly => Some("25006"),
            Self::Conflict { sqlstate }
            | Self::OutOfResources { sqlstate, .. }
            | Self::Other { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    /// A stable, low-cardinality name of the error's kind, for metrics and span attributes.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "unavailable",
            Self::Rejected { .. } => "rejected",
            Self::ConnectionLost(_) => "connection_lost",
            Self::PoolTimeout { .. } => "pool_timeout",
            Self::StatementTimeout => "statement_timeout",
            Self::LockTimeout => "lock_timeout",
            Self::Conflict { .. } => "conflict",
            Self::ReadOnly => "read_only",
            Self::OutOfResources { .. } => "out_of_resources",
            Self::StaleStatement => "stale_statement",
            Self::Other { .. } => "database_error",
            Self::Driver(_) => "driver_error",
        }
    }

    /// A pooler answers that gives each transaction another session. A prepared statement could
    /// then meet another program's statement of the same name, and run with the wrong parameters.
    pub(super) fn pooler(location: String) -> Self {
        let reason = "a connection pooler such as PgBouncer answers, and it keeps no session: set DB_HOST and DB_PORT to \
                      PostgreSQL itself, since tbd has its own pool"
            .to_owned();
        Self::Rejected { location, reason }
    }

    /// The error of a failed attempt to connect.
    pub(super) fn connecting(config: &DatabaseConfig, error: &postgres::Error) -> Self {
        let location = config.location();
        let Some(answer) = error.as_db_error() else {
            return match io_error(error) {
                Some(io_error) => Self::Unavailable {
                    location,
                    reason: io_reason(io_error),
                },
                None if error.is_closed() => Self::Unavailable {
                    location,
                    reason: "the server closed the connection".to_owned(),
                },
                // The driver's own authentication failures ("authentication error") have a cause
                // with details.
                None => {
                    let cause = error
                        .source()
                        .map(|cause| format!(": {cause}"))
                        .unwrap_or_default();
                    Self::Rejected {
                        location,
                        reason: format!("{error}{cause}"),
                    }
                }
            };
        };
        let code = answer.code();
        if *code == SqlState::INVALID_PASSWORD {
            // A certificate for another name has the same answer.
            let (certificate, setting) = match config.tls.has_identity() {
                true => (" or certificate", ", DB_PASSWORD and DB_SSLCERT"),
                false => ("", " and DB_PASSWORD"),
            };
            let user = &config.user;
            let reason =
                format!("wrong password{certificate} for user \"{user}\" (check DB_USER{setting})");
            return Self::Rejected { location, reason };
        }
        if *code == SqlState::INVALID_CATALOG_NAME {
            let reason = format!(
                "database \"{}\" does not exist (create it, or check DB_NAME)",
                config.name
            );
            return Self::Rejected { location, reason };
        }
        let reason = answer.message().to_owned();
        // PgBouncer's answer; PostgreSQL knows every start-up parameter that this crate sends.
        if *code == SqlState::PROTOCOL_VIOLATION && reason.contains("startup parameter") {
            return Self::pooler(location);
        }
        if code.code().starts_with("53") {
            return Self::OutOfResources {
                sqlstate: code.code().to_owned(),
                message: reason,
            };
        }
        // Class 28 is authentication, 42501 permission; the rest (starting up, shutting down)
        // passes.
        if code.code().starts_with("28") || *code == SqlState::INSUFFICIENT_PRIVILEGE {
            Self::Rejected { location, reason }
        } else {
            Self::Unavailable { location, reason }
        }
    }
}

impl From<postgres::Error> for DatabaseError {
    /// The error of a failed statement.
    fn from(error: postgres::Error) -> Self {
        if let Some(answer) = error.as_db_error() {
            return from_answer(answer);
        }
        if error.is_closed() {
            return Self::ConnectionLost("it was closed".to_owned());
        }
        match io_error(&error) {
            Some(io_error) => Self::ConnectionLost(io_reason(io_error)),
            None => Self::Driver(error.to_string()),
        }
    }
}

fn from_answer(answer: &DbError) -> DatabaseError {
    let code = answer.code();
    let sqlstate = code.code().to_owned();
    if is_stale_statement(answer) {
        return DatabaseError::StaleStatement;
    }
    match sqlstate.as_str() {
        "57014" => DatabaseError::StatementTimeout,
        "55P03" => DatabaseError::LockTimeout,
        "40001" | "40P01" => DatabaseError::Conflict { sqlstate },
        "25006" => DatabaseError::ReadOnly,
        // Shut down, crashed, recovering, dropped, idle for too long: the session has ended.
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" | "25P03" | "25P04" => {
            DatabaseError::ConnectionLost(answer.message().to_owned())
        }
        _ if sqlstate.starts_with("08") => {
            DatabaseError::ConnectionLost(answer.message().to_owned())
        }
        _ if sqlstate.starts_with("53") || sqlstate.starts_with("58") => {
            DatabaseError::OutOfResources {
                message: answer.message().to_owned(),
                sqlstate,
            }
        }
        _ => DatabaseError::Other {
            constraint: answer.constraint().map(str::to_owned),
            // Messages of class 22 (data exception) quote the offending value. `detail` may always
            // do so, and is never used.
            message: if sqlstate.starts_with("22") {
                "a value does not fit".to_owned()
            } else {
                answer.message().to_owned()
            },
            sqlstate,
        },
    }
}

/// Whether a statement must be prepared again. Either its result changed shape with the schema
/// (0A000), or the server no longer knows it (26000). The server's function tells 0A000 from other
/// unsupported features, because messages are translated. Both are raised before the statement
/// begins to run.
pub(super) fn is_stale_statement(answer: &DbError) -> bool {
    match answer.code().code() {
        "26000" => true,
        "0A000" => answer.routine() == Some("RevalidateCachedQuery"),
        _ => false,
    }
}

pub(super) fn io_error(error: &postgres::Error) -> Option<&io::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

fn io_reason(error: &io::Error) -> String {
    // A server may refuse our certificate after the handshake; by then its own name was checked.
    if let Some(reason) = tls_reason(error, "") {
        return reason;
    }
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::TimedOut => DatabaseError::NO_ANSWER.to_owned(),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        _ => error.to_string(),
    }
}
