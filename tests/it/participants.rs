//! The participants of the saga: their ledger on a real PostgreSQL, and the program from outside.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command as Process;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;
use tbd::participants::adapters::migrations::embedded;
use tbd::participants::adapters::postgres::PostgresLedger;
use tbd::participants::domain::{Action, Answer, Command, Participant};
use tbd::participants::ports::Ledger;
use tbd::proto::inventory::{self, inventory_service as inventories};
use tbd::proto::payments::{self, payments_service};
use tbd_deadline::Deadline;
use tbd_grpc::proto::google::rpc::{BadRequest, RetryInfo};
use tbd_grpc::proto::grpc::health::{
    HealthCheckRequest, health, health_check_response::ServingStatus,
};
use tbd_grpc::tls::{ClientTls, Identity, Roots};
use tbd_grpc::{Channel, Code, Metadata, Status};
use tbd_postgres::migrations::Migrator;
use tbd_postgres::{DatabaseConfig, Pool};
use uuid::Uuid;

use crate::support::certificates::{Authority, Files, Validity};
use crate::support::http::get;
use crate::support::program::{PARTICIPANT, Program, Stack, bare, run};
use crate::support::{self, Database, eventually, free_port, token};

const LONG: Duration = Duration::from_secs(60);

/// A participant with a database of its own, and a client.
pub struct Running {
    pub program: Program,
    grpc: String,
    pub stack: Stack,
}

fn command(stack: &Stack, name: &str) -> (Process, u16, String) {
    let (http, grpc) = (free_port(), free_port());
    let mut command = stack.command(PARTICIPANT);
    command
        .env("PARTICIPANT", name)
        .env("PARTICIPANT_HOST", "127.0.0.1")
        .env("HTTP_PORT", http.to_string())
        .env("GRPC_PORT", grpc.to_string());
    (command, http, format!("127.0.0.1:{grpc}"))
}

pub fn start(name: &str, variables: &[(&str, &str)]) -> Running {
    let set = |stack: Stack, (name, value): &(&str, &str)| stack.set(name, value);
    start_on(variables.iter().fold(Stack::new(), set), name)
}

/// A participant on the stack's database.
pub fn start_on(stack: Stack, name: &str) -> Running {
    let (command, http, grpc) = command(&stack, name);
    Running {
        program: Program::start(command, http).ready(),
        grpc,
        stack,
    }
}

impl Running {
    pub fn channel(&self) -> Channel {
        Channel::builder(&self.grpc).build()
    }

    fn audit(&self, path: &str) -> serde_json::Value {
        let response = get(path).send(&self.program.address());
        assert_eq!(response.status, 200, "{}", response.text());
        response.json()
    }
}

pub fn sagas<const N: usize>() -> [String; N] {
    std::array::from_fn(|_| Uuid::now_v7().to_string())
}

pub fn units(saga: &str, units: u32, amount_cents: i64) -> inventory::Command {
    inventory::Command {
        saga_id: saga.to_owned(),
        step: "step".to_owned(),
        units,
        amount_cents,
    }
}

fn payment(saga: &str, amount_cents: i64) -> payments::Command {
    payments::Command {
        saga_id: saga.to_owned(),
        step: "step".to_owned(),
        amount_cents,
    }
}

/// `done`, or the reason for the refusal, of each result.
fn stock_answers(results: Vec<inventory::Result>) -> Vec<String> {
    let answer = |result: inventory::Result| match result.outcome() {
        inventory::Outcome::Done => "done".to_owned(),
        _ => result.reason,
    };
    results.into_iter().map(answer).collect()
}

fn payment_answers(results: Vec<payments::Result>) -> Vec<String> {
    let answer = |result: payments::Result| match result.outcome() {
        payments::Outcome::Done => "done".to_owned(),
        _ => result.reason,
    };
    results.into_iter().map(answer).collect()
}

pub fn reserve(
    channel: &Channel,
    commands: Vec<inventory::Command>,
) -> Result<Vec<String>, Status> {
    let request = inventory::ReserveStockRequest { commands };
    let call = channel
        .call(inventories::RESERVE_STOCK)
        .deadline(Deadline::after(LONG));
    Ok(stock_answers(call.send(&request)?.results))
}

fn confirm(channel: &Channel, commands: Vec<inventory::Command>) -> Result<Vec<String>, Status> {
    let request = inventory::ConfirmReservationsRequest { commands };
    let call = channel.call(inventories::CONFIRM_RESERVATIONS);
    Ok(stock_answers(
        call.deadline(Deadline::after(LONG)).send(&request)?.results,
    ))
}

