//! PostgreSQL: tokio-postgres connections in a deadpool, tbd's statements.
//!
//! Look-ups by id go over connections that many requests share, each sent before the last is answered
//! (pipelining). A statement that may wait for a lock, or take long, has a connection to itself.
//!
//! Orders that arrive during a commit share the next one, as in tbd. Here the rows go through a channel
//! to writer tasks, where tbd has a queue and no thread.

use std::collections::HashSet;
use std::future::Future;
use std::iter;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    GenericClient, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError,
    RecyclingMethod, Runtime,
};
use jiff::Timestamp;
use opentelemetry::trace::{FutureExt as _, TraceContextExt};
use tbd::metrics::{DatabaseMetrics, Metrics};
use tbd::orders::adapters::postgres::rows::{claimed_order, message, order, uuids};
use tbd::orders::adapters::postgres::submission::{
    ACCEPTED, ROWS_MAX, RowOutcome, TRIES_MAX, WRITERS, interpret_known_key, interpret_row,
    outcome_per_row,
};
use tbd::orders::adapters::postgres::{attributes, statements};
use tbd::orders::domain::{Order, OrderId};
use tbd::orders::ports::{
    Backlog, Claimed, Failure, Message, Page, Replay, StoreError, Submission, SubmitOutcome,
};
use tbd_deadline::Deadline;
use tbd_postgres::{DatabaseConfig, DatabaseError, Statement, column};
use tbd_telemetry::semconv;
use tbd_telemetry::tracing::{self, Context, DetachedSpan, SpanContext, SpanKind};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls};
use uuid::Uuid;

/// The time limit of a new connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Retries after a transient error: the pause before each.
const RETRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);
/// Shared connections. With fewer, PostgreSQL finds more statements in each read, and more of them wait
/// for a slow one.
const SHARED: usize = 2;
/// Rows that may wait for a writer.
const WAITING_MAX: usize = 4096;

/// A connection, in use by one request or by several.
type Client = Arc<Object>;

/// A submission on its way to a writer.
struct Waiting {
    row: Arc<Submission>,
    deadline: Deadline,
    parent: Context,
    answer: oneshot::Sender<(Result<RowOutcome, DatabaseError>, Option<SpanContext>)>,
}

/// Orders, keys and outbox. Clones share the pool.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    server: Arc<DatabaseConfig>,
    metrics: DatabaseMetrics,
    statements: Arc<Named>,
    writers: Option<mpsc::Sender<Waiting>>,
    shared: Arc<Shared>,
}

/// Connections in use by several requests; each returns to the pool after the last of them.
#[derive(Default)]
struct Shared {
    places: Vec<Mutex<Weak<Object>>>,
    next: AtomicUsize,
    lifetime: Duration,
}

/// tbd's statements by name.
struct Named {
    submit: Statement,
    submit_many: Statement,
    known: Statement,
    sweep: Statement,
    get: Statement,
    list: Statement,
    list_by_status: Statement,
    replace: Statement,
    claim: Statement,
    look: Statement,
    retry: Statement,
    complete: Statement,
    fail: Statement,
    take: Statement,
    remove: Statement,
    backlog: Statement,
}

impl Named {
    fn new() -> Self {
        let all = statements();
        let named = |name: &str| {
            let found = all.iter().find(|statement| statement.name() == name);
            *found.unwrap_or_else(|| panic!("tbd has no statement {name}"))
        };
        Self {
            submit: named("INSERT order"),
            submit_many: named("INSERT orders"),
            known: named("SELECT idempotency key"),
            sweep: named("DELETE idempotency keys"),
            get: named("SELECT order"),
            list: named("SELECT orders"),
            list_by_status: named("SELECT orders by status"),
            replace: named("UPDATE order"),
            claim: named("UPDATE orders processing"),
            look: named("SELECT orders by id"),
            retry: named("UPDATE orders retried"),
            complete: named("UPDATE orders completed"),
            fail: named("UPDATE orders failed"),
            take: named("SELECT outbox"),
            remove: named("DELETE outbox"),
            backlog: named("SELECT outbox backlog"),
        }
    }
}

