//! Customers: each orders, comes again under the same key until it is told 202, asks again for old answers, cancels some
//! orders, and gives some up. What they were told is what they may rely on.

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
/// From an answer to a customer's next order: about 30 orders a second while all is well.
const BETWEEN_MS: std::ops::Range<u64> = 200..700;
/// Before a customer who was refused comes again.
const AGAIN_MS: std::ops::Range<u64> = 200..1000;
/// A customer who gets no answer for so long after the last fault complains: a breaker's 30 s, a request's 30 s, and again.
const PATIENCE: Duration = Duration::from_secs(100);
/// By when it is calm.
const CALM: Duration = Duration::from_secs(60);
/// Orders while nothing fails any more.
const CALM_ORDERS: usize = 40;
/// Orders whose customers are not told that they are canceled.
const UNHEARD: usize = 10;

pub struct Shop {
    seed: u64,
}

/// What one customer did.
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

/// A request for an order, and what was said to it.
pub struct Ordered {
    /// Also the mailbox of the order's address, so that an order tells its key.
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
    /// Nobody answered.
    Unknown,
}

/// What the address of a key's order is.
pub fn email(key: &str) -> String {
    format!("{key}@chaos.example")
}

/// What customers saw, in one line.
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

    /// Starts the customers; they come until `over`, and finish what they have begun.
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

    /// A customer whose orders no worker takes up and who cancels each: the database does it, and its answer gets lost. By
    /// chance this is rare: orders are pending for some milliseconds only.
    pub fn cancel_unheard(&self, site: &Site, journal: &Journal, over: &AtomicBool) -> Customer {
        let mut visit = Visit::new(self.seed, site, journal, over);
        // Lest a worker be frozen for as long as an api refuses.
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

    /// Once nothing fails any more, everything happens exactly once, at the first try. A breaker may have half a minute to
    /// go, and what an outage left may come a second time for some seconds yet, so this is asked for within a time.
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
    // Ended comes before announced.
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

/// What a client makes of an answer.
enum Said {
    Yes(Response),
    No(Response),
    /// Try again: refused for now, or no answer at all.
    Later,
    /// Nobody said anything for longer than [`PATIENCE`] after the last fault.
    Never,
}

struct Visit<'a> {
    site: &'a Site,
    journal: &'a Journal,
    over: &'a AtomicBool,
    random: fastrand::Rng,
    /// Once the faults are over.
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
                // Whatever comes of it.
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

    /// What a customer with an order does next.
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

    /// Comes again until the answer is this.
    fn insist(&mut self, request: &Request, status: u16, what: &str) -> Option<Response> {
        loop {
            // 409 is a twin still under way.
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
            // What may be refused for now; a 429 or a 500 may not.
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
