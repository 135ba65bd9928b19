//! Migration upwards, step by step as golang-migrate does it.

use std::time::{Duration, Instant};

use postgres::error::ErrorPosition;

use super::error::MigrationError;
use super::source::Migration;
use super::{Outcome, lock, recorded};
use crate::config::DatabaseConfig;
use crate::connector::{self, Link};
use tbd_deadline::{Deadline, StopSignal};

/// How long reading or writing the version may take before the server counts as lost. A write waits
/// for readers of the version.
const BOOKKEEPING_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn up(
    migrations: &[Migration],
    config: &DatabaseConfig,
    deadline: Deadline,
    stop: &StopSignal,
) -> Result<Outcome, MigrationError> {
    let config = DatabaseConfig {
        // A migration has no time limit, and waits for its tables as long as the CLI would.
        statement_timeout: Duration::ZERO,
        lock_timeout: Duration::ZERO,
        application_name: format!("{}-migrations", config.application_name),
        ..config.clone()
    };
    let mut link = connector::connect(&config)?;
    up_on(&mut link, migrations, deadline, stop).map_err(|error| match error {
        MigrationError::Database(error) => link.limit.explain(error).into(),
        error => error,
    })
}

fn up_on(
    link: &mut Link,
    migrations: &[Migration],
    deadline: Deadline,
    stop: &StopSignal,
) -> Result<Outcome, MigrationError> {
    link.limit.set(deadline.remaining() + BOOKKEEPING_TIMEOUT);
    let row = link
        .client
        .query_one("SELECT current_schema(), current_database()", &[])?;
    let schema: Option<String> = row.try_get(0)?;
    let schema = schema.ok_or(MigrationError::NoSchema)?;
    let database: String = row.try_get(1)?;

    let locks = lock::acquire(&mut link.client, &schema, &database, deadline, stop)?;
    let mut session = Session {
        link,
        table: VersionTable::new(&schema),
    };
    let outcome = session.up(migrations, stop);
    session.link.limit.set(BOOKKEEPING_TIMEOUT);
    lock::release(&mut session.link.client, locks);
    outcome
}

/// A session that holds the locks.
struct Session<'a> {
    link: &'a mut Link,
    table: VersionTable,
}

impl Session<'_> {
    fn up(
        &mut self,
        migrations: &[Migration],
        stop: &StopSignal,
    ) -> Result<Outcome, MigrationError> {
        self.link.limit.set(BOOKKEEPING_TIMEOUT);
        self.ensure_version_table()?;
        let from = self.version(migrations)?;
        let latest = migrations.last().map(|migration| migration.version);
        if from > latest {
            return Ok(Outcome {
                from,
                to: from,
                applied: 0,
            });
        }
        if let Some(version) = from
            && !migrations
                .iter()
                .any(|migration| migration.version == version)
        {
            return Err(MigrationError::UnknownVersion { version });
        }
        let mut previous = from;
        let mut applied = 0;
        for migration in migrations
            .iter()
            .filter(|migration| Some(migration.version) > from)
        {
            // The end of the process would cut a migration short that has only just begun.
            if stop.is_stopped() {
                return Err(MigrationError::Stopped);
            }
            self.apply(migration, previous)?;
            previous = Some(migration.version);
            applied += 1;
        }
        Ok(Outcome {
            from,
            to: previous,
            applied,
        })
    }

    fn apply(
        &mut self,
        migration: &Migration,
        previous: Option<i64>,
    ) -> Result<(), MigrationError> {
        let started = Instant::now();
        self.set_version(migration.version, true)?;
        // The whole file is one message, so the server runs it as one transaction, unless it has
        // its own.
        if let Some(text) = migration
            .up
            .as_deref()
            .filter(|text| !text.trim().is_empty())
        {
            // A migration has no time limit.
            self.link.limit.clear();
            self.link
                .client
                .batch_execute(text)
                .map_err(|error| failed(migration, previous, text, error))?;
        }
        self.set_version(migration.version, false)?;
        log::info!(
            "migrated the schema to version {} in {:?}",
            migration.version,
            started.elapsed()
        );
        Ok(())
    }

    /// Creates the version table if it is missing. It is looked up first, because creating needs a
    /// privilege that a role with nothing to migrate may lack.
    fn ensure_version_table(&mut self) -> Result<(), MigrationError> {
        let exists =
            "SELECT 1 FROM information_schema.tables WHERE table_schema = $1 AND table_name = $2";
        if self
            .link
            .client
            .query_opt(exists, &[&self.table.schema, &VersionTable::NAME])?
            .is_none()
        {
            self.link.client.batch_execute(&format!(
                "CREATE TABLE IF NOT EXISTS {} (version bigint not null primary key, dirty boolean not null)",
                self.table.quoted,
            ))?;
        }
        Ok(())
    }

    /// The recorded version. A dirty version is an error unless it is newer than the known ones:
    /// its migration then belongs to a newer program.
    fn version(&mut self, migrations: &[Migration]) -> Result<Option<i64>, MigrationError> {
        let select = format!("SELECT version, dirty FROM {} LIMIT 1", self.table.quoted);
        let Some(row) = self.link.client.query_opt(&select, &[])? else {
            return Ok(None);
        };
        let version = recorded(row.try_get(0)?);
        if row.try_get(1)? {
            let latest = migrations.last().map(|migration| migration.version);
            if version <= latest {
                return Err(MigrationError::dirty(version, migrations));
            }
        }
        Ok(version)
    }

    /// Records a version in its own transaction, always as the table's only row.
    fn set_version(&mut self, version: i64, dirty: bool) -> Result<(), MigrationError> {
        self.link.limit.set(BOOKKEEPING_TIMEOUT);
        let mut transaction = self.link.client.transaction()?;
        transaction.batch_execute(&format!("TRUNCATE {}", self.table.quoted))?;
        let insert = format!(
            "INSERT INTO {} (version, dirty) VALUES ($1, $2)",
            self.table.quoted
        );
        transaction.execute(&insert, &[&version, &dirty])?;
        transaction.commit()?;
        Ok(())
    }
}

