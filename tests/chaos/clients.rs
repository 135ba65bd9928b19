//! Customers of the chaos test: each orders, retries with the same key until the answer is 202, asks
//! for old answers again, cancels some orders, and abandons some. The system must keep every promise
//! in an answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::audit;
use crate::journal::Journal;
use crate::site::Site;
use crate::support::http::{Request, Response, get, post};
use crate::support::{eventually, unique};

const CUSTOMERS: u64 = 16;
/// From an answer to a customer's next order: about 30 orders a second without faults.
const BETWEEN_MS: std::ops::Range<u64> = 200..700;
/// Before a refused customer retries.
const AGAIN_MS: std::ops::Range<u64> = 200..1000;
/// A customer without an answer for this long after the last fault reports a violation: a breaker's
/// 30 s, a request's 30 s, and again.
const PATIENCE: Duration = Duration::from_secs(100);
/// The limit for the system to become calm.
const CALM: Duration = Duration::from_secs(60);
/// Orders in a calm round, after all faults.
const CALM_ORDERS: usize = 40;
/// Canceled orders whose customers do not get the answer.
const UNHEARD: usize = 10;

pub struct Shop {
    seed: u64,
}

/// The actions of one customer.
#[derive(Default)]
pub struct Customer {
    pub orders: Vec<Ordered>,
    pub counts: Counts,
}

#[derive(Default)]
pub struct Counts {
    refused: usize,
    broken: usize,
    replayed: usize,
    looked: usize,
}

/// A request for an order, and its answers.
pub struct Ordered {
    /// Also the mailbox of the order's address, so that an order identifies its key.
    pub key: String,
    pub amount_cents: u64,
    /// The first 202.
    pub answer: Option<Vec<u8>>,
    pub id: String,
    pub cancellation: Cancellation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    NotAsked,
    Done,
    /// Processing had begun.
    TooLate,
    /// No answer.
    Unknown,
}

/// The customer's address in the order of a key.
pub fn email(key: &str) -> String {
    format!("{key}@chaos.example")
}

/// The customers' experience, in one line.
pub fn tally(customers: &[Customer]) -> String {
    let orders = || customers.iter().flat_map(|customer| &customer.orders);
    let sum =
        |count: fn(&Counts) -> usize| customers.iter().map(|c| count(&c.counts)).sum::<usize>();
    let canceled = |how| orders().filter(|order| order.cancellation == how).count();
    format!(
        "{} orders accepted, {} given up; {} requests refused, {} broken off; {} replays, {} looks; {} canceled, {} too late",
        orders().filter(|order| order.answer.is_some()).count(),
        orders().filter(|order| order.answer.is_none()).count(),
        sum(|counts| counts.refused),
        sum(|counts| counts.broken),
        sum(|counts| counts.replayed),
        sum(|counts| counts.looked),
        canceled(Cancellation::Done),
        canceled(Cancellation::TooLate),
    )
}

impl Shop {
    pub fn new(seed: u64) -> Shop {
        Shop { seed }
    }

    /// Starts the customers; they order until `over`, and finish open requests.
    pub fn open<'scope, 'env>(
        &self,
        scope: &'scope Scope<'scope, 'env>,
        site: &'env Site,
        journal: &'env Journal,
        over: &'env AtomicBool,
    ) -> Vec<ScopedJoinHandle<'scope, Customer>> {
        let seeds = (0..CUSTOMERS).map(|number| self.seed ^ (number << 32));
        let visits = seeds.map(|seed| {
            let visit = Visit::new(seed, site, journal, over);
            scope.spawn(move || visit.run())
        });
        visits.collect()
    }

    /// A customer who cancels orders that no worker takes up. The database cancels each, and its answer
    /// gets lost. By chance this is rare, because orders are pending for some milliseconds only.
    pub fn cancel_unheard(&self, site: &Site, journal: &Journal, over: &AtomicBool) -> Customer {
        let mut visit = Visit::new(self.seed, site, journal, over);
        // Otherwise a worker would stay frozen for as long as an api refuses.
        eventually(PATIENCE, "the circuit breakers to close", || {
            let mut ordered = visit.next_order();
            visit.order(&mut ordered);
            visit.me.orders.push(ordered);
            site.breakers_are_closed().then_some(())
        });
        site.while_workers_are_frozen(|| {
            for _ in 0..UNHEARD {
                let mut ordered = visit.next_order();
                visit.order(&mut ordered);
                site.lose_the_answer_to_a_cancellation(|| visit.cancel(&mut ordered));
                visit.me.orders.push(ordered);
            }
        });
        journal.say(&format!(
            "{UNHEARD} orders canceled, the database's answer lost"
        ));
        visit.me
    }

    /// After the last fault, everything must happen exactly once, at the first attempt. An open breaker
    /// may last half a minute more, and events from an outage may repeat for some seconds. The check
    /// therefore has a time limit.
    pub fn calm(&self, site: &Site, journal: &Journal) {
        let begun = Instant::now();
        loop {
            match calm_round(site) {
                Ok(()) => {
                    return journal.say(&format!("{CALM_ORDERS} orders in calm, each event once"));
                }
                Err(what) if begun.elapsed() > CALM => {
                    return journal.violation(&format!("it does not become calm again: {what}"));
                }
                Err(_) => thread::sleep(Duration::from_secs(1)),
            }
        }
    }
}

