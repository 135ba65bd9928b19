//! The participants of sagas under test, and the programs that know them.

use std::time::Duration;

use serde_json::Value;

use crate::eventually;
use crate::http::get;
use crate::program::{PARTICIPANT, Program, Stack, free_port};

/// A participant with a database of its own. It keeps its ports when it is started again.
pub struct Service {
    stack: Stack,
    name: &'static str,
    http: u16,
    grpc: u16,
    initial_stock: i64,
    /// The running program.
    pub program: Program,
}

impl Service {
    /// A ready participant with these variables.
    pub fn start(name: &'static str, variables: &[(&str, &str)]) -> Service {
        let set = |stack: Stack, (name, value): &(&str, &str)| stack.set(name, value);
        let stack = variables.iter().fold(Stack::new(), set);
        let initial = variables
            .iter()
            .find(|(name, _)| *name == "INVENTORY_STOCK");
        let (http, grpc) = (free_port(), free_port());
        let program = run(&stack, name, http, grpc).ready();
        Service {
            stack,
            name,
            http,
            grpc,
            initial_stock: initial.map_or(1_000_000, |(_, units)| units.parse().expect("units")),
            program,
        }
    }

    /// Starts it once more, after it was killed; it is ready soon.
    pub fn restart(&mut self) {
        self.program = run(&self.stack, self.name, self.http, self.grpc);
    }

    /// `host:port` of its gRPC server.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.grpc)
    }

    /// `inventory` or `payments`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Runs statements in its database.
    pub fn execute(&self, statements: &str) {
        self.stack.execute(statements);
    }

    fn audit(&self, path: &str) -> Value {
        let response = get(path).send(&self.program.address());
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }
}

fn run(stack: &Stack, name: &str, http: u16, grpc: u16) -> Program {
    let mut command = stack.command(PARTICIPANT);
    command
        .env("PARTICIPANT", name)
        .env("PARTICIPANT_HOST", "127.0.0.1")
        .env("HTTP_PORT", http.to_string())
        .env("GRPC_PORT", grpc.to_string());
    Program::start(command, http)
}

/// Units that are lost (or, below 0, made), held and sold, and payments that are authorized and captured.
pub fn books(inventory: &Service, payments: &Service) -> [i64; 5] {
    let stock = inventory.audit("/v1/stock");
    let totals = payments.audit("/v1/totals");
    let units = |of: &str| stock[of].as_i64().expect("units");
    let count = |of: &str| totals[of]["count"].as_i64().expect("a count");
    let (held, sold) = (units("held"), units("sold"));
    let lost = inventory.initial_stock - units("available") - held - sold;
    [lost, held, sold, count("authorized"), count("captured")]
}

/// A database and topics, an api, and both participants. The test starts the workers.
pub struct Site {
    /// Database, topics, and the variables of further programs.
    pub stack: Stack,
    /// The api.
    pub api: Program,
    /// The stock.
    pub inventory: Service,
    /// The payments.
    pub payments: Service,
}

impl Site {
    /// With these variables for the participants.
    pub fn new(variables: &[(&str, &str)]) -> Site {
        Site::on(Stack::new(), variables)
    }

    /// With these variables for the participants, and those of `stack` for api and workers.
    pub fn on(stack: Stack, variables: &[(&str, &str)]) -> Site {
        let inventory = Service::start("inventory", variables);
        let payments = Service::start("payments", variables);
        let stack = stack
            .set("WORKER_WORKFLOW", "saga")
            .set("INVENTORY_ADDRESS", &inventory.address())
            .set("PAYMENTS_ADDRESS", &payments.address());
        Site {
            api: stack.api(),
            stack,
            inventory,
            payments,
        }
    }

    /// Posts an order; its id.
    pub fn order(&self, amount_cents: u64) -> String {
        let response = self.api.order(&crate::unique("key"), amount_cents);
        assert_eq!(response.status, 202, "{}", response.text());
        crate::program::id(&response.json()).to_owned()
    }

    /// The response about the saga of an order.
    pub fn saga(&self, id: &str) -> Value {
        let response = get(format!("/v1/orders/{id}/saga")).send(&self.api.address());
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }

    /// Units that are held and sold, payments that are authorized and captured.
    pub fn books(&self) -> [i64; 4] {
        let [lost, books @ ..] = books(&self.inventory, &self.payments);
        assert_eq!(lost, 0, "no unit is lost or made");
        books
    }

    /// Waits until no order is pending or processing, and no saga unfinished.
    pub fn settle(&self, limit: Duration) {
        eventually(limit, "every order to end", || {
            let open = "SELECT (SELECT count(*) FROM orders WHERE status IN ('pending', 'processing'))
                             + (SELECT count(*) FROM sagas WHERE state IN ('running', 'compensating'))";
            (self.stack.number(open) == 0).then_some(())
        });
    }
}
