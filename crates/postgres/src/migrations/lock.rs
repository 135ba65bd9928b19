//! golang-migrate's advisory lock: only one process migrates at a time.

use std::mem;
use std::time::Duration;

use postgres::Client;

use super::error::MigrationError;
use crate::connection::{Connection, Statement};
use crate::error::DatabaseError;
use tbd_deadline::{Deadline, StopSignal};

/// `advisoryLockIDSalt` of golang-migrate.
const SALT: u32 = 1_486_364_155;
/// The table that records the version.
const TABLE: &str = "schema_migrations";
const PLACE: Statement = Statement::new(
    "schema_place",
    "SELECT current_schema()::text, current_database()::text",
);
/// The catalog shows a lock on one bigint as its two halves.
const HELD: Statement = Statement::new(
    "schema_lock",
    "SELECT EXISTS (
         SELECT FROM pg_locks
          WHERE locktype = 'advisory' AND granted AND objsubid = 1
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND (classid::bigint << 32) | objid::bigint = ANY($1))",
);
/// How often a held lock is tried again. Polling beats waiting in `pg_advisory_lock`. A session
/// that waits there holds a snapshot, another session's `CREATE INDEX CONCURRENTLY` waits for that
/// snapshot, and the server reports a deadlock. Nor does that wait end at the deadline.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Takes both locks that golang-migrate uses for this database, or gives up at `deadline` or `stop`.
///
/// The CLI derives its lock from the path of the database URL, slash included. Programs that use
/// golang-migrate as a library derive it from the bare name. The two do not exclude each other, so
/// this takes both. The order is fixed, so two runners can never hold one each.
pub(super) fn acquire(
    client: &mut Client,
    schema: &str,
    database: &str,
    deadline: Deadline,
    stop: &StopSignal,
) -> Result<[i64; 2], MigrationError> {
    let ids = lock_ids(schema, database);
    let mut waiting = false;
    for id in ids {
        while !client
            .query_one("SELECT pg_try_advisory_lock($1)", &[&id])?
            .try_get::<_, bool>(0)?
        {
            if deadline.is_past() {
                return Err(MigrationError::Locked);
            }
            if !mem::replace(&mut waiting, true) {
                log::info!("another process is migrating the schema: waiting for it");
            }
            if stop.wait_for(POLL_INTERVAL.min(deadline.remaining())) {
                return Err(MigrationError::Stopped);
            }
        }
    }
    Ok(ids)
}

/// Releases the locks. The end of the session releases them too, so a failure does not matter.
pub(super) fn release(client: &mut Client, ids: [i64; 2]) {
    for id in ids.into_iter().rev() {
        if let Err(error) = client.execute("SELECT pg_advisory_unlock($1)", &[&id]) {
            log::debug!("the migration lock goes with its session: {error}");
        }
    }
}

/// Whether a process is migrating this database now. Two round trips.
pub(super) fn is_held(connection: &mut Connection) -> Result<bool, DatabaseError> {
    let Some(place) = connection.query_opt(PLACE, &[])? else {
        return Ok(false);
    };
    let schema: Option<&str> = place.try_get(0)?;
    let ids = lock_ids(schema.unwrap_or_default(), place.try_get(1)?);
    let held = connection.query_opt(HELD, &[&&ids[..]])?;
    Ok(held.map(|row| row.try_get(0)).transpose()?.unwrap_or(false))
}

/// The CLI's lock and the library's.
fn lock_ids(schema: &str, database: &str) -> [i64; 2] {
    [
        lock_id(schema, &format!("/{database}")),
        lock_id(schema, database),
    ]
}

fn lock_id(schema: &str, database: &str) -> i64 {
    i64::from(generate_advisory_lock_id(&[schema, TABLE, database]))
}

/// golang-migrate's `GenerateAdvisoryLockId`: additional names first, the database last, joined by
/// NUL.
fn generate_advisory_lock_id(names: &[&str]) -> u32 {
    crc32fast::hash(names.join("\0").as_bytes()).wrapping_mul(SALT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_ids_are_those_of_golang_migrate() {
        // The test vectors of its database/util_test.go.
        assert_eq!(generate_advisory_lock_id(&["database_name"]), 1_764_327_054);
        assert_eq!(
            generate_advisory_lock_id(&["schema_name_1", "database_name"]),
            2_453_313_553
        );
        assert_eq!(
            generate_advisory_lock_id(&["schema_name_2", "database_name"]),
            235_207_038
        );
        assert_eq!(
            generate_advisory_lock_id(&["schema_name_1", "schema_name_2", "database_name"]),
            3_743_845_847
        );
    }

    #[test]
    fn the_cli_and_the_library_lock_this_database_differently() {
        assert_eq!(lock_id("public", "/tbd"), 818_906_480);
        assert_eq!(lock_id("public", "tbd"), 2_813_581_551);
    }
}
