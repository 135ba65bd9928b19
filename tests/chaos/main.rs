//! The chaos test: customers order without a pause from two apis and three workers behind nginx. A seed
//! decides which processes are killed, frozen and restarted, and which networks break. Then the faults
//! end, everything settles, and the customers' answers are compared with the database and the topics.
//! docs/chaos.md lists the checks, and the bugs that this test is known to find.

mod audit;
mod clients;
mod journal;
mod plan;
mod site;
use tbd_testkit as support;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use audit::Audit;
use clients::Shop;
use journal::Journal;
use plan::Plan;
use site::Site;
use support::{SetOnDrop, repository};

/// The limit for recovery after the last fault: a breaker's 30 s, a publish's 10 s, and a group's
/// session after that.
const SETTLED: Duration = Duration::from_secs(120);

#[test]
fn nothing_is_lost_or_done_twice_under_every_fault() {
    // Of the first thousand seeds, one with a short round (36 s) and an api without Kafka for longer
    // than a publish may take.
    let plan = Plan::round(310, false);
    assert_eq!(plan.kinds(), Plan::ALL_KINDS);
    run(plan);
}

#[test]
fn no_saga_is_left_halfway_under_every_fault() {
    let plan = Plan::round(310, true);
    assert_eq!(plan.kinds(), Plan::ALL_KINDS_OF_SAGAS);
    run(plan);
}

/// A bug's patch must still apply: the code around it may have changed.
#[test]
fn each_bug_that_chaos_is_to_find_can_still_be_planted() {
    let bugs = std::fs::read_dir(repository().join("tests/chaos/bugs")).expect("the bugs");
    for bug in bugs {
        let patch = bug.expect("a bug").path();
        let mut git = Command::new("git");
        git.current_dir(repository()).args(["apply", "--check"]);
        let checked = git.arg(&patch).output().expect("git");
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(checked.status.success(), "{}: {said}", patch.display());
    }
}

#[test]
#[ignore = "lasts as long as one likes: make chaos SECONDS=300 SEED=1"]
fn chaos() {
    let number = |name: &str| -> Option<u64> {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
        Some(
            text.parse()
                .unwrap_or_else(|_| panic!("{name} is not a number: {text}")),
        )
    };
    let seed = number("TBD_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let length = Duration::from_secs(number("TBD_CHAOS_SECONDS").unwrap_or(300));
    run(Plan::new(seed, length));
}

fn run(plan: Plan) {
    // Two sites at once would only find out how busy the machine is.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let journal = Journal::new();
    journal.say(&format!("{plan}"));
    let site = Site::open(&plan);
    let mut audit = Audit::new(&site);
    let shop = Shop::new(plan.seed);
    let faults_over = AtomicBool::new(false);
    let settled = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = shop.open(scope, &site, &journal, &faults_over);
        scope.spawn(|| site.look_after(&journal, &settled));
        let auditor = scope.spawn(|| audit.follow(&journal, &settled));

        // The threads end even after a panic.
        let _settled = SetOnDrop(&settled);
        let _faults_over = SetOnDrop(&faults_over);
        let begun = Instant::now();
        thread::scope(|faults| {
            for fault in plan.faults() {
                thread::sleep(fault.at.saturating_sub(begun.elapsed()));
                // Further faults after a violation would only hide its cause.
                if journal.is_violated() {
                    break;
                }
                let (site, journal) = (&site, &journal);
                faults.spawn(move || site.inflict(fault, journal));
            }
        });
        journal.say("the faults are over");
        faults_over.store(true, Ordering::SeqCst);
        let mended = Instant::now();
        let mut customers = clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .collect::<Vec<_>>();
        journal.say(&format!(
            "every customer has an answer: {}",
            clients::tally(&customers)
        ));
        site.await_rest(&journal, SETTLED.saturating_sub(mended.elapsed()));
        customers.push(shop.cancel_unheard(&site, &journal, &faults_over));
        site.rebalance(&journal);
        site.await_rest(&journal, SETTLED);
        settled.store(true, Ordering::SeqCst);
        auditor.join().expect("the auditor");
        audit::conclude(&site, &customers, &journal);
        shop.calm(&site, &journal);
    });
    site.judge_memory(&journal);
    if journal.is_violated() {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
        site.write_logs(&folder).expect("write the logs");
        journal.say(&format!("the programs' logs are in {}", folder.display()));
    }
    drop(site);
    journal.verdict(&plan);
}
