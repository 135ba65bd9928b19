//! SQL of the participants' ledger.

use tbd_postgres::Statement;

/// The statements on one participant's table of holds.
pub(super) struct Statements {
    pub transaction: &'static str,
    pub claim: Statement,
    pub lock: Statement,
    pub record: Statement,
    pub totals: Statement,
}

macro_rules! statements {
    ($table:literal, $quantity:literal) => {
        Statements {
            transaction: concat!("TRANSACTION ", $table),
            claim: Statement::new(
                concat!("INSERT ", $table),
                concat!(
                    "INSERT INTO ", $table, " (saga_id, ", $quantity, ", state, reason)
                     SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::text[]) ORDER BY 1
                     ON CONFLICT DO NOTHING RETURNING saga_id"
                ),
            ),
            lock: Statement::new(
                concat!("SELECT ", $table),
                concat!(
                    "SELECT saga_id, ", $quantity, " AS quantity, state, reason FROM ", $table, "
                      WHERE saga_id = ANY ($1) ORDER BY saga_id FOR UPDATE"
                ),
            ),
            record: Statement::new(
                concat!("UPDATE ", $table),
                concat!(
                    "UPDATE ", $table, " AS hold SET state = new.state, reason = new.reason, updated_at = now()
                       FROM unnest($1::uuid[], $2::text[], $3::text[]) AS new (saga_id, state, reason)
                      WHERE hold.saga_id = new.saga_id"
                ),
            ),
            totals: Statement::new(
                concat!("SELECT totals of ", $table),
                concat!(
                    "SELECT state, count(*) AS count, sum(", $quantity, ")::text AS quantity
                       FROM ", $table, " GROUP BY state"
                ),
            ),
        }
    };
}

pub(super) const RESERVATIONS: Statements = statements!("reservations", "units");
pub(super) const PAYMENTS: Statements = statements!("payments", "amount_cents");

pub(super) const READ_STOCK: Statement = Statement::new(
    "SELECT stock",
    "SELECT available, held, sold FROM stock WHERE id = 1",
);
pub(super) const LOCK_STOCK: Statement = Statement::new(
    "SELECT stock for update",
    "SELECT available, held, sold FROM stock WHERE id = 1 FOR UPDATE",
);
pub(super) const FILL_STOCK: Statement = Statement::new(
    "INSERT stock",
    "INSERT INTO stock (id, available) VALUES (1, $1) ON CONFLICT DO NOTHING",
);
pub(super) const WRITE_STOCK: Statement = Statement::new(
    "UPDATE stock",
    "UPDATE stock SET available = $1, held = $2, sold = $3 WHERE id = 1",
);
