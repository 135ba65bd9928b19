//! The measurements.

use std::env;
use std::error::Error;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// Size of every record's value, in bytes.
pub const VALUE_BYTES: usize = 200;
/// Partitions of the measurements of memory.
pub const MANY: usize = 1000;
/// Records that the measurements of memory read.
pub const RECORDS_OF_MANY: usize = 200_000;

/// What a client does in a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// So many callers; each waits for its record's acknowledgement before it sends the next.
    Wait,
    /// One thread enqueues so many records as fast as it can.
    Bulk,
    /// Likewise, one record for each of so many partitions.
    Each,
    /// Reads so many records from the start of the topic.
    Consume,
}

impl Task {
    const ALL: [(&'static str, Task); 4] = [
        ("wait", Task::Wait),
        ("bulk", Task::Bulk),
        ("each", Task::Each),
        ("consume", Task::Consume),
    ];
}

/// One line of the table of measurements.
pub struct Case {
    pub name: &'static str,
    pub title: &'static str,
    pub task: Task,
    pub count: usize,
    pub partitions: usize,
    pub tls: bool,
}

impl Case {
    /// Records are read from topics that nobody writes to meanwhile.
    pub fn topic(&self) -> String {
        let use_of_it = match self.task {
            Task::Consume => "read",
            _ => "written",
        };
        format!("bench-{use_of_it}-{}", self.partitions)
    }

    /// Whether memory is what it is about.
    pub fn is_of_memory(&self) -> bool {
        self.partitions == MANY
    }
}

/// All measurements, or those that `CASES` names.
pub fn cases() -> Result<Vec<Case>, Box<dyn Error>> {
    use Task::{Bulk, Consume, Each, Wait};
    let records: usize = setting("RECORDS")?.parse()?;
    let wanted = setting("CASES")?;
    let one_caller = "produce, 1 caller that waits for each record";
    let callers = "produce, 64 callers, each waiting for its own record";
    #[rustfmt::skip]
    let table = [
        ("produce-1",        one_caller,                     Wait,    1,               16,   false),
        ("produce-64",       callers,                        Wait,    64,              16,   false),
        ("produce-bulk",     "produce in bulk",              Bulk,    records,         16,   false),
        ("consume-1",        "consume 1 partition",          Consume, records,         1,    false),
        ("consume-16",       "consume 16 partitions",        Consume, records,         16,   false),
        ("produce-64-tls",   callers,                        Wait,    64,              16,   true),
        ("produce-bulk-tls", "produce in bulk",              Bulk,    records,         16,   true),
        ("consume-16-tls",   "consume 16 partitions",        Consume, records,         16,   true),
        ("produce-1000",     "one record to each partition", Each,    MANY,            MANY, false),
        ("consume-1000",     "read some records of each",    Consume, RECORDS_OF_MANY, MANY, false),
    ];
    let cases = table.map(|(name, title, task, count, partitions, tls)| Case {
        name,
        title,
        task,
        count,
        partitions,
        tls,
    });
    let is_wanted =
        |case: &Case| wanted.is_empty() || wanted.split_whitespace().any(|name| name == case.name);
    Ok(cases.into_iter().filter(is_wanted).collect())
}

/// A setting of scripts/bench-kafka, which has the defaults.
pub fn setting(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}

/// The work of one process, which are also its arguments: `wait|bulk|each|consume COUNT BROKER TOPIC [CA]`.
pub struct Job {
    pub task: Task,
    pub count: usize,
    pub broker: String,
    pub topic: String,
    /// With it, connections use TLS.
    pub ca: Option<PathBuf>,
}

impl Job {
    pub fn parse(arguments: &[&str]) -> Option<Job> {
        let [task, count, broker, topic, ca @ ..] = arguments else {
            return None;
        };
        let (_, task) = Task::ALL.into_iter().find(|(name, _)| name == task)?;
        Some(Job {
            task,
            count: count.parse().ok()?,
            broker: (*broker).to_owned(),
            topic: (*topic).to_owned(),
            ca: ca.first().map(PathBuf::from),
        })
    }

    pub fn arguments(&self) -> Vec<String> {
        let task = Task::ALL.iter().find(|(_, task)| *task == self.task);
        let (name, _) = task.expect("each has a name");
        let mut arguments = vec![
            (*name).to_owned(),
            self.count.to_string(),
            self.broker.clone(),
            self.topic.clone(),
        ];
        arguments.extend(self.ca.iter().map(|ca| ca.display().to_string()));
        arguments
    }
}

/// One run of one client.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    pub client: &'static str,
    pub case: &'static str,
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
    /// The largest resident memory of that process.
    pub memory_mib: f64,
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
            "{:.0} records/s, p99 {:.2?} ms, {:.2} CPU s per million, {:.0} MiB",
            self.per_second(),
            self.p99_ms,
            self.cpu_per_million(),
            self.memory_mib
        )
    }
}

/// Runs from its creation to [`Stopwatch::stop`]. A consumer's starts when it has its partitions.
#[derive(Clone, Copy)]
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
            memory_mib: memory_mib().expect("the kernel tells the memory"),
        }
    }
}

/// This process's. The kernel's `ru_maxrss` would start with the parent's.
fn memory_mib() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
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

/// Lets `callers` threads call `publish` for `DURATION` seconds; it returns once its record is acknowledged.
pub fn waiting_callers(callers: usize, publish: impl Fn() + Sync) -> Measured {
    // By then the client has its connections, the leaders and a producer id.
    publish();
    let seconds = setting("DURATION").expect("a setting");
    let stopwatch = Stopwatch::start();
    let end = stopwatch.started + Duration::from_secs(seconds.parse().expect("seconds"));
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
