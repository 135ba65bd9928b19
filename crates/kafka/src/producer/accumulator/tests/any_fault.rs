//! Random faults in any order, while a topic is deleted and created again.

use std::collections::{BTreeMap, HashMap, VecDeque};

use proptest::prelude::*;

use super::*;

/// How a broker of some version distinguishes two topics of the same name.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ids {
    /// Produce names topics by id.
    InRequests,
    /// Metadata has ids, and Produce names topics by name.
    InMetadata,
}

/// A partition's log, and the broker's state of its producers.
#[derive(Default)]
struct Log {
    values: Vec<String>,
    /// By producer: first sequence number, size and offset of its last batches.
    last: HashMap<i64, VecDeque<(i32, usize, i64)>>,
}

impl Log {
    /// A broker takes the first sequence number that it sees of a producer, whatever it is.
    fn append(&mut self, batch: &OutgoingBatch) -> Answer {
        let size = batch.records.len();
        let last = self.last.entry(batch.identity.producer_id).or_default();
        let same = |known: &&(i32, usize, i64)| (known.0, known.1) == (batch.base_sequence, size);
        if let Some((_, _, offset)) = last.iter().find(same) {
            return Answer::Written(Some(*offset));
        }
        let expected = match last.back() {
            Some((base, count, _)) => sequence_after(*base, *count),
            None => batch.base_sequence,
        };
        if batch.base_sequence != expected {
            return Answer::Refused(ErrorCode::OutOfOrderSequenceNumber);
        }
        let offset = self.values.len() as i64;
        self.values.extend(values(batch));
        last.push_back((expected, size, offset));
        if last.len() > 5 {
            last.pop_front();
        }
        Answer::Written(Some(offset))
    }

    /// The broker starts again: its snapshot has only the last batch of each producer.
    fn restart(&mut self) {
        for last in self.last.values_mut() {
            last.drain(..last.len().saturating_sub(1));
        }
    }

    /// What a broker answers when `fault` happens.
    fn answer(&mut self, batch: &OutgoingBatch, fault: u8) -> Answer {
        match fault % 12 {
            0 => lost(),
            1 => {
                self.append(batch);
                lost()
            }
            2 => Answer::Refused(ErrorCode::NotLeaderOrFollower),
            3 => {
                self.append(batch);
                Answer::Refused(ErrorCode::NotLeaderOrFollower)
            }
            4 => {
                self.append(batch);
                Answer::Refused(ErrorCode::RequestTimedOut)
            }
            5 => Answer::Refused(ErrorCode::NotEnoughReplicas),
            6 => Answer::Refused(ErrorCode::InvalidRecord),
            7 => {
                self.append(batch);
                Answer::Refused(ErrorCode::UnknownServerError)
            }
            8 => {
                self.restart();
                self.append(batch)
            }
            _ => self.append(batch),
        }
    }
}

/// A broker with one topic, or with none.
struct Broker {
    ids: Ids,
    is_there: bool,
    id: u128,
    partitions: i32,
    /// By topic id and partition, including former topics.
    logs: BTreeMap<(u128, i32), Log>,
}

impl Leaders for Broker {
    fn partitions(&self, _: &str) -> Option<i32> {
        Some(self.partitions)
    }
    fn leader(&self, _: &str, partition: i32) -> Option<i32> {
        (partition < self.partitions).then_some(NODE)
    }
    fn topic_id(&self, _: &str) -> Option<Uuid> {
        Some(Uuid::from_u128(self.id))
    }
    fn is_missing(&self, _: &str) -> bool {
        !self.is_there
    }
}

impl Broker {
    /// 0 deletes the topic; 1 to 5 create it again with so many partitions.
    fn change_topic(&mut self, change: i32) {
        match change {
            0 => self.is_there = false,
            1..=5 => {
                self.is_there = true;
                self.id += 1;
                self.partitions = change;
            }
            _ => {}
        }
    }

    fn answer(&mut self, batch: &OutgoingBatch, fault: u8) -> Answer {
        let is_meant = self.ids != Ids::InRequests || batch.topic_id.as_u128() == self.id;
        match fault % 12 {
            0 => lost(),
            _ if !self.is_there || batch.partition >= self.partitions => {
                Answer::Refused(ErrorCode::UnknownTopicOrPartition)
            }
            _ if !is_meant => Answer::Refused(ErrorCode::UnknownTopicId),
            _ => {
                let log = self.logs.entry((self.id, batch.partition));
                log.or_default().answer(batch, fault)
            }
        }
    }

