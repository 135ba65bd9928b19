//! Schema migrations, interchangeable with golang-migrate's CLI.
//!
//! File names, the `schema_migrations(version, dirty)` table, its order of writes and the advisory
//! lock are the same. So `migrate up` and this runner may alternate, or run at the same time, on
//! one database. The rules are those of golang-migrate v4 (`migrate.go`,
//! `database/postgres/postgres.go`, `source/parse.go`).

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
use tbd_deadline::{Deadline, StopSignal};

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

/// The known migrations, ordered by version, and the way to apply them.
#[derive(Clone, Debug)]
pub struct Migrator {
    migrations: Vec<Migration>,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The version at the start, if any migration had been applied.
    pub from: Option<i64>,
    /// The version at the end.
    pub to: Option<i64>,
    /// The number of migrations applied.
    pub applied: usize,
}

/// The schema that a program needs: tables, each with the names of its columns.
pub type Tables = &'static [(&'static str, &'static [&'static str])];

/// Whether a migration is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// The last migration succeeded.
    Clean,
    /// The version is marked dirty and the migration lock is held: a migration is running.
    Migrating,
    /// The version is marked dirty and the lock is free: a migration failed half way.
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
    /// `table.column`: the first missing one. Checked only while the state is not clean.
    pub missing: Option<String>,
}

impl SchemaStatus {
    /// Why the program cannot work with this schema; nothing if it can. A schema newer than the
    /// program is fine: migrations expand before they contract. While the version is marked dirty
    /// it says nothing about the schema, so the tables decide.
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
    /// The migrations of `source`. Reads a folder once, now.
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

    /// Applies every migration newer than the recorded version, each under golang-migrate's lock.
    /// If several processes try at once, one migrates and the others find nothing to do.
    ///
    /// **Blocks** on its own connection. Waits for the lock until `deadline`. A migration has no
    /// time limit, as with the CLI: cutting it short would leave the database dirty.
    ///
    /// # Errors
    /// See [`MigrationError`]; a failed migration leaves the database marked dirty, as the CLI
    /// would.
    pub fn run(
        &self,
        config: &DatabaseConfig,
        deadline: Deadline,
    ) -> Result<Outcome, MigrationError> {
        self.run_unless_stopped(config, deadline, &StopSignal::new())
    }

    /// Like [`run`](Self::run), but once `stop` is given it waits for the lock no longer and begins no
    /// further migration. One that is running still ends.
    ///
    /// # Errors
    /// As for [`run`](Self::run), and [`MigrationError::Stopped`].
    pub fn run_unless_stopped(
        &self,
        config: &DatabaseConfig,
        deadline: Deadline,
        stop: &StopSignal,
    ) -> Result<Outcome, MigrationError> {
        run::up(&self.migrations, config, deadline, stop)
    }

    /// The schema's status. One round trip once prepared; some more while its version is marked
    /// dirty.
    ///
    /// # Errors
    /// The database operation failed.
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
            // The migration may have ended between the two queries.
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

    /// Instructions for a database that is marked dirty at `version`.
    pub fn way_out(&self, version: Option<i64>) -> String {
        MigrationError::dirty(version, &self.migrations).to_string()
    }
}

/// The recorded version, and whether it is marked dirty.
fn version(connection: &mut Connection) -> Result<(Option<i64>, bool), DatabaseError> {
    match connection.query_opt(VERSION, &[]) {
        Ok(Some(row)) => Ok((recorded(row.try_get(0)?), row.try_get(1)?)),
        Ok(None) => Ok((None, false)),
        // No such table: no migration has run yet.
        Err(error) if error.is_undefined_table() => Ok((None, false)),
        Err(error) => Err(error),
    }
}

/// Queries the catalogs, since a migration may lock the tables but not the catalogs.
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