impl Store {
    /// A store on the database of `server`, in plain text; its gauges are read at each scrape. With `coalesce`, starts the writer
    /// tasks; with `pipeline`, shares connections.
    pub fn new(
        server: DatabaseConfig,
        (coalesce, pipeline): (bool, bool),
        metrics: &Metrics,
    ) -> Self {
        let mut config = Config::new();
        config
            .host(&server.host)
            .port(server.port)
            .user(&server.user)
            .password(&server.password)
            .dbname(&server.name)
            .application_name(&server.application_name)
            .options(server.session_options())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(Duration::from_secs(10));
        // Fast: no round trip at check-out; a broken connection shows itself by its closed channel.
        let manager = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let lifetime = server.conn_max_lifetime;
        let too_old = Hook::sync_fn(move |_, stats| match stats.created.elapsed() < lifetime {
            true => Ok(()),
            false => Err(HookError::message("older than DB_CONN_MAX_LIFETIME")),
        });
        let pool = Pool::builder(Manager::from_config(config, NoTls, manager))
            .max_size(server.max_conns as usize)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(CONNECT_TIMEOUT))
            .pre_recycle(too_old)
            .build()
            // Fails only without a runtime, which is set above.
            .expect("a pool of a known runtime");
        let (measured, gauges) = (pool.clone(), metrics.database.clone());
        metrics.on_scrape(Box::new(move || {
            let status = measured.status();
            let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            gauges
                .in_use
                .set(count(status.size.saturating_sub(status.available)));
            gauges.idle.set(count(status.available));
            gauges.waiting.set(count(status.waiting));
            gauges.max.set(count(status.max_size));
        }));
        let places = if pipeline { SHARED } else { 0 };
        let mut store = Self {
            shared: Arc::new(Shared {
                // Most of the pool stays free for statements that need a connection to themselves.
                places: (0..places.min(server.max_conns as usize / 2))
                    .map(|_| Mutex::default())
                    .collect(),
                next: AtomicUsize::new(0),
                lifetime,
            }),
            pool,
            server: Arc::new(server),
            metrics: metrics.database.clone(),
            statements: Arc::new(Named::new()),
            writers: None,
        };
        if coalesce {
            let (sender, receiver) = mpsc::channel(WAITING_MAX);
            let receiver = Arc::new(Mutex::new(receiver));
            for _ in 0..WRITERS {
                tokio::spawn(store.clone().write_all(Arc::clone(&receiver)));
            }
            store.writers = Some(sender);
        }
        store
    }

    /// Stores key, order and event together, or returns the outcome of the known key.
    pub async fn submit(
        &self,
        submission: &Arc<Submission>,
        deadline: Deadline,
    ) -> Result<SubmitOutcome, StoreError> {
        let Some(writers) = &self.writers else {
            return self.submit_alone(submission, deadline).await;
        };
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            row: Arc::clone(submission),
            deadline,
            parent: Context::current(),
            answer,
        };
        let unavailable = |why: &str| StoreError::Unavailable(why.to_owned());
        let done = async {
            writers
                .send(waiting)
                .await
                .map_err(|_| unavailable("the writers have ended"))?;
            answered
                .await
                .map_err(|_| unavailable("the outcome is not known"))
        };
        let begun = Instant::now();
        let (written, carrier) = timeout_at(deadline.instant().into(), done)
            .await
            .map_err(|_| unavailable("no writer was free in time"))??;
        if let Some(carrier) = carrier {
            let links = vec![carrier];
            let wait = tracing::waited("wait for a shared commit", begun.elapsed(), links);
            if let Err(error) = &written {
                wait.fail(error.kind(), &error.to_string());
            }
        }
        match written? {
            RowOutcome::Decided(outcome) => Ok(outcome),
            RowOutcome::NeedsOwnStatement => self.submit_alone(submission, deadline).await,
        }
    }

    /// A writer task: writes all waiting rows in one statement.
    async fn write_all(self, receiver: Arc<Mutex<mpsc::Receiver<Waiting>>>) {
        let mut later: Vec<Waiting> = Vec::new();
        loop {
            let mut rows = std::mem::take(&mut later);
            if rows.is_empty() {
                let mut receiver = receiver.lock().await;
                if receiver.recv_many(&mut rows, ROWS_MAX).await == 0 {
                    return;
                }
            } else if let Ok(mut receiver) = receiver.try_lock() {
                // No waiting for the lock: an idle writer holds it until rows arrive.
                while rows.len() < ROWS_MAX
                    && let Ok(row) = receiver.try_recv()
                {
                    rows.push(row);
                }
            }
            // Only one row per key; the next waits for it.
            let mut keys = HashSet::new();
            let (batch, rest): (Vec<Waiting>, Vec<Waiting>) = rows
                .into_iter()
                .partition(|row| keys.insert(row.row.key.clone()));
            later = rest;
            self.write(batch).await;
        }
    }

    async fn write(&self, batch: Vec<Waiting>) {
        let Some(first) = batch.first() else { return };
        let (deadline, parent) = (first.deadline, first.parent.clone());
        let mut carrier = None;
        let rows: Vec<Arc<Submission>> = batch
            .iter()
            .map(|waiting| Arc::clone(&waiting.row))
            .collect();
        let written = match &rows[..] {
            [alone] => {
                let work = |client: Client| async move { self.submit_one(&client, alone).await };
                self.run_in(&parent, self.statements.submit, deadline, false, work)
                    .await
                    .map(|outcome| {
                        vec![outcome.map_or(RowOutcome::NeedsOwnStatement, RowOutcome::Decided)]
                    })
            }
            many => {
                let work = |client: Client| async move {
                    let count = i64::try_from(many.len()).unwrap_or(i64::MAX);
                    tracing::annotate(semconv::DB_OPERATION_BATCH_SIZE, count);
                    let written = self.submit_many(&client, many).await?;
                    Ok((written, tracing::current()))
                };
                let written =
                    self.run_in(&parent, self.statements.submit_many, deadline, false, work);
                written.await.map(|(written, statement)| {
                    carrier = statement;
                    written
                })
            }
        };
        // The statement is in the first row's trace; the others link to it.
        let carriers = iter::once(None).chain(iter::repeat(carrier));
        let written = outcome_per_row(written, rows.len())
            .into_iter()
            .zip(carriers);
        for (waiting, written) in batch.into_iter().zip(written) {
            let _ = waiting.answer.send(written);
        }
    }

    async fn submit_alone(
        &self,
        row: &Submission,
        deadline: Deadline,
    ) -> Result<SubmitOutcome, StoreError> {
        let submitted = self.run(
            self.statements.submit,
            deadline,
            |client: Client| async move {
                for _ in 0..TRIES_MAX {
                    if let Some(once) = self.submit_one(&client, row).await? {
                        return Ok(once);
                    }
                }
                Ok(SubmitOutcome::Running)
            },
        );
        match submitted.await {
            Err(DatabaseError::LockTimeout) => Ok(SubmitOutcome::Running),
            other => Ok(other?),
        }
    }

    async fn submit_one(
        &self,
        client: &Object,
        row: &Submission,
    ) -> Result<Option<SubmitOutcome>, DatabaseError> {
        let found = self
            .query(
                client,
                self.statements.submit,
                &[
                    &row.key.as_str(),
                    &&row.fingerprint[..],
                    &ACCEPTED,
                    &row.body,
                    &row.order.id.0,
                    &row.ttl.as_secs_f64(),
                    &row.order.customer_email.as_str(),
                    &row.order.amount.get(),
                    &row.order.created_at,
                    &&row.message.payload[..],
                    &row.message.trace_context,
                ],
            )
            .await?;
        if let Some(found) = found.first()
            && let RowOutcome::Decided(outcome) = interpret_row(found, row)?
        {
            return Ok(Some(outcome));
        }
        let found = self
            .query(client, self.statements.known, &[&row.key.as_str()])
            .await?;
        let known = found.first();
        known
            .map(|found| interpret_known_key(found, row))
            .transpose()
    }

    async fn submit_many(
        &self,
        client: &Object,
        rows: &[Arc<Submission>],
    ) -> Result<Vec<RowOutcome>, DatabaseError> {
        fn gather<'a, T>(rows: &'a [Arc<Submission>], of: impl Fn(&'a Submission) -> T) -> Vec<T> {
            rows.iter().map(|row| of(row)).collect()
        }
        let found = self
            .query(
                client,
                self.statements.submit_many,
                &[
                    &gather(rows, |row| row.key.as_str()),
                    &gather(rows, |row| &row.fingerprint[..]),
                    &vec![ACCEPTED; rows.len()],
                    &gather(rows, |row| &row.body[..]),
                    &gather(rows, |row| row.order.id.0),
                    &gather(rows, |row| row.ttl.as_secs_f64()),
                    &gather(rows, |row| row.order.customer_email.as_str()),
                    &gather(rows, |row| row.order.amount.get()),
                    &gather(rows, |row| row.order.created_at),
                    &gather(rows, |row| &row.message.payload[..]),
                    &gather(rows, |row| row.message.trace_context.as_deref()),
                ],
            )
            .await?;
        found
            .iter()
            .zip(rows)
            .map(|(found, row)| interpret_row(found, row))
            .collect()
    }

    /// Deletes up to `limit` expired keys.
    pub async fn sweep(&self, limit: u32, deadline: Deadline) -> Result<u64, StoreError> {
        let statement = self.statements.sweep;
        let work = |client: Client| async move {
            self.execute(&*client, statement, &[&i64::from(limit)])
                .await
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// The order, if there is one.
    pub async fn get(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, StoreError> {
        let statement = self.statements.get;
        let work = |client: Client| async move {
            self.query(&*client, statement, &[&id.0])
                .await?
                .first()
                .map(order)
                .transpose()
        };
        let parent = Context::current();
        Ok(self
            .run_in(&parent, statement, deadline, true, work)
            .await?)
    }

    /// The orders of a page.
    pub async fn list(&self, page: &Page, deadline: Deadline) -> Result<Vec<Order>, StoreError> {
        let before = &page.before.map_or(Uuid::max(), |id| id.0);
        let skip = &i64::try_from(page.skip).unwrap_or(i64::MAX);
        let limit = &i64::from(page.limit);
        let status = &page.status.map(|status| status.as_str());
        let statement = match status {
            None => self.statements.list,
            Some(_) => self.statements.list_by_status,
        };
        let work = |client: Client| async move {
            let rows = match status {
                None => {
                    self.query(&*client, statement, &[before, skip, limit])
                        .await?
                }
                Some(status) => {
                    self.query(&*client, statement, &[before, skip, limit, status])
                        .await?
                }
            };
            rows.iter().map(order).collect()
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// Replaces `old` by `new` if the order still equals `old`; whether it did.
    pub async fn replace(
        &self,
        old: &Order,
        new: &Order,
        deadline: Deadline,
    ) -> Result<bool, StoreError> {
        let statement = self.statements.replace;
        let work = |client: Client| async move {
            let parameters: [&(dyn ToSql + Sync); 5] = [
                &old.id.0,
                &new.status.as_str(),
                &new.updated_at,
                &old.status.as_str(),
                &old.updated_at,
            ];
            self.execute(&*client, statement, &parameters).await
        };
        Ok(self.run(statement, deadline, work).await? == 1)
    }

    /// Claims the pending ones of `ids`, and returns the state of each of `ids` afterwards.
    pub async fn claim(
        &self,
        ids: &[OrderId],
        deadline: Deadline,
    ) -> Result<Vec<Claimed>, StoreError> {
        let (wanted, now) = (&uuids(ids), &Timestamp::now());
        let statement = self.statements.claim;
        let work = |client: Client| async move {
            self.query(&*client, statement, &[wanted, now])
                .await?
                .iter()
                .map(claimed_order)
                .collect()
        };
        let mut found: Vec<Claimed> = self.run(statement, deadline, work).await?;
        if found.len() < ids.len() {
            let missing: &Vec<Uuid> = &wanted
                .iter()
                .copied()
                .filter(|id| found.iter().all(|claimed| claimed.order.id.0 != *id))
                .collect();
            let statement = self.statements.look;
            let work = |client: Client| async move {
                self.query(&*client, statement, &[missing])
                    .await?
                    .iter()
                    .map(claimed_order)
                    .collect()
            };
            let rest: Vec<Claimed> = self.run(statement, deadline, work).await?;
            found.extend(rest);
        }
        Ok(found)
    }

    /// Moves failed orders whose message was replayed afterwards back to `processing`.
    pub async fn retry_failed(
        &self,
        replays: &[Replay],
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let ids: &Vec<Uuid> = &replays.iter().map(|replay| replay.id.0).collect();
        let replayed: &Vec<Timestamp> = &replays.iter().map(|replay| replay.replayed_at).collect();
        let (statement, now) = (self.statements.retry, &Timestamp::now());
        let work = |client: Client| async move {
            self.execute(&*client, statement, &[ids, replayed, now])
                .await
        };
        self.run(statement, deadline, work).await?;
        Ok(())
    }

    /// Moves the `processing` orders among `ids` to `completed`; the moved orders.
    pub async fn complete(
        &self,
        ids: &[OrderId],
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        let (ids, now) = (&uuids(ids), &Timestamp::now());
        let statement = self.statements.complete;
        let work = |client: Client| async move {
            self.query(&*client, statement, &[ids, now])
                .await?
                .iter()
                .map(order)
                .collect()
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// Moves the `processing` orders among `failures` to `failed`; the moved orders.
    pub async fn fail(
        &self,
        failures: &[Failure],
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        let ids: &Vec<Uuid> = &failures.iter().map(|failure| failure.id.0).collect();
        let reasons: &Vec<&str> = &failures.iter().map(|failure| &*failure.reason).collect();
        let (statement, now) = (self.statements.fail, &Timestamp::now());
        let work = |client: Client| async move {
            self.query(&*client, statement, &[ids, reasons, now])
                .await?
                .iter()
                .map(order)
                .collect()
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// Takes up to `limit` events older than `min_age`, publishes them and removes the acknowledged ones,
    /// which `publish` returns; the numbers of events taken and removed. The database has `budget` before
    /// `publish`, and again after it.
    pub async fn relay<F>(
        &self,
        limit: u32,
        min_age: Duration,
        budget: Duration,
        publish: impl FnOnce(Vec<Message>) -> F,
    ) -> Result<(usize, usize), StoreError>
    where
        F: Future<Output = Vec<OrderId>>,
    {
        let Named { take, remove, .. } = *self.statements;
        let span = self.span(&Context::current(), take);
        let relayed = async {
            let deadline = Deadline::after(budget);
            let mut client = bounded(deadline, self.client()).await?;
            // If dropped midway, the transaction is rolled back before its connection is used again.
            let begun = async { Ok(client.transaction().await?) };
            let transaction = bounded(deadline, begun).await?;
            let parameters: [&(dyn ToSql + Sync); 2] = [&min_age.as_secs_f64(), &i64::from(limit)];
            let rows = bounded(deadline, self.query(&transaction, take, &parameters)).await?;
            let messages: Vec<Message> = rows.iter().map(message).collect::<Result<_, _>>()?;
            let taken = messages.len();
            if taken == 0 {
                return Ok((0, 0));
            }
            let acknowledged = publish(messages).await;
            let removed = async {
                self.execute(&transaction, remove, &[&uuids(&acknowledged)])
                    .await?;
                Ok(transaction.commit().await?)
            };
            bounded(Deadline::after(budget), removed).await?;
            Ok((taken, acknowledged.len()))
        };
        let relayed = relayed.with_context(span.context()).await;
        if let Err(error) = &relayed {
            failed(&span, error);
        }
        Ok(relayed?)
    }

    /// Removes the events of `order_ids`.
    pub async fn remove(
        &self,
        order_ids: &[OrderId],
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let (statement, ids) = (self.statements.remove, &uuids(order_ids));
        let work = |client: Client| async move { self.execute(&*client, statement, &[ids]).await };
        self.run(statement, deadline, work).await?;
        Ok(())
    }

    /// The backlog of the outbox.
    pub async fn backlog(&self, deadline: Deadline) -> Result<Backlog, StoreError> {
        let statement = self.statements.backlog;
        let work = |client: Client| async move {
            match self.query(&*client, statement, &[]).await?.first() {
                None => Ok(Backlog::default()),
                Some(row) => Ok(Backlog {
                    rows: column(row, "rows")?,
                    oldest_seconds: column(row, "oldest_seconds")?,
                }),
            }
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    async fn run<T, F>(
        &self,
        statement: Statement,
        deadline: Deadline,
        work: impl Fn(Client) -> F,
    ) -> Result<T, DatabaseError>
    where
        F: Future<Output = Result<T, DatabaseError>>,
    {
        self.run_in(&Context::current(), statement, deadline, false, work)
            .await
    }

    /// Runs `work` on a connection, `shared` with others or not. Retries on a fresh one after a transient
    /// error, until `deadline` at most.
    async fn run_in<T, F>(
        &self,
        parent: &Context,
        statement: Statement,
        deadline: Deadline,
        shared: bool,
        work: impl Fn(Client) -> F,
    ) -> Result<T, DatabaseError>
    where
        F: Future<Output = Result<T, DatabaseError>>,
    {
        let span = self.span(parent, statement);
        let mut tries = 0;
        let result = loop {
            let tried = bounded(deadline, async {
                let client = match shared {
                    true => self.shared_client().await?,
                    false => Arc::new(self.client().await?),
                };
                work(client).await
            });
            // In the span, as the parent of its waits.
            match tried.with_context(span.context()).await {
                Err(error)
                    if error.is_transient() && tries < RETRIES && deadline.remaining() > PAUSE =>
                {
                    tries += 1;
                    tokio::time::sleep(PAUSE).await;
                }
                result => break result,
            }
        };
        if let Err(error) = &result {
            failed(&span, error);
        }
        result
    }

    fn span(&self, parent: &Context, statement: Statement) -> DetachedSpan {
        // Housekeeping has no request, and so no trace.
        let unasked;
        let parent = match parent.span().span_context().is_valid() {
            true => parent,
            false => {
                unasked = tracing::unsampled();
                &unasked
            }
        };
        tracing::detached_span_in(
            parent,
            statement.name(),
            SpanKind::Client,
            || attributes(statement, &self.server),
            Vec::new(),
        )
    }

    /// One of the shared connections. The first caller of an empty place takes a connection from the pool,
    /// and later callers of that place wait. Without pipelining, a connection of the caller's own.
    async fn shared_client(&self) -> Result<Client, DatabaseError> {
        let Shared { places, next, .. } = &*self.shared;
        let Some(turn) = next
            .fetch_add(1, Ordering::Relaxed)
            .checked_rem(places.len())
        else {
            return Ok(Arc::new(self.client().await?));
        };
        let mut place = places[turn].lock().await;
        let usable = |client: &Client| {
            !client.is_closed() && Object::metrics(client).created.elapsed() < self.shared.lifetime
        };
        if let Some(client) = place.upgrade().filter(usable) {
            return Ok(client);
        }
        let client = Arc::new(self.client().await?);
        *place = Arc::downgrade(&client);
        Ok(client)
    }

    async fn client(&self) -> Result<Object, DatabaseError> {
        let begun = Instant::now();
        let client = self.pool.get().await;
        let waited = begun.elapsed();
        self.metrics.wait.observe(waited.as_secs_f64());
        let client = client.map_err(|error| match error {
            PoolError::Backend(error) => error.into(),
            other => DatabaseError::Unavailable {
                location: "the pool".to_owned(),
                reason: other.to_string(),
            },
        });
        let wait = tracing::waited("wait for a connection", waited, Vec::new());
        if let Err(error) = &client {
            wait.fail(error.kind(), &error.to_string());
        }
        client
    }

    async fn query(
        &self,
        client: &impl GenericClient,
        statement: Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>, DatabaseError> {
        self.measured(statement, async {
            let prepared = client.prepare_cached(statement.sql()).await?;
            client.query(&prepared, parameters).await
        })
        .await
    }

    async fn execute(
        &self,
        client: &impl GenericClient,
        statement: Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, DatabaseError> {
        self.measured(statement, async {
            let prepared = client.prepare_cached(statement.sql()).await?;
            client.execute(&prepared, parameters).await
        })
        .await
    }

    async fn measured<T>(
        &self,
        statement: Statement,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, DatabaseError> {
        let begun = Instant::now();
        let result = work.await;
        let labels = [statement.name()];
        let seconds = begun.elapsed().as_secs_f64();
        self.metrics
            .query_duration
            .with_label_values(&labels)
            .observe(seconds);
        if result.is_err() {
            self.metrics.query_errors.with_label_values(&labels).inc();
        }
        Ok(result?)
    }
}

fn failed(span: &DetachedSpan, error: &DatabaseError) {
    if let Some(sqlstate) = error.sqlstate() {
        span.set(semconv::DB_RESPONSE_STATUS_CODE, sqlstate.to_owned());
    }
    span.fail(error.kind(), &error.to_string());
}

/// `work`, given up at `deadline`.
async fn bounded<T>(
    deadline: Deadline,
    work: impl Future<Output = Result<T, DatabaseError>>,
) -> Result<T, DatabaseError> {
    timeout_at(deadline.instant().into(), work)
        .await
        .unwrap_or(Err(DatabaseError::StatementTimeout))
}
