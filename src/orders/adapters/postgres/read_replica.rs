//! Reads from a standby, with the primary behind it.
//!
//! A standby replays the primary's changes some time later. An order that it does not have is asked
//! for at the primary, so every client finds the order that it has just created. A status and a
//! list may be late by the standby's lag.

use std::sync::Arc;
use std::time::Duration;

use crate::orders::adapters::breaker::Breaker;
use crate::orders::domain::{Order, OrderId};
use crate::orders::ports::{OrderReader, Page, StoreError};
use tbd_deadline::Deadline;
use tbd_postgres::DatabaseConfig;

use super::PostgresStore;

/// How long a read waits for the standby. The rest of its deadline belongs to the primary.
const SHARE: Duration = Duration::from_secs(1);
/// The limit of a statement at the standby, from the start of the session. A read whose share ended sooner
/// would have to set its own, which costs two round trips.
const STATEMENT_TIMEOUT: Duration = Duration::from_millis(900);

/// Reads orders from a standby. The primary answers whatever the standby cannot.
pub struct ReadReplica {
    standby: PostgresStore,
    primary: Arc<PostgresStore>,
    breaker: Arc<Breaker>,
}

impl ReadReplica {
    /// A reader of `standby`, whose sessions have the limits of [`config`](Self::config). `breaker`
    /// spares a standby that is away: reads then go to `primary` at once.
    pub fn new(standby: PostgresStore, primary: Arc<PostgresStore>, breaker: Arc<Breaker>) -> Self {
        Self {
            standby,
            primary,
            breaker,
        }
    }

    /// `config`, with the limits of sessions with a standby.
    pub fn config(config: DatabaseConfig) -> DatabaseConfig {
        DatabaseConfig {
            statement_timeout: STATEMENT_TIMEOUT,
            ..config
        }
    }

    /// The standby's answer. `None` if it has none within its share of `deadline`.
    fn ask<T>(
        &self,
        deadline: Deadline,
        read: impl FnOnce(&PostgresStore, Deadline) -> Result<T, StoreError>,
    ) -> Option<T> {
        let share = deadline.earlier_of(Deadline::after(SHARE));
        let read = || read(&self.standby, share);
        let answer = self.breaker.guard(share, |_| true, read);
        answer?
            .inspect_err(|error| log::debug!("the primary answers for the standby: {error}"))
            .ok()
    }
}

impl OrderReader for ReadReplica {
    fn get(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, StoreError> {
        match self.ask(deadline, |standby, share| standby.get(id, share)) {
            Some(Some(order)) => Ok(Some(order)),
            Some(None) | None => self.primary.get(id, deadline),
        }
    }

    fn list(&self, page: &Page, deadline: Deadline) -> Result<Vec<Order>, StoreError> {
        match self.ask(deadline, |standby, share| standby.list(page, share)) {
            Some(orders) => Ok(orders),
            None => self.primary.list(page, deadline),
        }
    }
}
