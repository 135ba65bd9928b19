//! The PostgreSQL ledger: one transaction for all commands of a call.
//!
//! Its statements are at most six, however many the commands:
//! 1. insert a row for each saga that has none, in the state of a first command;
//! 2. lock the rows of the others;
//! 3. inventory: lock the stock (and fill it, once);
//! 4. record the states that have changed;
//! 5. inventory: write the stock.
//!
//! **Locks.** All transactions lock rows of sagas in the order of their ids, and the stock last. So
//! calls with the same sagas in another order wait for each other and cannot deadlock. A concurrent
//! duplicate waits in step 1 at the unique index, and finds the row in step 2.
//!
//! **The stock is one hot row.** A call locks it once, after all waits for sagas, for two round trips
//! and the commit. So larger batches give more commands per second.

use std::collections::{BTreeMap, HashSet};

use tbd_deadline::Deadline;
use tbd_postgres::migrations::Tables;
use tbd_postgres::{Connection, DatabaseError, Pool, Row, Statement, Transaction, column, retry};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, SpanKind};
use uuid::Uuid;

use super::statements::{
    FILL_STOCK, LOCK_STOCK, PAYMENTS, READ_STOCK, RESERVATIONS, Statements, WRITE_STOCK,
};
use crate::participants::domain::{Action, Command, Participant, Reason, State, Stock};
use crate::participants::ports::{Audit, Ledger, LedgerError, Outcome, Total};

/// The tables and columns that a participant's statements use.
pub const fn tables(participant: Participant) -> Tables {
    match participant {
        Participant::Inventory => &[
            ("stock", &["available", "held", "sold"]),
            ("reservations", &["saga_id", "units", "state", "reason"]),
        ],
        Participant::Payments => &[("payments", &["saga_id", "amount_cents", "state", "reason"])],
    }
}

/// The ledger of one participant. Clones share the pool.
#[derive(Clone)]
pub struct PostgresLedger {
    pool: Pool,
    participant: Participant,
    initial_stock: i64,
}

/// A row of the table of holds.
struct Hold {
    quantity: i64,
    state: State,
}

impl PostgresLedger {
    /// The ledger in the database of `pool`. An inventory without stock begins with `initial_stock`
    /// units.
    pub fn new(pool: Pool, participant: Participant, initial_stock: i64) -> Self {
        Self {
            pool,
            participant,
            initial_stock,
        }
    }