fn calm_round(site: &Site) -> Result<(), String> {
    let mut ids = Vec::new();
    for _ in 0..CALM_ORDERS {
        let (key, address) = (unique("calm"), site.edge.address());
        let answer = new_order(&key, 1)
            .try_send(&address)
            .map_err(|error| error.to_string())?;
        if answer.status != 202 {
            let (status, text) = (answer.status, answer.text());
            return Err(format!("{status} to an order: {text}"));
        }
        let id = answer.json()["id"].as_str().unwrap_or_default().to_owned();
        ids.push(id);
    }
    let list = ids
        .iter()
        .map(|id| format!("'{id}'"))
        .collect::<Vec<_>>()
        .join(",");
    let ended = format!(
        "SELECT count(*) FROM orders WHERE id IN ({list}) AND status IN ('completed', 'failed')"
    );
    eventually(PATIENCE, "the orders of calm days to end", || {
        (site.stack.number(&ended) == CALM_ORDERS as i64).then_some(())
    });
    let mut last = None;
    // The final status precedes its announcement.
    for _ in 0..20 {
        match audit::each_event_once(site, &ids) {
            Ok(()) => return Ok(()),
            Err(what) => last = Some(what),
        }
        thread::sleep(Duration::from_millis(250));
    }
    Err(last.unwrap_or_default())
}

fn new_order(key: &str, amount_cents: u64) -> Request {
    let body = json!({ "customer_email": email(key), "amount_cents": amount_cents });
    post("/v1/orders")
        .header("Idempotency-Key", key)
        .json(body.to_string())
}

/// A client's reading of an answer.
enum Said {
    Yes(Response),
    No(Response),
    /// Retry: refused for now, or no answer.
    Later,
    /// No answer for longer than [`PATIENCE`] after the last fault.
    Never,
}

struct Visit<'a> {
    site: &'a Site,
    journal: &'a Journal,
    over: &'a AtomicBool,
    random: fastrand::Rng,
    /// Set once the faults are over.
    deadline: Option<Instant>,
    me: Customer,
}

impl<'a> Visit<'a> {
    fn new(seed: u64, site: &'a Site, journal: &'a Journal, over: &'a AtomicBool) -> Self {
        Visit {
            site,
            journal,
            over,
            random: fastrand::Rng::with_seed(seed),
            deadline: None,
            me: Customer::default(),
        }
    }

    fn next_order(&mut self) -> Ordered {
        Ordered {
            key: unique("chaos"),
            amount_cents: self.random.u64(1..1_000_000),
            answer: None,
            id: String::new(),
            cancellation: Cancellation::NotAsked,
        }
    }

    fn run(mut self) -> Customer {
        while !self.over.load(Ordering::SeqCst) {
            let mut ordered = self.next_order();
            match self.random.u32(..100) {
                // The answer does not matter.
                0..3 => {
                    let _ = self.once(new_order(&ordered.key, ordered.amount_cents));
                }
                3..10 => self.order_twice_at_once(&mut ordered),
                _ => self.order(&mut ordered),
            }
            if ordered.answer.is_some() {
                self.go_on(&mut ordered);
            }
            self.me.orders.push(ordered);
            self.pause(BETWEEN_MS);
        }
        self.me
    }

    /// The next action of a customer with an order.
    fn go_on(&mut self, ordered: &mut Ordered) {
        match self.random.u32(..100) {
            0..35 => self.cancel(ordered),
            35..45 => self.replay(ordered),
            45..50 => self.look(ordered),
            50..53 => self.order_something_else(ordered),
            53..70 if !self.me.orders.is_empty() => {
                let old = self.random.usize(..self.me.orders.len());
                let old = self.me.orders.swap_remove(old);
                if old.answer.is_some() {
                    self.replay(&old);
                }
                self.me.orders.push(old);
            }
            _ => {}
        }
    }

    fn order(&mut self, ordered: &mut Ordered) {
        let request = new_order(&ordered.key, ordered.amount_cents);
        if let Some(answer) = self.insist(&request, 202, "an order") {
            self.accept(ordered, answer);
        }
    }

    /// Two impatient clicks: the same answer to both.
    fn order_twice_at_once(&mut self, ordered: &mut Ordered) {
        let request = new_order(&ordered.key, ordered.amount_cents);
        let mut twin = Visit {
            random: self.random.fork(),
            me: Customer::default(),
            ..*self
        };
        let (first, second) = thread::scope(|scope| {
            let second = scope.spawn(|| twin.insist(&request, 202, "an order"));
            (
                self.insist(&request, 202, "an order"),
                second.join().expect("a twin"),
            )
        });
        if let (Some(first), Some(second)) = (&first, &second)
            && first.body != second.body
        {
            self.differs(&ordered.key, &first.body, &second.body);
        }
        if let Some(answer) = first.or(second) {
            self.accept(ordered, answer);
        }
    }