    /// How many times a value is in the topic with this id.
    fn copies(&self, id: u128, value: &str) -> usize {
        let logs = self.logs.range((id, 0)..=(id, i32::MAX));
        let values = logs.flat_map(|(_, log)| &log.values);
        values.filter(|one| *one == value).count()
    }

    fn is_at(&self, metadata: &RecordMetadata, value: &str) -> bool {
        let offset = usize::try_from(metadata.offset.unwrap()).unwrap();
        (1..=self.id).any(|id| {
            let log = self.logs.get(&(id, metadata.partition));
            log.and_then(|log| log.values.get(offset))
                .is_some_and(|there| there == value)
        })
    }
}

/// Key (5 is none), records, fault, whether a caller gives up, what happens to the topic.
type Step = (u8, usize, u8, bool, i32);

struct Sent {
    key: u8,
    value: String,
    slot: Arc<Slot>,
    /// The error that its owner got when it gave up.
    gave_up: Option<Outcome>,
}

struct Run {
    records: Accumulator,
    broker: Broker,
    requests: VecDeque<Vec<OutgoingBatch>>,
    sent: Vec<Sent>,
    now: Instant,
    producer_id: i64,
}

impl Run {
    fn new(ids: Ids) -> Self {
        let broker = Broker {
            ids,
            is_there: true,
            id: 1,
            partitions: 3,
            logs: BTreeMap::new(),
        };
        let mut records = Accumulator::new(limits(), [Arc::from("t")]);
        // Three records fill a batch.
        records.limits.batch_bytes = 3 * 38;
        records.learn(&broker);
        Self {
            records,
            broker,
            requests: VecDeque::new(),
            sent: Vec::new(),
            now: Instant::now(),
            producer_id: 0,
        }
    }

    fn push(&mut self, key: u8, patience: Duration) {
        let value = format!("{}", self.sent.len());
        let key_bytes = (key < 5).then(|| Bytes::copy_from_slice(&[key]));
        let record = Record::new("t", key_bytes, Some(value.clone().into()));
        let index = self.records.place(&record, self.now).unwrap().unwrap();
        let slot: Arc<Slot> = Arc::default();
        let deadline = Deadline::after_instant(self.now, patience);
        let queued = Queued::new(record, 0, Arc::clone(&slot), deadline, self.now);
        self.records.push(index, queued);
        self.sent.push(Sent {
            key,
            value,
            slot,
            gave_up: None,
        });
    }

    fn step(&mut self, (key, count, fault, give_up, change): Step) {
        self.broker.change_topic(change);
        for _ in 0..count {
            self.push(
                key,
                Duration::from_secs(if fault % 5 == 0 { 1 } else { 600 }),
            );
        }
        let any = usize::from(fault) % self.sent.len().max(1);
        if give_up
            && let Some(sent) = self.sent.get_mut(any)
            && matches!(sent.slot.wait(no_time()), Err(GaveUp::Withdrawn))
        {
            let error = ProduceError::not_sent(Error::Closed);
            sent.gave_up.get_or_insert(Err(error));
        }
        if self.records.needs_leaders() || fault % 7 == 0 {
            self.records.topics_to_ask(self.now);
            tell(self.records.learn(&self.broker));
        }
        if self.records.needs_identity() {
            self.producer_id += 1;
            self.records
                .set_identity(Identity::idempotent(self.producer_id, 0));
        }
        tell(self.records.sweep(self.now));
        // Without ids, the second of two requests in flight may reach another topic than the
        // first.
        let in_flight_max = match self.broker.ids {
            Ids::InRequests => 5,
            Ids::InMetadata => 1,
        };
        while self.requests.len() < in_flight_max {
            let ahead = !self.requests.is_empty();
            let (batches, expired) = self.records.cut(NODE, self.now, ahead);
            tell(expired);
            if batches.is_empty() {
                break;
            }
            self.requests.push_back(batches);
        }
        self.answer(fault);
        self.now += Duration::from_millis(300);
    }

