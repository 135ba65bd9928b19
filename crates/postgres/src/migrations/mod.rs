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
use source::Migration;
use tbd_deadline::Deadline;

const VERSION: Statement = Statement::new(
    "schema_version",
    "SELECT version, dirty FROM schema_migrations LIMIT 1",
);

const MISSING: Statement = Statement::new(
    "schema_columns",
    "SELECT table_name || '.' || column_name FROM unnest($1::text[], $2::text[]) AS needed (table_name, column_name)
      WHERE NOT EXISTS (
          SELECT FROM pg_attribute
           WHERE attrelid = to_regclass(table_name) AND attname = column_name AND NOT attisdropped)
      LIMIT 1",
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

/// What a schema must have for a program to work: tables, each with the names of its columns.
pub type Tables = &'static [(&'static str, &'static [&'static str])];

/// Whether a migration is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// The last migration has ended well.
    Clean,
    /// The version is marked dirty and the migration lock is held: a migration is running.
    Migrating,
    /// The version is marked dirty and nobody holds the lock: a migration failed half way.
    Dirty,
}

/// A database's schema, compared with the known migrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaStatus {
    /// The recorded version; none before the first migration.
    pub version: Option<i64>,
    /// Whether a migration is running, or failed half way.
    pub state: SchemaState,
    /// The newest known version.
    pub latest: Option<i64>,
    /// `table.column`: the first one that is missing. Looked for only while the state is not clean.
    pub missing: Option<String>,
}

impl SchemaStatus {
    /// Why the program cannot work with this schema; nothing when it can. A schema newer than the program is fine:
    /// migrations expand before they contract. While the version is marked dirty it says nothing of what is there, so
    /// what is there decides.
    pub fn problem(&self) -> Option<String> {
        let at = self.version.map_or("no version".to_owned(), |version| {
            format!("version {version}")
        });
        let missing = |what: &str| {
            let missing = self.missing.as_ref()?;
            Some(format!(
                "schema is dirty at {at}: {missing} is missing, and a migration {what}"
            ))
        };
        match (self.state, self.latest) {
            (SchemaState::Migrating, _) => missing("is running"),
            (SchemaState::Dirty, _) => missing("failed half way"),
            (SchemaState::Clean, Some(latest)) if self.version < Some(latest) => Some(format!(
                "schema is behind: it has {at}, this program needs version {latest}"
            )),
            (SchemaState::Clean, _) => None,
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

    /// The schema's status. One round trip once prepared; some more while its version is marked dirty.
    ///
    /// # Errors
    /// The conversation failed.
    pub fn status(
        &self,
        connection: &mut Connection,
        tables: Tables,
    ) -> Result<SchemaStatus, DatabaseError> {
        let (mut version, mut dirty) = version(connection)?;
        let mut state = SchemaState::Clean;
        let mut missing = None;
        if dirty && lock::is_held(connection)? {
            state = SchemaState::Migrating;
        } else if dirty {
            // The migration may have ended between the two questions.
            (version, dirty) = self::version(connection)?;
            if dirty {
                state = SchemaState::Dirty;
            }
        }
        if dirty {
            missing = first_missing(connection, tables)?;
        }
        Ok(SchemaStatus {
            version,
            state,
            latest: self.latest(),
            missing,
        })
    }

    /// What to do about a database that is marked dirty at `version`.
    pub fn way_out(&self, version: Option<i64>) -> String {
        MigrationError::dirty(version, &self.migrations).to_string()
    }
}

/// The recorded version, and whether it is marked dirty.
fn version(connection: &mut Connection) -> Result<(Option<i64>, bool), DatabaseError> {
    match connection.query_opt(VERSION, &[]) {
        Ok(Some(row)) => Ok((recorded(row.try_get(0)?), row.try_get(1)?)),
        Ok(None) => Ok((None, false)),
        // No such table: nobody has migrated yet.
        Err(error) if error.sqlstate() == Some("42P01") => Ok((None, false)),
        Err(error) => Err(error),
    }
}

/// Asks the catalogs, which a migration does not lock, rather than the tables, which it may.
fn first_missing(
    connection: &mut Connection,
    tables: Tables,
) -> Result<Option<String>, DatabaseError> {
    let columns = || {
        let of = |&(table, columns): &(&'static str, &'static [&'static str])| {
            columns.iter().map(move |column| (table, *column))
        };
        tables.iter().flat_map(of)
    };
    let (tables, columns): (Vec<&str>, Vec<&str>) = columns().unzip();
    let row = connection.query_opt(MISSING, &[&tables, &columns])?;
    Ok(row.map(|row| row.try_get(0)).transpose()?)
}

/// golang-migrate's "no version" is -1; as a row it exists only while dirty.
fn recorded(version: i64) -> Option<i64> {
    (version >= 0).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(version: Option<i64>, state: SchemaState, missing: Option<&str>) -> SchemaStatus {
        SchemaStatus {
            version,
            state,
            latest: Some(3),
            missing: missing.map(str::to_owned),
        }
    }

    fn clean(version: Option<i64>) -> Option<String> {
        status(version, SchemaState::Clean, None).problem()
    }

    #[test]
    fn a_schema_is_usable_when_it_is_as_new_as_the_program_or_newer() {
        assert_eq!(clean(Some(3)), None);
        assert_eq!(clean(Some(4)), None);
    }

    #[test]
    fn a_schema_that_is_behind_says_how_far() {
        let problem = clean(Some(1)).expect("behind");
        assert!(
            problem.contains("version 1") && problem.contains("version 3"),
            "{problem}"
        );
        assert!(clean(None).expect("behind").contains("no version"));
    }

    #[test]
    fn a_dirty_schema_is_usable_as_long_as_nothing_is_missing() {
        for state in [SchemaState::Migrating, SchemaState::Dirty] {
            assert_eq!(status(Some(2), state, None).problem(), None);
            let problem = status(Some(3), state, Some("orders.id")).problem();
            let problem = problem.expect("something is missing");
            assert!(
                problem.contains("dirty at version 3") && problem.contains("orders.id"),
                "{problem}"
            );
        }
    }
}
