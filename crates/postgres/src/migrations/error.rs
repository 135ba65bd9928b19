//! Migration errors, each with instructions for the operator.

use std::io;
use std::path::PathBuf;

use super::source::Migration;
use crate::error::DatabaseError;

/// A failed run. Every message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// The folder of migrations cannot be read.
    #[error("cannot read the migrations in {}: {source}", dir.display())]
    Source {
        /// The folder.
        dir: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Two files for the same version and direction.
    #[error("two migrations have the same version and direction: {} and {}", files[0], files[1])]
    Duplicate {
        /// Their names.
        files: [String; 2],
    },
    /// Another process was migrating until the deadline.
    #[error(
        "another process has held the migration lock for too long: wait for it to end, \
         or find it with: SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted"
    )]
    Locked,
    /// The stop signal came before the next migration. The recorded version is clean.
    #[error("stopped before the migrations had ended: the next start goes on with them")]
    Stopped,
    /// An earlier migration, by this runner or the CLI, failed half way.
    #[error("{0}")]
    Dirty(String),
    /// A migration failed now. The database is marked dirty.
    #[error(
        "the migration to version {version} failed ({file}{at}): {message}. \
         The database is now marked dirty at version {version}. {}",
        undone(*previous)
    )]
    Failed {
        /// The version that the migration leads to.
        version: i64,
        /// The file.
        file: String,
        /// The position in the file, if the server reported one.
        at: String,
        /// The server's message.
        message: String,
        /// The version before the migration.
        previous: Option<i64>,
    },
    /// The recorded version is unknown, although newer ones are known.
    #[error(
        "no migration found for version {version}, which the database has: use the set of migrations that was \
         applied to it (MIGRATIONS_DIR), or record the version it really has with: {}",
        force(Some(*version))
    )]
    UnknownVersion {
        /// The recorded version.
        version: i64,
    },
    /// The search path has no schema for unqualified names.
    #[error(
        "the database has no schema in its search_path: create one, or set the role's search_path"
    )]
    NoSchema,
    /// The database operation itself failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl MigrationError {
    /// Whether a retry in a moment may help: another process is migrating, or the database is
    /// unavailable.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Locked => true,
            Self::Database(error) => error.is_transient(),
            _ => false,
        }
    }

    /// A dirty row does not tell the direction of its migration. On the way up it names the target
    /// version, on the way down the version *below* the one being undone. So the message names
    /// both.
    pub(super) fn dirty(version: Option<i64>, migrations: &[Migration]) -> Self {
        let file =
            |file: Option<&String>| file.map(|name| format!(" ({name})")).unwrap_or_default();
        let reached = migrations
            .iter()
            .find(|migration| Some(migration.version) == version);
        let above = migrations
            .iter()
            .find(|migration| Some(migration.version) > version);
        let below = migrations
            .iter()
            .rev()
            .find(|migration| Some(migration.version) < version);

        let mut candidates = Vec::new();
        let mut ways_out = Vec::new();
        if let Some(version) = version {
            candidates.push(format!(
                "the way up to {version}{}",
                file(reached.and_then(|it| it.up_file.as_ref()))
            ));
            ways_out.push(format!(
                "if that was the way up: {}",
                undone(below.map(|it| it.version))
            ));
        }
        if let Some(above) = above {
            candidates.push(format!(
                "the way down from {}{}",
                above.version,
                file(above.down_file.as_ref())
            ));
            ways_out.push(format!(
                "if that was the way down: {}",
                undone(Some(above.version))
            ));
        }
        Self::Dirty(format!(
            "the database is marked dirty at {}: {} failed half way. {}",
            version.map_or("\"no version\"".to_owned(), |version| format!(
                "version {version}"
            )),
            candidates.join(", or "),
            capitalised(&ways_out.join(" ")),
        ))
    }
}

impl From<postgres::Error> for MigrationError {
    fn from(error: postgres::Error) -> Self {
        Self::Database(error.into())
    }
}

/// Instructions for repeating the failed step from `version`.
fn undone(version: Option<i64>) -> String {
    format!(
        "Undo by hand what it left behind (nothing, unless its file has its own COMMIT), record that with: {} \
         and start again.",
        force(version)
    )
}

/// How to record `version`: golang-migrate's `force`, by its CLI or in SQL.
fn force(version: Option<i64>) -> String {
    let sql = match version {
        Some(version) => format!("UPDATE schema_migrations SET version = {version}, dirty = false"),
        None => "TRUNCATE schema_migrations".to_owned(),
    };
    format!(
        "`migrate -path migrations -database \"postgres://...\" force {}` or `{sql}`",
        version.unwrap_or(-1)
    )
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migrations() -> Vec<Migration> {
        let files = &[
            ("000001_create_orders.up.sql", ""),
            ("000001_create_orders.down.sql", ""),
            ("000002_create_idempotency_keys.up.sql", ""),
            ("000002_create_idempotency_keys.down.sql", ""),
            ("000003_create_outbox.up.sql", ""),
            ("000003_create_outbox.down.sql", ""),
        ];
        super::super::Source::Embedded(files)
            .read()
            .expect("valid names")
    }

    #[test]
    fn a_dirty_version_names_both_steps_that_may_have_failed() {
        let message = MigrationError::dirty(Some(2), &migrations()).to_string();
        assert!(
            message.contains("000002_create_idempotency_keys.up.sql"),
            "{message}"
        );
        assert!(
            message.contains("000003_create_outbox.down.sql"),
            "{message}"
        );
        assert!(
            message.contains("force 1") && message.contains("force 3"),
            "{message}"
        );
    }

    #[test]
    fn a_dirty_database_without_version_can_only_have_failed_on_the_way_down() {
        let message = MigrationError::dirty(None, &migrations()).to_string();
        assert!(
            message.contains("000001_create_orders.down.sql"),
            "{message}"
        );
        assert!(
            message.contains("force 1") && !message.contains("way up"),
            "{message}"
        );
    }

    #[test]
    fn the_first_migration_dirty_is_undone_to_no_version() {
        let message = MigrationError::dirty(Some(1), &migrations()).to_string();
        assert!(
            message.contains("force -1") && message.contains("TRUNCATE schema_migrations"),
            "{message}"
        );
    }
}
