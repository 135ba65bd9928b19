//! Brings the schema up to date, interchangeably with golang-migrate's CLI.
//!
//! The same file names, the same `schema_migrations(version, dirty)` table written in the same order, the same
//! advisory lock: `migrate up` and this runner may be used in turn, or at the same time, on one database. Rules
//! followed are those of golang-migrate v4 (`migrate.go`, `database/postgres/postgres.go`, `source/parse.go`).

mod error;
mod lock;
mod run;
mod source;

pub use error::MigrationError;
pub use source::Source;

use super::config::DatabaseConfig;
use super::connection::{Connection, Statement};
use super::error::DatabaseError;
use crate::deadline::Deadline;
use source::Migration;

const VERSION: Statement = Statement::new(
    "schema_version",
    "SELECT version, dirty FROM schema_migrations LIMIT 1",
);

/// The known migrations, in the order of their versions, and the way to apply them.
#[derive(Clone, Debug)]
pub struct Migrator {
    migrations: Vec<Migration>,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The version found, if any migration had been applied before.
    pub from: Option<i64>,
    /// The version left behind.
    pub to: Option<i64>,
    /// How many migrations were applied.
    pub applied: usize,
}

/// Where a database's schema stands, compared with the known migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchemaStatus {
    /// The recorded version; none before the first migration.
    pub version: Option<i64>,
    /// Whether a migration failed half way.
    pub dirty: bool,
    /// The newest known version.
    pub latest: Option<i64>,
}

impl SchemaStatus {
    /// Why the program cannot work with this schema; nothing when it can. A schema newer than the program is fine:
    /// migrations expand before they contract.
    pub fn problem(&self) -> Option<String> {
        let at = self.version.map_or("no version".to_owned(), |version| {
            format!("version {version}")
        });
        if self.dirty {
            return Some(format!(
                "schema is dirty at {at}: a migration failed half way"
            ));
        }
        match self.latest {
            Some(latest) if self.version < Some(latest) => Some(format!(
                "schema is behind: it has {at}, this program needs version {latest}"
            )),
            _ => None,
        }
    }
}

impl Migrator {
    /// The migrations of `source`. Reads a folder now and never again.
    ///
    /// # Errors
    /// The folder cannot be read, or two files claim the same version and direction.
    pub fn new(source: Source) -> Result<Self, MigrationError> {
        Ok(Self {
            migrations: source.read()?,
        })
    }

    /// The newest known version.
    pub fn latest(&self) -> Option<i64> {
        self.migrations.last().map(|migration| migration.version)
    }

    /// Applies every migration newer than the recorded version, each under the lock that golang-migrate takes, so
    /// that of many who try at once one migrates and the others find nothing to do.
    ///
    /// **Blocks** on its own connection. Waits for the lock until `deadline`; a migration that has begun is not cut
    /// short (it would leave the database dirty), so it has no time limit, as with the CLI.
    ///
    /// # Errors
    /// See [`MigrationError`]; a failed migration leaves the database marked dirty, as the CLI would.
    pub fn run(
        &self,
        config: &DatabaseConfig,
        deadline: Deadline,
    ) -> Result<Outcome, MigrationError> {
        run::up(&self.migrations, config, deadline)
    }

    /// Where the schema stands. One round trip once prepared.
    pub fn status(&self, connection: &mut Connection) -> Result<SchemaStatus, DatabaseError> {
        let (version, dirty) = match connection.query_opt(VERSION, &[]) {
            Ok(Some(row)) => (recorded(row.try_get(0)?), row.try_get(1)?),
            Ok(None) => (None, false),
            // No such table: nobody has migrated yet.
            Err(error) if error.sqlstate() == Some("42P01") => (None, false),
            Err(error) => return Err(error),
        };
        Ok(SchemaStatus {
            version,
            dirty,
            latest: self.latest(),
        })
    }
}

/// golang-migrate's "no version" is -1; as a row it exists only while dirty.
fn recorded(version: i64) -> Option<i64> {
    (version >= 0).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: Option<i64>, dirty: bool) -> SchemaStatus {
        SchemaStatus {
            version,
            dirty,
            latest: Some(3),
        }
    }

    #[test]
    fn a_schema_is_usable_when_it_is_as_new_as_the_program_or_newer() {
        assert_eq!(status(Some(3), false).problem(), None);
        assert_eq!(status(Some(4), false).problem(), None);
    }

    #[test]
    fn a_schema_that_is_behind_says_how_far() {
        let problem = status(Some(1), false).problem().expect("behind");
        assert!(
            problem.contains("version 1") && problem.contains("version 3"),
            "{problem}"
        );
        assert!(
            status(None, false)
                .problem()
                .expect("behind")
                .contains("no version")
        );
    }

    #[test]
    fn a_dirty_schema_is_not_usable() {
        assert!(
            status(Some(3), true)
                .problem()
                .expect("dirty")
                .contains("dirty")
        );
    }
}
