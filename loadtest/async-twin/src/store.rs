//! PostgreSQL: tokio-postgres connections in a deadpool, tbd's statements.
//!
//! Orders that come while a commit is under way share the next one, as in tbd; here the rows go through a channel to
//! writer tasks, where tbd has a queue and no thread.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
};
use jiff::Timestamp;
use tbd::config::DatabaseSettings;
use tbd::database::{DatabaseError, Statement};
use tbd::deadline::Deadline;
use tbd::orders::adapters::postgres::rows::{column, order, uuids, valid};
use tbd::orders::adapters::postgres::statements;
use tbd::orders::domain::{EventKind, Order, OrderId};
use tbd::orders::ports::{
    Backlog, Message, Once, Page, SecondChance, Started, StoreError, StoredResponse,
};
use tbd::telemetry::metrics::{DatabaseMetrics, Metrics};
use tbd::telemetry::semconv;
use tbd::telemetry::tracing::{Context, DetachedSpan, KeyValue, SpanKind, detached_span_in};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout_at;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row};
use uuid::Uuid;

/// tbd's session settings (`tbd::database::DatabaseConfig`).
const OPTIONS: &str = "-c statement_timeout=5000 -c lock_timeout=3000 \
                       -c idle_in_transaction_session_timeout=60000 -c timezone=UTC";
/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Repetitions after a transient error, and the pause before each.
const RETRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);
/// A key that was taken when we inserted and gone when we looked is free again.
const TRIES_MAX: u32 = 3;
/// Writer tasks, and rows in one statement: as in tbd.
const WRITERS: usize = 2;
const ROWS_MAX: usize = 64;
/// Rows that may wait for a writer.
const WAITING_MAX: usize = 4096;

/// Everything that is written when a new order is accepted.
#[derive(Clone)]
pub struct Submission {
    /// The client's key.
    pub key: String,
    /// SHA-256 over the meaning of the request.
    pub request_hash: [u8; 32],
    /// The new order.
    pub order: Order,
    /// The answer to store.
    pub response: StoredResponse,
    /// The event to publish.
    pub message: Message,
    /// How long the key is kept.
    pub ttl: Duration,
}

/// A submission under way to a writer.
struct Waiting {
    submission: Arc<Submission>,
    deadline: Deadline,
    parent: Context,
    answer: oneshot::Sender<Result<Written, DatabaseError>>,
}

enum Written {
    Once(Once),
    /// To be looked at on its own.
    Alone,
}

/// Orders, keys and outbox. Clones share the pool.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    namespace: Arc<str>,
    metrics: DatabaseMetrics,
    statements: Arc<Named>,
    writers: Option<mpsc::Sender<Waiting>>,
}

/// tbd's statements, by the names it gives them.
struct Named {
    submit: Statement,
    submit_many: Statement,
    known: Statement,
    sweep: Statement,
    get: Statement,
    list: Statement,
    list_by_status: Statement,
    replace: Statement,
    start: Statement,
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
            start: named("UPDATE orders processing"),
            look: named("SELECT orders by id"),
            retry: named("UPDATE orders retried"),
            complete: named("UPDATE orders completed"),
            fail: named("UPDATE order failed"),
            take: named("SELECT outbox"),
            remove: named("DELETE outbox"),
            backlog: named("SELECT outbox backlog"),
        }
    }
}