    const fn statements(&self) -> &'static Statements {
        match self.participant {
            Participant::Inventory => &RESERVATIONS,
            Participant::Payments => &PAYMENTS,
        }
    }

    /// Runs `work` on a connection, within one span. Retries transient errors on a fresh connection:
    /// commands are idempotent, so the retry of a commit with an unknown outcome finds its own rows.
    fn on_connection<T>(
        &self,
        deadline: Deadline,
        mut work: impl FnMut(&mut Connection) -> Result<T, DatabaseError>,
    ) -> Result<T, LedgerError> {
        let config = self.pool.config();
        let attributes = || semconv::postgresql(&config.name, &config.host, config.port);
        let span = tracing::span(self.statements().transaction, SpanKind::Client, attributes);
        let result = retry(deadline, || {
            let mut connection = self.pool.get(deadline)?;
            connection.limit_to(deadline)?;
            work(&mut connection)
        });
        result.map_err(|error| {
            span.fail(error.kind(), &error.to_string());
            error.into()
        })
    }

    /// The transaction of a call. `commands` has one command for each saga.
    fn run_all(
        &self,
        transaction: &mut Transaction<'_>,
        action: Action,
        commands: &BTreeMap<Uuid, Command>,
    ) -> Result<BTreeMap<Uuid, Outcome>, DatabaseError> {
        let refuse = |command: &Command| {
            let refusal = self.participant.refusal_on_purpose(command.amount_cents);
            refusal.map_or(Ok(()), Err)
        };
        let first = |command: &Command| {
            let (state, _) = self.participant.decide(action, None, || refuse(command));
            state
        };
        let claimed = self.claim(transaction, action, commands, first)?;
        let mut known = self.lock(transaction, commands, &claimed)?;
        // Only a new hold and one that is held can move units.
        let may_move = (action == Action::Hold && !claimed.is_empty())
            || known.values().any(|hold| hold.state == State::Held);
        let mut stock = match self.participant {
            Participant::Inventory if may_move => Some(self.stock(transaction, LOCK_STOCK)?),
            _ => None,
        };
        let mut changed = Vec::new();
        let mut outcomes = BTreeMap::new();
        for (saga, command) in commands {
            let hold = known.remove(saga);
            let before = hold.as_ref().map(|hold| hold.state.clone());
            let (state, answer) = self.participant.decide(action, before.clone(), || {
                refuse(command)?;
                let stock = stock.as_mut();
                stock.map_or(Ok(()), |stock| stock.hold(command.quantity))
            });
            let is_new = before.as_ref() != Some(&state);
            outcomes.insert(*saga, Outcome { answer, is_new });
            if state == before.unwrap_or_else(|| first(command)) {
                continue;
            }
            if let (Some(hold), Some(stock)) = (hold, &mut stock) {
                stock.settle_or_release(hold.quantity, &state);
            }
            changed.push((*saga, state));
        }
        self.record(transaction, &changed)?;
        if let Some(stock) = stock {
            let Stock {
                available,
                held,
                sold,
            } = stock;
            transaction.execute(WRITE_STOCK, &[&available, &held, &sold])?;
        }
        Ok(outcomes)
    }

    /// Inserts rows for sagas that have none, in the state of a `first` command. Returns those sagas.
    fn claim(
        &self,
        transaction: &mut Transaction<'_>,
        action: Action,
        commands: &BTreeMap<Uuid, Command>,
        first: impl Fn(&Command) -> State,
    ) -> Result<HashSet<Uuid>, DatabaseError> {
        let sagas: Vec<Uuid> = commands.keys().copied().collect();
        let quantity = |command: &Command| match action {
            Action::Hold => command.quantity,
            Action::Settle | Action::Release => 0,
        };
        let quantities: Vec<i64> = commands.values().map(quantity).collect();
        let states: Vec<State> = commands.values().map(first).collect();
        let (states, reasons) = self.columns(states.iter());
        let claimed = transaction.query(
            self.statements().claim,
            &[&sagas, &quantities, &states, &reasons],
        )?;
        claimed.iter().map(|row| column(row, "saga_id")).collect()
    }

    /// Locks the rows of all sagas but those just `claimed`.
    fn lock(
        &self,
        transaction: &mut Transaction<'_>,
        commands: &BTreeMap<Uuid, Command>,
        claimed: &HashSet<Uuid>,
    ) -> Result<BTreeMap<Uuid, Hold>, DatabaseError> {
        let others = commands.keys().filter(|saga| !claimed.contains(*saga));
        let others: Vec<Uuid> = others.copied().collect();
        if others.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows = transaction.query(self.statements().lock, &[&others])?;
        rows.iter()
            .map(|row| Ok((column(row, "saga_id")?, self.hold(row)?)))
            .collect()
    }

    fn record(
        &self,
        transaction: &mut Transaction<'_>,
        changed: &[(Uuid, State)],
    ) -> Result<(), DatabaseError> {
        if changed.is_empty() {
            return Ok(());
        }
        let sagas: Vec<Uuid> = changed.iter().map(|(saga, _)| *saga).collect();
        let (states, reasons) = self.columns(changed.iter().map(|(_, state)| state));
        let record = self.statements().record;
        transaction.execute(record, &[&sagas, &states, &reasons])?;
        Ok(())
    }

    /// The stock as `statement` reads it. An empty table is filled first.
    fn stock(
        &self,
        transaction: &mut Transaction<'_>,
        statement: Statement,
    ) -> Result<Stock, DatabaseError> {
        let mut row = transaction.query_opt(statement, &[])?;
        if row.is_none() {
            transaction.execute(FILL_STOCK, &[&self.initial_stock])?;
            row = transaction.query_opt(statement, &[])?;
        }
        let row = row.ok_or_else(|| DatabaseError::Driver("the stock has vanished".to_owned()))?;
        Ok(Stock {
            available: column(&row, "available")?,
            held: column(&row, "held")?,
            sold: column(&row, "sold")?,
        })
    }

    fn totals(&self, connection: &mut Connection) -> Result<Audit, DatabaseError> {
        let rows = connection.query(self.statements().totals, &[])?;
        let mut totals = BTreeMap::new();
        for row in &rows {
            let sum: &str = column(row, "quantity")?;
            let amount_cents = sum
                .parse()
                .map_err(|_| DatabaseError::Driver(format!("a sum of {sum}")))?;
            let count = column(row, "count")?;
            let state: &str = column(row, "state")?;
            totals.insert(
                state,
                Total {
                    count,
                    amount_cents,
                },
            );
        }
        let total = |state| totals.get(state).copied().unwrap_or_default();
        Ok(Audit::Payments {
            authorized: total(self.participant.held()),
            captured: total(self.participant.settled()),
            voided: total(self.participant.released()),
        })
    }

    /// The columns `state` and `reason`.
    fn columns<'a>(
        &self,
        states: impl Iterator<Item = &'a State>,
    ) -> (Vec<&'static str>, Vec<Option<&'a str>>) {
        let columns = |state: &'a State| match state {
            State::Held => (self.participant.held(), None),
            State::Settled => (self.participant.settled(), None),
            State::Released => (self.participant.released(), None),
            State::Refused(reason) => ("refused", Some(&**reason)),
        };
        states.map(columns).unzip()
    }

    fn hold(&self, row: &Row) -> Result<Hold, DatabaseError> {
        let word: &str = column(row, "state")?;
        let reason: Option<String> = column(row, "reason")?;
        let state = match reason {
            Some(reason) => State::Refused(Reason::from(reason)),
            None if word == self.participant.held() => State::Held,
            None if word == self.participant.settled() => State::Settled,
            // The table's check admits no other word.
            None => State::Released,
        };
        Ok(Hold {
            quantity: column(row, "quantity")?,
            state,
        })
    }
}