fn release(channel: &Channel, commands: Vec<inventory::Command>) -> Result<Vec<String>, Status> {
    let request = inventory::ReleaseReservationsRequest { commands };
    let call = channel.call(inventories::RELEASE_RESERVATIONS);
    Ok(stock_answers(
        call.deadline(Deadline::after(LONG)).send(&request)?.results,
    ))
}

#[test]
fn the_inventory_holds_sells_and_releases_each_once_and_repeats_its_answers() {
    let mut inventory = start("inventory", &[("INVENTORY_STOCK", "10")]);
    let channel = inventory.channel();
    let stock = |available, held, sold| json!({ "total": 10, "available": available, "held": held, "sold": sold });
    assert_eq!(inventory.audit("/v1/stock"), stock(10, 0, 0));

    let [a, b, c, late] = sagas();
    // One batch with a saga twice, an amount that is refused on purpose, and more units than there are.
    let batch = vec![
        units(&a, 2, 100),
        units(&a, 2, 100),
        units(&b, 1, 102),
        units(&c, 9, 100),
    ];
    let answers = ["done", "done", "out_of_stock", "out_of_stock"];
    for _ in 0..2 {
        assert_eq!(reserve(&channel, batch.clone()).unwrap(), answers);
        assert_eq!(inventory.audit("/v1/stock"), stock(8, 2, 0));
    }
    // A release overtakes its reservation.
    assert_eq!(
        release(&channel, vec![units(&late, 3, 100)]).unwrap(),
        ["done"]
    );
    assert_eq!(
        reserve(&channel, vec![units(&late, 3, 100)]).unwrap(),
        ["released"]
    );
    let confirmed = vec![units(&a, 2, 100), units(&b, 1, 102), units(&late, 3, 100)];
    for _ in 0..2 {
        let answers = ["done", "not_reserved", "not_reserved"];
        assert_eq!(confirm(&channel, confirmed.clone()).unwrap(), answers);
    }
    assert_eq!(
        release(&channel, vec![units(&a, 2, 100)]).unwrap(),
        ["sold"]
    );
    assert_eq!(reserve(&channel, batch).unwrap(), answers);
    assert_eq!(inventory.audit("/v1/stock"), stock(8, 0, 2));
    let count = |outcome| {
        let sample =
            format!("participant_commands_total{{outcome=\"{outcome}\",step=\"reserve\"}}");
        inventory.program.metric(&sample)
    };
    assert_eq!((count("done"), count("refused")), (Some(1.0), Some(2.0)));

    // Mistakes of the caller are named one by one, and nothing has an effect.
    let status = reserve(
        &channel,
        vec![units(&sagas::<1>()[0], 1, 1), units("7", 0, 1)],
    )
    .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let fields: Vec<String> = status
        .detail::<BadRequest>()
        .unwrap()
        .field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect();
    assert_eq!(fields, ["commands[1].saga_id", "commands[1].units"]);
    assert_eq!(inventory.audit("/v1/stock"), stock(8, 0, 2));

    // The health service follows /readyz, and the program stops cleanly.
    let asked = HealthCheckRequest {
        service: Participant::Inventory.service().to_owned(),
    };
    eventually(LONG, "the health service to say so", || {
        let call = channel.call(health::CHECK).deadline(Deadline::after(LONG));
        let status = call.send(&asked).unwrap().status();
        (status == ServingStatus::Serving).then_some(())
    });
    inventory.program.terminate();
    assert_eq!(inventory.program.wait(LONG).code(), Some(0));
}

#[test]
fn payments_are_authorized_captured_and_voided_and_a_late_answer_is_late_once() {
    let payments = start("payments", &[]);
    let channel = payments.channel();
    let authorize = |commands, limit| {
        let request = payments::AuthorizePaymentsRequest { commands };
        let call = channel.call(payments_service::AUTHORIZE_PAYMENTS);
        let response = call.deadline(Deadline::after(limit)).send(&request)?;
        Ok::<_, Status>(payment_answers(response.results))
    };
    let [a, b, c, late] = sagas();
    let batch = vec![
        payment(&a, 9_007_199_254_740_991),
        payment(&b, 200),
        payment(&c, 151),
    ];
    let answers = ["done", "done", "insufficient_funds"];
    assert_eq!(authorize(batch.clone(), LONG).unwrap(), answers);
    assert_eq!(authorize(batch, LONG).unwrap(), answers);

    // The answer misses its deadline. The effect does not, and the retry finds it at once.
    let status = authorize(vec![payment(&late, 319)], Duration::from_secs(2)).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(
        authorize(vec![payment(&late, 319)], Duration::from_secs(4)).unwrap(),
        ["done"]
    );

    let request = payments::CapturePaymentsRequest {
        commands: vec![payment(&a, 1), payment(&c, 151)],
    };
    let call = channel
        .call(payments_service::CAPTURE_PAYMENTS)
        .deadline(Deadline::after(LONG));
    assert_eq!(
        payment_answers(call.send(&request).unwrap().results),
        ["done", "not_authorized"]
    );
    let request = payments::VoidPaymentsRequest {
        commands: vec![payment(&a, 1), payment(&b, 1), payment(&c, 1)],
    };
    let call = channel
        .call(payments_service::VOID_PAYMENTS)
        .deadline(Deadline::after(LONG));
    assert_eq!(
        payment_answers(call.send(&request).unwrap().results),
        ["captured", "done", "done"]
    );
    let expected = json!({
        "authorized": { "count": 1, "amount_cents": 319 },
        "captured": { "count": 1, "amount_cents": 9_007_199_254_740_991_i64 },
        "voided": { "count": 1, "amount_cents": 200 },
    });
    assert_eq!(payments.audit("/v1/totals"), expected);
}