    fn accept(&mut self, ordered: &mut Ordered, answer: Response) {
        let order = answer.json();
        let is_mine = order["customer_email"] == email(&ordered.key)
            && order["amount_cents"] == ordered.amount_cents
            && order["status"] == "pending";
        if !is_mine {
            self.journal.violation(&format!(
                "key {}: another order is answered: {order}",
                ordered.key
            ));
        }
        ordered.id = order["id"].as_str().unwrap_or_default().to_owned();
        ordered.answer = Some(answer.body);
    }

    fn replay(&mut self, ordered: &Ordered) {
        let request = new_order(&ordered.key, ordered.amount_cents);
        let Some(answer) = self.insist(&request, 202, "a replay") else {
            return;
        };
        self.me.counts.replayed += 1;
        let original = ordered.answer.as_deref().unwrap_or_default();
        if answer.body != original {
            self.differs(&ordered.key, original, &answer.body);
        }
        if answer.header("Idempotent-Replayed") != Some("true") {
            self.journal
                .violation(&format!("key {}: a replay is not called one", ordered.key));
        }
    }

    fn differs(&self, key: &str, one: &[u8], other: &[u8]) {
        let text = String::from_utf8_lossy;
        self.journal.violation(&format!(
            "key {key}: two answers:\n  {}\n  {}",
            text(one),
            text(other)
        ));
    }

    fn order_something_else(&mut self, ordered: &Ordered) {
        let request = new_order(&ordered.key, ordered.amount_cents + 1);
        let _ = self.insist(&request, 422, "another order under the same key");
    }

    fn look(&mut self, ordered: &Ordered) {
        let request = get(format!("/v1/orders/{}", ordered.id));
        let Some(answer) = self.insist(&request, 200, "a look") else {
            return;
        };
        self.me.counts.looked += 1;
        let order: Value = answer.json();
        if order["customer_email"] != email(&ordered.key)
            || order["amount_cents"] != ordered.amount_cents
        {
            self.journal.violation(&format!(
                "key {}: another order is shown: {order}",
                ordered.key
            ));
        }
    }

    fn cancel(&mut self, ordered: &mut Ordered) {
        let request = post(format!("/v1/orders/{}/cancel", ordered.id));
        ordered.cancellation = loop {
            match self.ask(&request, 200, &[409]) {
                Said::Yes(answer) => {
                    if answer.json()["status"] != "canceled" {
                        self.journal
                            .violation(&format!("canceled, yet {}", answer.text()));
                    }
                    break Cancellation::Done;
                }
                Said::No(answer) if answer.status == 409 => break Cancellation::TooLate,
                Said::No(answer) => {
                    let (status, text) = (answer.status, answer.text());
                    self.journal
                        .violation(&format!("{status} to a cancellation: {text}"));
                    break Cancellation::Unknown;
                }
                Said::Later => self.pause(AGAIN_MS),
                Said::Never => break Cancellation::Unknown,
            }
        };
    }

    /// Retries until the answer has this status.
    fn insist(&mut self, request: &Request, status: u16, what: &str) -> Option<Response> {
        loop {
            // 409: a twin is still in flight.
            match self.ask(request, status, &[]) {
                Said::Yes(answer) => return Some(answer),
                Said::No(answer) => {
                    let (status, text) = (answer.status, answer.text());
                    self.journal
                        .violation(&format!("{status} to {what}: {text}"));
                    return None;
                }
                Said::Later => self.pause(AGAIN_MS),
                Said::Never => return None,
            }
        }
    }

    fn ask(&mut self, request: &Request, yes: u16, no: &[u16]) -> Said {
        match self.once(request.clone()) {
            Some(answer) if answer.status == yes => Said::Yes(answer),
            Some(answer) if no.contains(&answer.status) => Said::No(answer),
            // These may be refused for now; a 429 or a 500 is a violation.
            Some(answer) if !matches!(answer.status, 409 | 502 | 503 | 504) => Said::No(answer),
            refused => {
                match refused {
                    Some(_) => self.me.counts.refused += 1,
                    None => self.me.counts.broken += 1,
                }
                self.later(refused)
            }
        }
    }

    fn later(&mut self, refused: Option<Response>) -> Said {
        if !self.over.load(Ordering::SeqCst) {
            return Said::Later;
        }
        let deadline = *self
            .deadline
            .get_or_insert_with(|| Instant::now() + PATIENCE);
        if Instant::now() < deadline {
            return Said::Later;
        }
        let last = refused.map_or("nothing".to_owned(), |answer| answer.text());
        self.journal.violation(&format!(
            "no answer {PATIENCE:?} after the last fault; the last was {last}"
        ));
        Said::Never
    }

    fn once(&self, request: Request) -> Option<Response> {
        request.try_send(&self.site.edge.address()).ok()
    }

    fn pause(&mut self, range_ms: std::ops::Range<u64>) {
        thread::sleep(Duration::from_millis(self.random.u64(range_ms)));
    }
}
