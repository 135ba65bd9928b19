//! Three threads that work in rounds until they are told to stop: `cargo run --example workers`.

use std::thread;
use std::time::Duration;

use tbd_deadline::{Deadline, StopSignal};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let stop = StopSignal::new();
    let mut threads = Vec::new();
    for number in 0..3 {
        let stop = stop.clone();
        let rounds = move || {
            let mut rounds = 0;
            // The pause ends early when the signal is given.
            while !stop.wait_for(Duration::from_millis(100)) {
                rounds += 1;
            }
            rounds
        };
        threads.push(
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(rounds)?,
        );
    }
    let end = Deadline::after(Duration::from_secs(1));
    thread::sleep(end.remaining());
    stop.stop();
    for thread in threads {
        println!(
            "{:?} rounds",
            thread.join().map_err(|_| "a worker panicked")?
        );
    }
    Ok(())
}