impl Ledger for PostgresLedger {
    fn run(
        &self,
        action: Action,
        commands: &[Command],
        deadline: Deadline,
    ) -> Result<Vec<Outcome>, LedgerError> {
        let mut by_saga = BTreeMap::new();
        for command in commands {
            by_saga.entry(command.saga).or_insert(*command);
        }
        let mut outcomes = self.on_connection(deadline, |connection| {
            connection.transaction(|transaction| self.run_all(transaction, action, &by_saga))
        })?;
        let answer = |command: &Command| {
            let outcome = outcomes.get_mut(&command.saga)?;
            let answered = outcome.clone();
            outcome.is_new = false;
            Some(answered)
        };
        Ok(commands.iter().filter_map(answer).collect())
    }

    fn audit(&self, deadline: Deadline) -> Result<Audit, LedgerError> {
        self.on_connection(deadline, |connection| match self.participant {
            Participant::Inventory => connection.transaction(|transaction| {
                let stock = self.stock(transaction, READ_STOCK)?;
                Ok(Audit::Stock(stock))
            }),
            Participant::Payments => self.totals(connection),
        })
    }
}

impl From<DatabaseError> for LedgerError {
    fn from(error: DatabaseError) -> Self {
        match error.may_pass() {
            true => Self::Unavailable(error.to_string()),
            false => Self::Internal(error.to_string()),
        }
    }
}
