//! Shutdown of a participant on SIGTERM: health fails first, calls in flight are answered, exit code 0.

use std::thread;
use std::time::{Duration, Instant};

use tbd::participants::domain::Participant;
use tbd_deadline::Deadline;
use tbd_grpc::proto::grpc::health::{
    HealthCheckRequest, health, health_check_response::ServingStatus,
};

use crate::participants::{reserve, sagas, start, start_on, units};
use crate::shutdown::{SHUTDOWN, Thawed, wait_until_blocked};
use crate::support::program::Stack;
use crate::support::{Database, OwnServer, eventually, kafka};

#[test]
fn while_a_participant_drains_its_health_fails_and_calls_old_and_new_are_answered() {
    let drain = Duration::from_secs(5);
    let mut inventory = start("inventory", &[("SHUTDOWN_DRAIN", "5s")]);
    let channel = inventory.channel();
    let mut holder = inventory.stack.database.connect();
    let lock = "BEGIN; LOCK TABLE stock IN ACCESS EXCLUSIVE MODE";
    holder.batch_execute(lock).expect("lock the stock");
    let [old, new] = sagas();
    let signalled = thread::scope(|scope| {
        let begun = scope.spawn(|| reserve(&channel, vec![units(&old, 1, 100)]));
        wait_until_blocked(&inventory.stack);
        let signalled = Instant::now();
        inventory.program.terminate();
        let answer = inventory.program.become_unready(drain);
        assert_eq!(answer.json()["status"], "stopping");
        let service = Participant::Inventory.service().to_owned();
        let asked = HealthCheckRequest { service };
        eventually(drain, "the health service to fail", || {
            let call = channel.call(health::CHECK);
            let answer = call.deadline(Deadline::after(drain)).send(&asked);
            let status = answer.expect("an answer").status();
            (status == ServingStatus::NotServing).then_some(())
        });
        assert!(!begun.is_finished());
        holder.batch_execute("ROLLBACK").expect("unlock the stock");
        let answers = begun.join().expect("no panic").expect("an answer");
        assert_eq!(answers, ["done"]);
        signalled
    });
    let answers = reserve(&channel, vec![units(&new, 1, 100)]).expect("an answer");
    assert_eq!(answers, ["done"]);
    assert_eq!(inventory.program.wait(SHUTDOWN).code(), Some(0));
    assert!(signalled.elapsed() >= drain, "{:?}", signalled.elapsed());
    assert_eq!(inventory.stack.number("SELECT held FROM stock"), 2);
}

#[test]
fn a_database_that_never_answers_costs_a_participant_its_share_and_not_the_exit_code() {
    let server = OwnServer::postgres();
    let stack = Stack::on(Database::on(&server.address()), kafka());
    let mut inventory = start_on(stack, "inventory");
    let channel = inventory.channel();
    // Also after a panic, and before the database is dropped.
    let _thawed = Thawed(&server);
    server.freeze();
    let [saga] = sagas();
    thread::scope(|scope| {
        let begun = scope.spawn(|| reserve(&channel, vec![units(&saga, 1, 100)]));
        inventory.program.metric_becomes("http_threads_busy", 1.0);
        let signalled = Instant::now();
        inventory.program.terminate();
        let status = inventory.program.wait(SHUTDOWN + Duration::from_secs(5));
        let log = inventory.program.log();
        assert_eq!(status.code(), Some(0), "{}", log.join("\n"));
        assert!(signalled.elapsed() < SHUTDOWN, "{:?}", signalled.elapsed());
        assert!(begun.join().expect("no panic").is_err());
    });
}