#[test]
fn failures_on_purpose_come_before_and_after_the_effect() {
    let inventory = start("inventory", &[("PARTICIPANT_FAILURE_RATE", "1")]);
    let channel = inventory.channel();
    for _ in 0..40 {
        let status = reserve(&channel, vec![units(&sagas::<1>()[0], 1, 1)]).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.detail::<RetryInfo>().is_some());
    }
    let held = inventory.audit("/v1/stock")["held"].as_i64().unwrap();
    assert!(
        (1..40).contains(&held),
        "{held} of 40 calls had their effect"
    );
}

#[test]
fn only_allowed_clients_with_a_valid_token_are_admitted() {
    let authority = Authority::new("participants");
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let issue = |name: &str| Some(authority.issue(name, Validity::Now));
    let server = authority.issue("127.0.0.1", Validity::Now);
    let inventory = start(
        "inventory",
        &[
            ("GRPC_TLS_CERT_FILE", &text(&server.certificate)),
            ("GRPC_TLS_KEY_FILE", &text(&server.key)),
            ("GRPC_TLS_CLIENT_CA_FILE", &text(&authority.ca_file())),
            ("ALLOWED_CLIENTS", "other.example,tbd-worker"),
            ("AUTH_JWT_HS256_SECRET", token::SECRET),
        ],
    );
    let reserve = |identity: Option<Files>, token: Option<&str>| {
        let identity = identity.map(|files| Identity::new(files.certificate, files.key));
        let tls = ClientTls::from_files(Roots::File(authority.ca_file()), identity).unwrap();
        let channel = Channel::builder(&inventory.grpc).tls(tls).build();
        let mut metadata = Metadata::new();
        if let Some(token) = token {
            metadata
                .insert_text("authorization", format!("Bearer {token}"))
                .unwrap();
        }
        let call = channel.call(inventories::RESERVE_STOCK).metadata(metadata);
        let request = inventory::ReserveStockRequest {
            commands: vec![units(&sagas::<1>()[0], 1, 1)],
        };
        let sent = call
            .deadline(Deadline::after(Duration::from_secs(20)))
            .send(&request);
        sent.map_err(|status| status.code())
            .map(|response| response.results.len())
    };
    let token = token::hs256(
        &json!({ "alg": "HS256" }),
        &token::claims(),
        token::SECRET.as_bytes(),
    );
    assert_eq!(reserve(issue("tbd-worker"), Some(&token)), Ok(1));
    let without_token = reserve(issue("tbd-worker"), None);
    assert_eq!(without_token, Err(Code::Unauthenticated));
    let stranger = reserve(issue("tbd-api"), Some(&token));
    assert_eq!(stranger, Err(Code::PermissionDenied));
    let without_certificate = reserve(None, Some(&token));
    assert_eq!(without_certificate, Err(Code::Unavailable));
    let unknown_ca = Authority::new("unknown").issue("tbd-worker", Validity::Now);
    let by_unknown_ca = reserve(Some(unknown_ca), Some(&token));
    assert_eq!(by_unknown_ca, Err(Code::Unavailable));

    let log = inventory.program.log().join("\n");
    assert!(
        log.contains("none of the names in ALLOWED_CLIENTS (other.example, tbd-worker)"),
        "{log}"
    );
    assert!(!log.contains(&token));
    // The audit shows sums, as the metrics do, and asks for no token.
    assert_eq!(inventory.audit("/v1/stock")["held"], 1);
}

/// Waits until the program is not ready for this reason; the answer.
fn unready_because(program: &Program, reason: &str) -> String {
    eventually(LONG, reason, || {
        let text = program.become_unready(LONG).text();
        text.contains(reason).then_some(text)
    })
}

