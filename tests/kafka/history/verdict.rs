//! The verdict of the history check: reported outcomes, compared with the log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::{Duration, SystemTime};

use super::process::{Event, History};
use crate::client::{Read, text};
use tbd_kafka::ConsumerRecord;

/// The most faults that are printed.
const FAULTS_SHOWN: usize = 20;

#[derive(Default)]
pub struct Verdict {
    faults: Vec<String>,
    acknowledged: usize,
    not_sent: usize,
    maybe_sent: usize,
    in_log: usize,
    got: usize,
    again: usize,
    transactions: usize,
    copied: usize,
    fenced: usize,
    longest_without_acknowledgement: Duration,
    longest_without_record: Duration,
}

type Place = (i32, i64);

impl Verdict {
    /// The longest silences are searched for before `peace`.
    pub fn find(
        log: &BTreeMap<i32, Vec<Read>>,
        copied: &[ConsumerRecord],
        histories: Vec<History>,
        peace: SystemTime,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        let peace = peace.duration_since(SystemTime::UNIX_EPOCH);
        let peace = peace.map_or(u64::MAX, |since| since.as_micros() as u64);
        let places = verdict.look_at_log(log);
        verdict.look_at_copies(&places, copied, &histories);
        verdict.look_at_producers(&places, &histories, peace);
        verdict.look_at_consumers(&places, &histories, peace);
        verdict
    }

    pub fn is_good(&self) -> bool {
        self.faults.is_empty() && self.acknowledged > 0 && self.got > 0 && self.copied > 0
    }

    /// Checks that each key's numbers rise: no record is out of order or duplicated.
    fn look_at_log(&mut self, log: &BTreeMap<i32, Vec<Read>>) -> HashMap<String, Place> {
        let mut places = HashMap::new();
        let mut last: HashMap<String, u64> = HashMap::new();
        for (partition, records) in log {
            for (one, expected) in records.iter().zip(0..) {
                let value = text(&one.value);
                let number = value
                    .split_once(':')
                    .and_then(|(_, number)| number.parse().ok());
                let number: u64 = number.expect("every value is key:number");
                if last
                    .insert(text(&one.key), number)
                    .is_some_and(|last| last >= number)
                {
                    self.faults
                        .push(format!("{value} is in the log twice or out of order"));
                }
                if one.offset != expected {
                    self.faults.push(format!(
                        "the log of {partition} has a gap before {}",
                        one.offset
                    ));
                }
                places.insert(value, (*partition, one.offset));
                self.in_log += 1;
            }
        }
        places
    }

    /// Checks that a reader of committed records finds each record of the log once in the copy, in
    /// each key's order.
    fn look_at_copies(
        &mut self,
        places: &HashMap<String, Place>,
        copied: &[ConsumerRecord],
        histories: &[History],
    ) {
        let mut seen: HashSet<String> = HashSet::new();
        let mut last: HashMap<String, u64> = HashMap::new();
        for one in copied {
            let value = text(&one.value);
            let number = value.split_once(':').and_then(|(_, it)| it.parse().ok());
            let number: u64 = number.expect("every value is key:number");
            let before = last.insert(text(&one.key), number);
            if before.is_some_and(|last| last >= number) {
                self.faults
                    .push(format!("the copy of {value} is twice or out of order"));
            }
            if !places.contains_key(&value) {
                self.faults
                    .push(format!("{value} was copied, but is not in the log"));
            }
            seen.insert(value);
        }
        let missing = places.keys().filter(|value| !seen.contains(*value));
        let missing: Vec<String> = missing.map(|it| format!("{it} was not copied")).collect();
        self.faults.extend(missing);
        self.copied = copied.len();
        for history in histories {
            let count = |wanted| history.events.iter().filter(|it| **it == wanted).count();
            self.transactions += count(Event::Transformed);
            let fenced = count(Event::Fenced);
            self.fenced += fenced;
            // A zombie and its successor have one id. Whichever asked for its identity last goes on:
            // the zombie, if it was frozen before it asked.
            let is_rival = |it: &History| it.role == history.role && it.is_zombie;
            if fenced > 0 && !histories.iter().any(is_rival) {
                let (name, role) = (&history.name, history.role);
                self.faults
                    .push(format!("{name} was fenced, and {role:?} has no zombie"));
            }
        }
    }