impl Store {
    /// A store on the database of `settings`; its gauges are read at each scrape. With `coalesce`, starts the writer
    /// tasks.
    pub fn new(
        settings: &DatabaseSettings,
        application: &str,
        coalesce: bool,
        metrics: &Metrics,
    ) -> Self {
        let mut config = Config::new();
        config
            .host(&settings.host)
            .port(settings.port)
            .user(&settings.user)
            .password(settings.password.expose())
            .dbname(&settings.name)
            .application_name(application)
            .options(OPTIONS)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(Duration::from_secs(10));
        // Fast: no round trip at check-out; a broken connection shows itself by its closed channel.
        let manager = ManagerConfig {
            recycling_method: RecyclingMethod::Fast,
        };
        let lifetime = settings.conn_max_lifetime;
        let too_old = Hook::sync_fn(move |_, stats| match stats.created.elapsed() < lifetime {
            true => Ok(()),
            false => Err(HookError::message("older than DB_CONN_MAX_LIFETIME")),
        });
        let pool = Pool::builder(Manager::from_config(config, NoTls, manager))
            .max_size(settings.max_conns as usize)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(CONNECT_TIMEOUT))
            .pre_recycle(too_old)
            .build()
            // Fails only without a runtime, which is named above.
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
        let mut store = Self {
            pool,
            namespace: format!("{}|public", settings.name).into(),
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

    /// Stores key, order and event together, or tells what the key stands for.
    pub async fn submit(
        &self,
        submission: Submission,
        deadline: Deadline,
    ) -> Result<Once, StoreError> {
        let submission = Arc::new(submission);
        let Some(writers) = &self.writers else {
            return self.submit_alone(&submission, deadline).await;
        };
        let (answer, answered) = oneshot::channel();
        let row = Waiting {
            submission: Arc::clone(&submission),
            deadline,
            parent: Context::current(),
            answer,
        };
        let unavailable = |why: &str| StoreError::Unavailable(why.to_owned());
        let done = async {
            writers
                .send(row)
                .await
                .map_err(|_| unavailable("the writers have ended"))?;
            answered
                .await
                .map_err(|_| unavailable("the outcome is not known"))
        };
        let written = timeout_at(deadline.instant().into(), done)
            .await
            .map_err(|_| unavailable("no writer was free in time"))??;
        match written? {
            Written::Once(once) => Ok(once),
            Written::Alone => self.submit_alone(&submission, deadline).await,
        }
    }

    /// A writer task: takes what has gathered, writes it in one statement.
    async fn write_all(self, receiver: Arc<Mutex<mpsc::Receiver<Waiting>>>) {
        let mut later: Vec<Waiting> = Vec::new();
        loop {
            let mut rows = std::mem::take(&mut later);
            {
                let mut receiver = receiver.lock().await;
                if rows.is_empty() {
                    if receiver.recv_many(&mut rows, ROWS_MAX).await == 0 {
                        return;
                    }
                } else {
                    while rows.len() < ROWS_MAX
                        && let Ok(row) = receiver.try_recv()
                    {
                        rows.push(row);
                    }
                }
            }
            // Of each key one only; the next waits for it.
            let mut keys = HashSet::new();
            let (batch, rest): (Vec<Waiting>, Vec<Waiting>) = rows
                .into_iter()
                .partition(|row| keys.insert(row.submission.key.clone()));
            later = rest;
            self.write(batch).await;
        }
    }

    async fn write(&self, batch: Vec<Waiting>) {
        let Some(first) = batch.first() else { return };
        let (deadline, parent) = (first.deadline, first.parent.clone());
        let submissions: Vec<Arc<Submission>> = batch
            .iter()
            .map(|row| Arc::clone(&row.submission))
            .collect();
        let written = match &submissions[..] {
            [alone] => {
                let once = self.run_in(
                    &parent,
                    self.statements.submit,
                    deadline,
                    |client: Object| async move { self.submit_one(&client, alone).await },
                );
                once.await
                    .map(|once| vec![once.map_or(Written::Alone, Written::Once)])
            }
            many => {
                let work = |client: Object| async move { self.submit_many(&client, many).await };
                self.run_in(&parent, self.statements.submit_many, deadline, work)
                    .await
            }
        };
        match written {
            Ok(written) => {
                for (row, written) in batch.into_iter().zip(written) {
                    let _ = row.answer.send(Ok(written));
                }
            }
            // No row is at fault: each caller is told. Anything else may be one row's alone.
            Err(error) => {
                for row in batch {
                    let _ = row.answer.send(match error.is_unavailable() {
                        true => Err(error.clone()),
                        false => Ok(Written::Alone),
                    });
                }
            }
        }
    }

    async fn submit_alone(
        &self,
        submission: &Submission,
        deadline: Deadline,
    ) -> Result<Once, StoreError> {
        let submitted = self.run(
            self.statements.submit,
            deadline,
            |client: Object| async move {
                for _ in 0..TRIES_MAX {
                    if let Some(once) = self.submit_one(&client, submission).await? {
                        return Ok(once);
                    }
                }
                Ok(Once::Running)
            },
        );
        match submitted.await {
            Err(DatabaseError::LockTimeout) => Ok(Once::Running),
            other => Ok(other?),
        }
    }

    async fn submit_one(
        &self,
        client: &Object,
        row: &Submission,
    ) -> Result<Option<Once>, DatabaseError> {
        let status = valid(i16::try_from(row.response.status))?;
        let found = self
            .query(
                client,
                self.statements.submit,
                &[
                    &row.key,
                    &&row.request_hash[..],
                    &status,
                    &row.response.body,
                    &row.order.id.0,
                    &row.ttl.as_secs_f64(),
                    &row.order.customer_email.as_str(),
                    &row.order.amount.get(),
                    &row.order.created_at,
                    &&row.message.payload[..],
                    &row.message.traceparent,
                ],
            )
            .await?;
        if let Some(found) = found.first()
            && let Written::Once(once) = outcome(found, row)?
        {
            return Ok(Some(once));
        }
        let found = self
            .query(client, self.statements.known, &[&row.key])
            .await?;
        found.first().map(|found| known(found, row)).transpose()
    }

    async fn submit_many(
        &self,
        client: &Object,
        rows: &[Arc<Submission>],
    ) -> Result<Vec<Written>, DatabaseError> {
        fn gather<'a, T>(rows: &'a [Arc<Submission>], of: impl Fn(&'a Submission) -> T) -> Vec<T> {
            rows.iter().map(|row| of(row)).collect()
        }
        let statuses: Vec<i16> = rows
            .iter()
            .map(|row| valid(i16::try_from(row.response.status)))
            .collect::<Result<_, _>>()?;
        let found = self
            .query(
                client,
                self.statements.submit_many,
                &[
                    &gather(rows, |row| row.key.as_str()),
                    &gather(rows, |row| &row.request_hash[..]),
                    &statuses,
                    &gather(rows, |row| &row.response.body[..]),
                    &gather(rows, |row| row.order.id.0),
                    &gather(rows, |row| row.ttl.as_secs_f64()),
                    &gather(rows, |row| row.order.customer_email.as_str()),
                    &gather(rows, |row| row.order.amount.get()),
                    &gather(rows, |row| row.order.created_at),
                    &gather(rows, |row| &row.message.payload[..]),
                    &gather(rows, |row| row.message.traceparent.as_deref()),
                ],
            )
            .await?;
        found
            .iter()
            .zip(rows)
            .map(|(found, row)| outcome(found, row))
            .collect()
    }

    /// Deletes up to `limit` expired keys.
    pub async fn sweep(&self, limit: u32, deadline: Deadline) -> Result<u64, StoreError> {
        let statement = self.statements.sweep;
        let work = |client: Object| async move {
            self.execute(&client, statement, &[&i64::from(limit)]).await
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// The order, if there is one.
    pub async fn get(&self, id: OrderId, deadline: Deadline) -> Result<Option<Order>, StoreError> {
        let statement = self.statements.get;
        let work = |client: Object| async move {
            self.query(&client, statement, &[&id.0])
                .await?
                .first()
                .map(order)
                .transpose()
        };
        Ok(self.run(statement, deadline, work).await?)
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
        let work = |client: Object| async move {
            let rows = match status {
                None => {
                    self.query(&client, statement, &[before, skip, limit])
                        .await?
                }
                Some(status) => {
                    self.query(&client, statement, &[before, skip, limit, status])
                        .await?
                }
            };
            rows.iter().map(order).collect()
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// Replaces `old` by `new` if the order still is as `old` says; whether it was.
    pub async fn replace(
        &self,
        old: &Order,
        new: &Order,
        deadline: Deadline,
    ) -> Result<bool, StoreError> {
        let statement = self.statements.replace;
        let work = |client: Object| async move {
            let parameters: [&(dyn ToSql + Sync); 5] = [
                &old.id.0,
                &new.status.as_str(),
                &new.updated_at,
                &old.status.as_str(),
                &old.updated_at,
            ];
            self.execute(&client, statement, &parameters).await
        };
        Ok(self.run(statement, deadline, work).await? == 1)
    }

    /// Takes up the pending ones of `ids`, and tells how each of `ids` then stands.
    pub async fn start_processing(
        &self,
        ids: &[OrderId],
        deadline: Deadline,
    ) -> Result<Vec<Started>, StoreError> {
        let (wanted, now) = (&uuids(ids), &Timestamp::now());
        let statement = self.statements.start;
        let work = |client: Object| async move {
            self.query(&client, statement, &[wanted, now])
                .await?
                .iter()
                .map(started)
                .collect()
        };
        let mut found: Vec<Started> = self.run(statement, deadline, work).await?;
        if found.len() < ids.len() {
            let missing: &Vec<Uuid> = &wanted
                .iter()
                .copied()
                .filter(|id| found.iter().all(|started| started.order.id.0 != *id))
                .collect();
            let statement = self.statements.look;
            let work = |client: Object| async move {
                self.query(&client, statement, &[missing])
                    .await?
                    .iter()
                    .map(started)
                    .collect()
            };
            let rest: Vec<Started> = self.run(statement, deadline, work).await?;
            found.extend(rest);
        }
        Ok(found)
    }

    /// Moves failed orders whose message was replayed since back to `processing`.
    pub async fn retry_failed(
        &self,
        chances: &[SecondChance],
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let ids: &Vec<Uuid> = &chances.iter().map(|chance| chance.id.0).collect();
        let replayed: &Vec<Timestamp> = &chances.iter().map(|chance| chance.replayed_at).collect();
        let (statement, now) = (self.statements.retry, &Timestamp::now());
        let work = |client: Object| async move {
            self.execute(&client, statement, &[ids, replayed, now])
                .await
        };
        self.run(statement, deadline, work).await?;
        Ok(())
    }

    /// Moves those of `ids` that are `processing` to `completed`; the orders moved.
    pub async fn complete(
        &self,
        ids: &[OrderId],
        deadline: Deadline,
    ) -> Result<Vec<Order>, StoreError> {
        let (ids, now) = (&uuids(ids), &Timestamp::now());
        let statement = self.statements.complete;
        let work = |client: Object| async move {
            self.query(&client, statement, &[ids, now])
                .await?
                .iter()
                .map(order)
                .collect()
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// Moves the order, if it is `processing`, to `failed`; the order, if it was.
    pub async fn fail(
        &self,
        id: OrderId,
        reason: &str,
        deadline: Deadline,
    ) -> Result<Option<Order>, StoreError> {
        let (statement, now) = (self.statements.fail, &Timestamp::now());
        let work = |client: Object| async move {
            self.query(&client, statement, &[&id.0, &reason, now])
                .await?
                .first()
                .map(order)
                .transpose()
        };
        Ok(self.run(statement, deadline, work).await?)
    }

    /// Takes up to `limit` events older than `min_age`, publishes them, removes those that were acknowledged; the number
    /// taken, and of these removed. `publish` tells which were acknowledged.
    pub async fn relay<F>(
        &self,
        limit: u32,
        min_age: Duration,
        deadline: Deadline,
        publish: impl Fn(Vec<Message>) -> F,
    ) -> Result<(usize, usize), StoreError>
    where
        F: Future<Output = Vec<OrderId>>,
    {
        let publish = &publish;
        let Named { take, remove, .. } = *self.statements;
        let work = |client: Object| async move {
            // Plain BEGIN and COMMIT: a transaction object would borrow the connection for itself.
            client.batch_execute("BEGIN").await?;
            let taken = async {
                let rows = self
                    .query(&client, take, &[&min_age.as_secs_f64(), &i64::from(limit)])
                    .await?;
                let messages: Vec<Message> = rows.iter().map(message).collect::<Result<_, _>>()?;
                let taken = messages.len();
                let acknowledged = publish(messages).await;
                if !acknowledged.is_empty() {
                    self.execute(&client, remove, &[&uuids(&acknowledged)])
                        .await?;
                }
                Ok::<_, DatabaseError>((taken, acknowledged.len()))
            };
            let taken = taken.await;
            client
                .batch_execute(if taken.is_ok() { "COMMIT" } else { "ROLLBACK" })
                .await?;
            taken
        };
        Ok(self.run(take, deadline, work).await?)
    }

    /// Removes the events of `order_ids`.
    pub async fn remove(
        &self,
        order_ids: &[OrderId],
        deadline: Deadline,
    ) -> Result<(), StoreError> {
        let (statement, ids) = (self.statements.remove, &uuids(order_ids));
        let work = |client: Object| async move { self.execute(&client, statement, &[ids]).await };
        self.run(statement, deadline, work).await?;
        Ok(())
    }

    /// How much waits in the outbox.
    pub async fn backlog(&self, deadline: Deadline) -> Result<Backlog, StoreError> {
        let statement = self.statements.backlog;
        let work = |client: Object| async move {
            match self.query(&client, statement, &[]).await?.first() {
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
        work: impl Fn(Object) -> F,
    ) -> Result<T, DatabaseError>
    where
        F: Future<Output = Result<T, DatabaseError>>,
    {
        self.run_in(&Context::current(), statement, deadline, work)
            .await
    }

    /// Runs `work` on a connection, and again on a fresh one after a transient error, until `deadline` at most.
    async fn run_in<T, F>(
        &self,
        parent: &Context,
        statement: Statement,
        deadline: Deadline,
        work: impl Fn(Object) -> F,
    ) -> Result<T, DatabaseError>
    where
        F: Future<Output = Result<T, DatabaseError>>,
    {
        let span = self.span(parent, statement);
        let mut tries = 0;
        let result = loop {
            let tried = bounded(deadline, async {
                let client = self.client().await?;
                work(client).await
            });
            match tried.await {
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
            if let Some(sqlstate) = error.sqlstate() {
                span.set(semconv::DB_RESPONSE_STATUS_CODE, sqlstate.to_owned());
            }
            span.fail(error.kind(), &error.to_string());
        }
        result
    }

    fn span(&self, parent: &Context, statement: Statement) -> DetachedSpan {
        detached_span_in(
            parent,
            statement.name(),
            SpanKind::Client,
            || {
                [
                    KeyValue::new(semconv::DB_SYSTEM_NAME, semconv::POSTGRESQL),
                    KeyValue::new(semconv::DB_NAMESPACE, self.namespace.to_string()),
                    KeyValue::new(semconv::DB_QUERY_SUMMARY, statement.name()),
                    KeyValue::new(semconv::DB_QUERY_TEXT, statement.sql()),
                ]
            },
            Vec::new(),
        )
    }

    async fn client(&self) -> Result<Object, DatabaseError> {
        let begun = Instant::now();
        let client = self.pool.get().await;
        self.metrics.wait.observe(begun.elapsed().as_secs_f64());
        client.map_err(|error| match error {
            PoolError::Backend(error) => error.into(),
            other => DatabaseError::Unavailable {
                location: "the pool".to_owned(),
                reason: other.to_string(),
            },
        })
    }

    async fn query(
        &self,
        client: &Object,
        statement: Statement,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, DatabaseError> {
        self.measured(statement, async {
            let prepared = client.prepare_cached(statement.sql()).await?;
            client.query(&prepared, parameters).await
        })
        .await
    }

    async fn execute(
        &self,
        client: &Object,
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

/// `work`, given up at `deadline`.
async fn bounded<T>(
    deadline: Deadline,
    work: impl Future<Output = Result<T, DatabaseError>>,
) -> Result<T, DatabaseError> {
    timeout_at(deadline.instant().into(), work)
        .await
        .unwrap_or(Err(DatabaseError::StatementTimeout))
}

/// What the statement says of one row.
fn outcome(found: &Row, row: &Submission) -> Result<Written, DatabaseError> {
    if column(found, "is_first")? {
        return Ok(Written::Once(Once::First));
    }
    match column::<Option<Uuid>>(found, "order_id")? {
        Some(_) => known(found, row).map(Written::Once),
        None => Ok(Written::Alone),
    }
}

/// What a key found in the table means for this row.
fn known(found: &Row, row: &Submission) -> Result<Once, DatabaseError> {
    let order_id = OrderId(column(found, "order_id")?);
    if order_id == row.order.id {
        return Ok(Once::First);
    }
    if column::<&[u8]>(found, "request_hash")? != row.request_hash {
        return Ok(Once::OtherRequest);
    }
    let status: i16 = column(found, "response_status")?;
    let payload: Option<Vec<u8>> = column(found, "payload")?;
    let traceparent = column(found, "traceparent")?;
    Ok(Once::Again {
        response: StoredResponse {
            status: valid(u16::try_from(status))?,
            body: column(found, "response_body")?,
            order_id,
        },
        unpublished: payload.map(|payload| Message {
            kind: EventKind::Created,
            order_id,
            payload: payload.into(),
            traceparent,
        }),
    })
}

fn started(row: &Row) -> Result<Started, DatabaseError> {
    Ok(Started {
        order: order(row)?,
        failure_reason: column(row, "failure_reason")?,
    })
}

fn message(row: &Row) -> Result<Message, DatabaseError> {
    Ok(Message {
        kind: EventKind::Created,
        order_id: OrderId(column(row, "order_id")?),
        payload: column::<Vec<u8>>(row, "payload")?.into(),
        traceparent: column(row, "traceparent")?,
    })
}
