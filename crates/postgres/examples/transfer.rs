//! Moves an amount between two accounts, each time it runs, in one transaction:
//! `transfer <host> <user> <password> <database>`.

use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_postgres::{DatabaseConfig, DatabaseError, Pool, Statement, column, retry};

const SCHEMA: Statement = Statement::new(
    "create accounts",
    "CREATE TABLE IF NOT EXISTS accounts (id int PRIMARY KEY, cents bigint NOT NULL)",
);
const OPEN: Statement = Statement::new(
    "insert accounts",
    "INSERT INTO accounts VALUES (1, 1000), (2, 1000) ON CONFLICT DO NOTHING",
);
const ADD: Statement = Statement::new(
    "update accounts",
    "UPDATE accounts SET cents = cents + $2 WHERE id = $1 RETURNING cents",
);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host, user, password, database] = &arguments[..] else {
        return Err("usage: transfer <host> <user> <password> <database>".into());
    };
    let pool = Pool::new(DatabaseConfig::new(host, 5432, user, password, database))?;
    let deadline = Deadline::after(Duration::from_secs(10));
    let mut connection = pool.get(deadline)?;
    connection.execute(SCHEMA, &[])?;
    // Only work that may happen twice is repeated after a transient error: this insert, not the transfer.
    retry(deadline, || connection.execute(OPEN, &[]))?;
    connection.limit_to(deadline)?;
    let balances = connection.transaction(|transaction| {
        [(1, -5_i64), (2, 5)]
            .into_iter()
            .map(|(account, cents)| {
                let row = transaction.query_opt(ADD, &[&account, &cents])?;
                let row = row.ok_or_else(|| DatabaseError::Driver("an account is gone".into()))?;
                column::<i64>(&row, "cents")
            })
            .collect::<Result<Vec<_>, DatabaseError>>()
    })?;
    println!("{balances:?}");
    Ok(())
}
