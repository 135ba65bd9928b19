//! The measurements.

use std::fmt;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// Size of every record's value, in bytes.
pub const VALUE_BYTES: usize = 200;
/// Records of a bulk measurement.
pub const BULK: usize = 1_000_000;
/// Length of a measurement with waiting callers.
pub const LENGTH: Duration = Duration::from_secs(4);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Case {
    /// This many callers; each waits for its record's acknowledgement before it sends the next.
    Produce1,
    Produce64,
    /// One thread enqueues records as fast as it can.
    ProduceBulk,
    /// Reads everything in this many partitions.
    Consume1,
    Consume16,
}

impl Case {
    pub const ALL: [Case; 5] = [
        Case::Produce1,
        Case::Produce64,
        Case::ProduceBulk,
        Case::Consume1,
        Case::Consume16,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Case::Produce1 => "produce-1",
            Case::Produce64 => "produce-64",
            Case::ProduceBulk => "produce-bulk",
            Case::Consume1 => "consume-1",
            Case::Consume16 => "consume-16",
        }
    }

    pub fn named(name: &str) -> Option<Case> {
        Case::ALL.into_iter().find(|case| case.name() == name)
    }

    pub fn describe(self) -> &'static str {
        match self {
            Case::Produce1 => "produce, 1 caller that waits for each record",
            Case::Produce64 => "produce, 64 callers, each waiting for its own record",
            Case::ProduceBulk => "produce in bulk",
            Case::Consume1 => "consume 1 partition",
            Case::Consume16 => "consume 16 partitions",
        }
    }

    /// Callers that wait for each record.
    pub fn callers(self) -> usize {
        match self {
            Case::Produce64 => 64,
            _ => 1,
        }
    }
}

/// One run of one client.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub client: &'static str,
    pub case: Case,
    pub measured: Measured,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub records: usize,
    pub seconds: f64,
    /// From the call to the acknowledgement.
    pub p99_ms: Option<f64>,
    /// User and system time of the client's whole process during the measurement.
    pub cpu_seconds: f64,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        self.records as f64 / self.seconds
    }

    pub fn cpu_per_million(&self) -> f64 {
        self.cpu_seconds / self.records as f64 * 1e6
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:.0} records/s, p99 {:.2?} ms, {:.2} CPU s per million",
            self.per_second(),
            self.p99_ms,
            self.cpu_per_million()
        )
    }
}

/// Runs from its creation to [`Stopwatch::stop`].
pub struct Stopwatch {
    started: Instant,
    cpu: f64,
}

impl Stopwatch {
    pub fn start() -> Stopwatch {
        Stopwatch {
            started: Instant::now(),
            cpu: cpu_seconds(UsageWho::RUSAGE_SELF),
        }
    }

    /// `latencies` may be empty.
    pub fn stop(self, records: usize, mut latencies: Vec<Duration>) -> Measured {
        let seconds = self.started.elapsed().as_secs_f64();
        let cpu_seconds = cpu_seconds(UsageWho::RUSAGE_SELF) - self.cpu;
        latencies.sort_unstable();
        let p99 = latencies.get(latencies.len() * 99 / 100);
        Measured {
            records,
            seconds,
            p99_ms: p99.map(|latency| latency.as_secs_f64() * 1e3),
            cpu_seconds,
        }
    }
}

/// CPU time used so far, by this process or by its children that have ended.
pub fn cpu_seconds(who: UsageWho) -> f64 {
    let usage = getrusage(who).expect("the kernel tells what was used");
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// A record's value: not trivially compressible, and the same each time.
pub fn value() -> Vec<u8> {
    (0..VALUE_BYTES)
        .map(|index| b'a' + (index * 7 % 26) as u8)
        .collect()
}

/// Lets `callers` threads call `publish` for [`LENGTH`]; it returns once its record is acknowledged.
pub fn waiting_callers(callers: usize, publish: impl Fn() + Sync) -> Measured {
    // By then the client has its connections, the leaders and a producer id.
    publish();
    let stopwatch = Stopwatch::start();
    let end = Instant::now() + LENGTH;
    let latencies: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..callers)
            .map(|_| {
                scope.spawn(|| {
                    let mut latencies = Vec::new();
                    while Instant::now() < end {
                        let started = Instant::now();
                        publish();
                        latencies.push(started.elapsed());
                    }
                    latencies
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no caller fails"))
            .collect()
    });
    stopwatch.stop(latencies.len(), latencies)
}