#[test]
fn the_schema_comes_from_the_migrate_program_as_well_and_is_waited_for() {
    let stack = Stack::new().set("AUTO_MIGRATE", "false");
    let (command, http, _) = command(&stack, "inventory");
    let mut program = Program::start(command, http);
    unready_because(&program, "schema is behind");
    let mut migrate = support::migrate(&stack.database);
    // The last of two paths counts.
    let folder = support::repository().join("migrations/inventory");
    migrate.arg("-path").arg(folder).arg("up");
    let migrated = migrate.output().unwrap();
    assert!(
        migrated.status.success(),
        "{}",
        String::from_utf8_lossy(&migrated.stderr)
    );
    program.become_ready(LONG);
}

#[test]
fn what_is_missing_is_named() {
    let output = run(bare(PARTICIPANT));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("PARTICIPANT") && said.contains("inventory or payments"),
        "{said}"
    );

    let stack = Stack::new().set("DB_NAME", "no_such_database");
    let (command, http, _) = command(&stack, "payments");
    let program = Program::start(command, http);
    let reason = unready_because(&program, "does not exist");
    assert!(reason.contains("create it, or check DB_NAME"), "{reason}");
}

/// Units of the property's stock: fewer than its sagas want.
const STOCK: i64 = 12;
/// Sagas of the property.
const SAGAS: usize = 8;

/// Calls of one thread: each an action on some of the sagas, in any order and maybe twice.
fn calls() -> impl Strategy<Value = Vec<(Action, Vec<usize>)>> {
    let action = prop::sample::select(vec![
        Action::Hold,
        Action::Hold,
        Action::Settle,
        Action::Release,
    ]);
    let batch = prop::collection::vec(0..SAGAS, 1..SAGAS);
    prop::collection::vec((action, batch), 1..6)
}

fn ledger(database: &Database) -> PostgresLedger {
    let Database { host, port, name } = database;
    let config = DatabaseConfig::new(host, *port, support::USER, support::PASSWORD, name);
    Migrator::new(embedded(Participant::Inventory))
        .unwrap()
        .run(&config, Deadline::after(LONG))
        .unwrap();
    PostgresLedger::new(Pool::new(config).unwrap(), Participant::Inventory, STOCK)
}

#[test]
fn concurrent_batches_in_any_order_never_oversell_and_never_change_an_answer() {
    let database = support::postgres();
    let ledger = ledger(&database);
    let config = Config {
        cases: 24,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    };
    let threads = prop::collection::vec(calls(), 4);
    let outcome = TestRunner::new(config).run(&threads, |threads| {
        let mut client = database.connect();
        client.batch_execute("TRUNCATE stock, reservations").unwrap();
        let sagas: [Uuid; SAGAS] = std::array::from_fn(|_| Uuid::now_v7());
        let answers: Mutex<HashMap<(String, Uuid), Answer>> = Mutex::default();
        thread::scope(|scope| {
            let run = |calls: &Vec<(Action, Vec<usize>)>| {
                for (action, batch) in calls {
                    let commands: Vec<Command> = batch
                        .iter()
                        .map(|index| Command {
                            saga: sagas[*index],
                            quantity: *index as i64 % 3 + 1,
                            amount_cents: 100,
                        })
                        .collect();
                    let outcomes = ledger.run(*action, &commands, Deadline::after(LONG));
                    let outcomes = outcomes.expect("no deadlock and no negative stock");
                    assert_eq!(outcomes.len(), commands.len());
                    for (command, outcome) in commands.iter().zip(outcomes) {
                        let key = (format!("{action:?}"), command.saga);
                        let mut answers = answers.lock().unwrap();
                        let first = answers.entry(key).or_insert_with(|| outcome.answer.clone());
                        assert_eq!(*first, outcome.answer, "{command:?}");
                    }
                }
            };
            for calls in &threads {
                scope.spawn(move || run(calls));
            }
        });
        let sums = client
            .query_one(
                "SELECT coalesce(sum(units) FILTER (WHERE state = 'held'), 0)::bigint,
                        coalesce(sum(units) FILTER (WHERE state = 'sold'), 0)::bigint FROM reservations",
                &[],
            )
            .unwrap();
        let (held, sold): (i64, i64) = (sums.get(0), sums.get(1));
        let audit = ledger.audit(Deadline::after(LONG)).unwrap();
        let expected = tbd::participants::domain::Stock {
            available: STOCK - held - sold,
            held,
            sold,
        };
        prop_assert!(held + sold <= STOCK);
        prop_assert_eq!(audit, tbd::participants::ports::Audit::Stock(expected));
        Ok(())
    });
    outcome.unwrap();
}