/// The table that records the version, in the first schema of the search path.
struct VersionTable {
    schema: String,
    /// Its qualified name, as SQL.
    quoted: String,
}

impl VersionTable {
    const NAME: &str = "schema_migrations";

    fn new(schema: &str) -> Self {
        let quoted = format!("\"{}\".\"{}\"", schema.replace('"', "\"\""), Self::NAME);
        Self {
            schema: schema.to_owned(),
            quoted,
        }
    }
}

fn failed(
    migration: &Migration,
    previous: Option<i64>,
    text: &str,
    error: postgres::Error,
) -> MigrationError {
    let at = match error.as_db_error().and_then(|answer| answer.position()) {
        Some(ErrorPosition::Original(position)) => line_and_column(text, *position),
        _ => None,
    };
    let mut message = error
        .as_db_error()
        .map_or_else(|| error.to_string(), |answer| answer.message().to_owned());
    // Migrations hold no user data, so the server's details may be shown.
    if let Some(detail) = error.as_db_error().and_then(|answer| answer.detail()) {
        message = format!("{message} ({detail})");
    }
    MigrationError::Failed {
        version: migration.version,
        file: migration.up_file.clone().unwrap_or_default(),
        at: at
            .map(|(line, column)| format!(", line {line}, column {column}"))
            .unwrap_or_default(),
        message,
        previous,
    }
}

/// The server's position (characters, from 1), as a place in a file.
fn line_and_column(text: &str, position: u32) -> Option<(usize, usize)> {
    let position = usize::try_from(position).ok()?.checked_sub(1)?;
    let before: String = text.chars().take(position).collect();
    let column = before
        .chars()
        .rev()
        .take_while(|character| *character != '\n')
        .count()
        + 1;
    Some((before.matches('\n').count() + 1, column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_characters_from_one() {
        assert_eq!(line_and_column("SELECT", 1), Some((1, 1)));
        assert_eq!(line_and_column("-- ä\nSELECT x", 13), Some((2, 8)));
        assert_eq!(line_and_column("", 0), None);
    }

    #[test]
    fn a_schema_name_cannot_break_out_of_its_quotes() {
        assert_eq!(
            VersionTable::new("a\"b").quoted,
            "\"a\"\"b\".\"schema_migrations\""
        );
    }
}