    fn look_at_producers(
        &mut self,
        places: &HashMap<String, Place>,
        histories: &[History],
        peace: u64,
    ) {
        let mut times = Vec::new();
        for event in histories.iter().flat_map(|history| &history.events) {
            match event {
                Event::Acknowledged { value, at, place } => {
                    self.acknowledged += 1;
                    times.push(*at);
                    match places.get(value) {
                        None => self
                            .faults
                            .push(format!("{value} was acknowledged and is lost")),
                        Some(found) if place.is_some_and(|place| place != *found) => {
                            self.faults.push(format!(
                                "{value} was acknowledged at {place:?}, but is at {found:?}"
                            ));
                        }
                        Some(_) => {}
                    }
                }
                Event::NotSent { value } => {
                    self.not_sent += 1;
                    if places.contains_key(value) {
                        self.faults.push(format!(
                            "{value} was said not to be sent, but is in the log"
                        ));
                    }
                }
                Event::MaybeSent => self.maybe_sent += 1,
                _ => {}
            }
        }
        self.longest_without_acknowledgement = longest_silence(times, peace);
    }

    fn look_at_consumers(
        &mut self,
        places: &HashMap<String, Place>,
        histories: &[History],
        peace: u64,
    ) {
        let mut commits: HashMap<i32, Vec<(u64, i64)>> = HashMap::new();
        for event in histories.iter().flat_map(|history| &history.events) {
            if let Event::Committed {
                at,
                partition,
                offset,
            } = event
            {
                commits.entry(*partition).or_default().push((*at, *offset));
            }
        }
        let mut read: HashSet<Place> = HashSet::new();
        let mut times = Vec::new();
        for history in histories {
            // By partition: when it was assigned, and the next expected offset.
            let mut owned: HashMap<i32, (u64, Option<i64>)> = HashMap::new();
            for event in &history.events {
                match event {
                    Event::Assigned { at, partitions } => {
                        owned.extend(partitions.iter().map(|one| (*one, (*at, None))));
                    }
                    Event::Gone { partitions } => partitions.iter().for_each(|one| {
                        owned.remove(one);
                    }),
                    Event::Got {
                        at,
                        partition,
                        offset,
                        value,
                    } => {
                        self.got += 1;
                        times.push(*at);
                        self.again += usize::from(!read.insert((*partition, *offset)));
                        let who = format!("{} got {partition}@{offset}", history.name);
                        if places.get(value) != Some(&(*partition, *offset)) {
                            self.faults
                                .push(format!("{who}, which is not {value} in the log"));
                        }
                        let Some((since, next)) = owned.get_mut(partition) else {
                            self.faults
                                .push(format!("{who} without having the partition"));
                            continue;
                        };
                        match next.replace(offset + 1) {
                            Some(next) if next != *offset => {
                                self.faults.push(format!("{who} instead of {next}"));
                            }
                            Some(_) => {}
                            // A record may repeat only if it was not committed when the partition was
                            // assigned.
                            None => {
                                let earlier = commits.get(partition).into_iter().flatten();
                                let earlier = earlier.filter(|(at, _)| at < since);
                                let committed = earlier.map(|(_, offset)| *offset).max();
                                if committed.is_some_and(|committed| *offset < committed) {
                                    self.faults.push(format!(
                                        "{who}, although {committed:?} was committed"
                                    ));
                                }
                            }
                        }
                    }
                    Event::Fatal { what } => self.faults.push(format!("{}: {what}", history.name)),
                    _ => {}
                }
            }
        }
        let skipped: Vec<_> = places
            .iter()
            .filter(|(_, place)| !read.contains(place))
            .collect();
        for (value, place) in skipped {
            self.faults
                .push(format!("{value} at {place:?} was skipped"));
        }
        self.longest_without_record = longest_silence(times, peace);
    }
}

fn longest_silence(mut times: Vec<u64>, peace: u64) -> Duration {
    times.retain(|at| *at < peace);
    times.sort_unstable();
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    Duration::from_micros(gaps.max().unwrap_or(0))
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict {
            acknowledged,
            not_sent,
            maybe_sent,
            in_log,
            got,
            again,
            transactions,
            copied,
            fenced,
            ..
        } = self;
        writeln!(
            formatter,
            "  {acknowledged} records acknowledged, {not_sent} not sent, {maybe_sent} of unknown fate; {in_log} in the log"
        )?;
        writeln!(
            formatter,
            "  {got} records read, {again} of them not for the first time"
        )?;
        writeln!(
            formatter,
            "  {copied} records copied; {transactions} transactions known to be committed, {fenced} transformers fenced"
        )?;
        writeln!(
            formatter,
            "  longest without an acknowledgement {:.1?}, without a record read {:.1?}",
            self.longest_without_acknowledgement, self.longest_without_record
        )?;
        if self.faults.is_empty() {
            return write!(
                formatter,
                "verdict: no acknowledged record lost, none out of order, none skipped, none again but what was not committed, each copied once"
            );
        }
        write!(formatter, "verdict: {} FAULTS", self.faults.len())?;
        for fault in self.faults.iter().take(FAULTS_SHOWN) {
            write!(formatter, "\n  {fault}")?;
        }
        Ok(())
    }
}