    /// Some of the requests are answered, or the connection is lost with all of them.
    fn answer(&mut self, mut fault: u8) {
        let is_lost = fault % 12 < 2;
        let count = if is_lost {
            5
        } else {
            usize::from(fault / 12 % 3) + 1
        };
        for _ in 0..count.min(self.requests.len()) {
            for batch in self.requests.pop_front().unwrap() {
                let answer = self.broker.answer(&batch, fault);
                // A refusal is lost with the connection.
                let answer = if is_lost { lost() } else { answer };
                tell(self.records.settle(batch, answer, self.now));
            }
            // Later requests that had arrived succeed, or are lost too.
            fault = match (is_lost, fault % 12) {
                (true, 1) if fault > 100 => 0,
                (true, _) => fault,
                (false, _) => 11,
            };
        }
    }

    /// Every record has ended, once and truthfully.
    fn check_outcomes(&self) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.records.outstanding(), 0);
        prop_assert_eq!(self.records.buffered_bytes, 0);
        for sent in &self.sent {
            let outcome = match &sent.gave_up {
                Some(withdrawn) => withdrawn.clone(),
                None => {
                    let outcome = sent.slot.wait(no_time());
                    outcome.expect("every record has an outcome")
                }
            };
            let copies = (1..=self.broker.id).map(|id| self.broker.copies(id, &sent.value));
            let copies: Vec<usize> = copies.collect();
            match outcome {
                Ok(metadata) => prop_assert!(self.broker.is_at(&metadata, &sent.value)),
                Err(error) if error.certainty == Certainty::NotSent => {
                    // Without ids in requests, a broker may take a batch whose
                    // predecessor it did not take.
                    let is_certain = self.broker.ids == Ids::InRequests;
                    prop_assert!(!is_certain || copies.iter().sum::<usize>() == 0);
                }
                Err(_) => {}
            }
            if self.broker.ids == Ids::InRequests {
                prop_assert!(copies.iter().all(|count| *count <= 1), "{:?}", copies);
            }
        }
        Ok(())
    }

    /// In each topic, each key's records are in one partition and in their order.
    fn check_order(&self) -> Result<(), TestCaseError> {
        let mut places: HashMap<(u128, u8), i32> = HashMap::new();
        for ((id, partition), log) in &self.broker.logs {
            let numbers: Vec<usize> = log.values.iter().map(|one| one.parse().unwrap()).collect();
            for key in 0..5 {
                let of_key = |number: &&usize| self.sent[**number].key == key;
                let numbers: Vec<usize> = numbers.iter().filter(of_key).copied().collect();
                prop_assert!(numbers.is_sorted(), "key {}: {:?}", key, numbers);
                if !numbers.is_empty() {
                    let place = *places.entry((*id, key)).or_insert(*partition);
                    prop_assert_eq!(place, *partition);
                }
            }
        }
        Ok(())
    }
}

fn run(ids: Ids, steps: Vec<Step>) -> Run {
    let mut run = Run::new(ids);
    let mut steps = steps.into_iter();
    for _ in 0..10_000 {
        let step = steps.next();
        if step.is_none() && run.records.outstanding() == 0 {
            break;
        }
        if step.is_none() {
            run.broker.is_there = true;
        }
        run.step(step.unwrap_or((0, 0, 11, false, -1)));
    }
    run
}

fn steps(changes: impl Strategy<Value = i32>) -> impl Strategy<Value = Vec<Step>> {
    let step = (0u8..6, 0usize..4, any::<u8>(), any::<bool>(), changes);
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn after_any_faults_every_record_ends_once_in_order_and_truthfully(
        steps in steps(Just(-1)),
    ) {
        let run = run(Ids::InRequests, steps);
        run.check_outcomes()?;
        run.check_order()?;
        for log in run.broker.logs.values() {
            let numbers: Vec<usize> = log.values.iter().map(|one| one.parse().unwrap()).collect();
            prop_assert!(numbers.is_sorted(), "{:?}", numbers);
        }
    }

    #[test]
    fn records_end_once_in_order_and_truthfully_while_their_topic_is_created_again(
        steps in steps(0i32..25),
    ) {
        let run = run(Ids::InRequests, steps);
        run.check_outcomes()?;
        run.check_order()?;
    }

    #[test]
    fn an_acknowledged_record_was_written_also_where_requests_have_no_topic_ids(
        steps in steps(0i32..25),
    ) {
        run(Ids::InMetadata, steps).check_outcomes()?;
    }
}
