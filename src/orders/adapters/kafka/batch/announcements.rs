//! Announcements of records in hand: what Kafka does not take waits until it does. The order and its event are sound,
//! so a refusal is the fault of a setting, a right or a clock, and somebody can mend it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tbd_telemetry::metrics::IntGauge;

use super::super::dead_letter::without_value;
use super::{Batch, PAUSE, State};
use crate::orders::ports::PublishError;
use tbd_kafka::producer::Record;

/// An announcement that is not acknowledged yet.
pub(super) struct Outgoing {
    pub(super) record: Record,
    /// The trace that it belongs to, as [`tracing::serialize`](tbd_telemetry::tracing::serialize) writes it.
    pub(super) cause: Option<String>,
    /// Why it is a dead letter, if it is one.
    pub(super) dead: Option<&'static str>,
    /// Whether it is a dead letter that is to go without its value.
    pub(super) is_short: bool,
    /// Counted, once it could not be published.
    pub(super) waiting: Option<Waiting>,
}

impl Outgoing {
    fn to_send(&self) -> Record {
        let short = self.is_short.then(|| without_value(&self.record));
        short.flatten().unwrap_or_else(|| self.record.clone())
    }
}

/// An announcement that waits, counted for as long as it does.
pub(super) struct Waiting(IntGauge);

impl Waiting {
    fn count(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A record to publish on behalf of one that was consumed.
pub struct Announcement {
    /// Names the announcement to [`Batch::announced`].
    pub place: Place,
    /// What to publish.
    pub record: Record,
    /// The trace that it belongs to, as [`tracing::serialize`](tbd_telemetry::tracing::serialize) writes it.
    pub cause: Option<String>,
}

/// The entry that an announcement belongs to, and which of its announcements it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(usize, usize);

impl Batch {
    /// Why announcements have to wait, if they do: a sentence without secrets.
    pub fn trouble(&self) -> Option<String> {
        let (topic, reason) = self.troubled.first_key_value()?;
        Some(format!("announcements for {topic} have to wait: {reason}"))
    }

    /// What is to be published at `now`: everything, but of a topic that did not take the last only one announcement,
    /// another each time. Thousands that are refused would keep the brokers busy for nothing.
    pub fn announcements(&mut self, now: Instant) -> Vec<Announcement> {
        let mut by_topic: BTreeMap<&Arc<str>, Vec<Place>> = BTreeMap::new();
        for (index, entry) in self.entries.iter().enumerate() {
            if let State::ToAnnounce(outgoing) = &entry.state {
                for (number, it) in outgoing.iter().enumerate() {
                    let places = by_topic.entry(&it.record.topic).or_default();
                    places.push(Place(index, number));
                }
            }
        }
        let mut wanted = Vec::new();
        for (topic, places) in by_topic {
            match self.troubled.contains_key(topic) {
                false => wanted.extend(places),
                true if now < self.probe_at => {}
                true => {
                    // The rest of a probe that has begun comes first.
                    let is_short =
                        |place: &&Place| self.outgoing(**place).is_some_and(|it| it.is_short);
                    let next = places.iter().find(is_short);
                    wanted.push(*next.unwrap_or(&places[self.probes % places.len()]));
                }
            }
        }
        self.probes = self.probes.wrapping_add(1);
        let announcement = |place: Place| {
            let outgoing = self.outgoing(place)?;
            Some(Announcement {
                place,
                record: outgoing.to_send(),
                cause: outgoing.cause.clone(),
            })
        };
        wanted.into_iter().filter_map(announcement).collect()
    }

    fn outgoing(&self, Place(index, number): Place) -> Option<&Outgoing> {
        match &self.entries.get(index)?.state {
            State::ToAnnounce(outgoing) => outgoing.get(number),
            _ => None,
        }
    }

    fn outgoing_mut(&mut self, Place(index, number): Place) -> Option<&mut Outgoing> {
        match &mut self.entries.get_mut(index)?.state {
            State::ToAnnounce(outgoing) => outgoing.get_mut(number),
            _ => None,
        }
    }

    /// Takes over what became of the announcements that were published; all of one round at a time.
    pub fn announced(&mut self, results: Vec<(Place, Result<(), PublishError>)>, now: Instant) {
        let mut acknowledged = HashSet::new();
        let mut troubled = BTreeMap::new();
        for (place, result) in results {
            let Some(topic) = self.outgoing(place).map(|it| it.record.topic.clone()) else {
                continue;
            };
            match result {
                Ok(()) => {
                    acknowledged.insert(place);
                    self.troubled.remove(&topic);
                }
                // Goes out again at once, without its value.
                Err(PublishError::TooLarge(_)) if self.shorten(place) => {}
                Err(error) => {
                    self.hold(place, &error);
                    troubled.insert(topic, error.to_string());
                    self.probe_at = now + PAUSE;
                }
            }
        }
        self.troubled.append(&mut troubled);
        self.drop_acknowledged(&acknowledged);
        self.settle();
    }

    /// A dead letter that is too large is to go without its value. False if that is too large as well or saves nothing:
    /// then the letter waits, whole, for a limit to be raised.
    fn shorten(&mut self, place: Place) -> bool {
        let Some(it) = self.outgoing_mut(place) else {
            return false;
        };
        let may_shorten = it.dead.is_some() && !it.is_short;
        it.is_short = may_shorten && without_value(&it.record).is_some();
        it.is_short
    }

    /// Neither the order nor its record can help it, so the announcement waits.
    fn hold(&mut self, place: Place, error: &PublishError) {
        let gauge = self.worker.announcements_waiting.clone();
        if let Some(it) = self.outgoing_mut(place).filter(|it| it.waiting.is_none()) {
            let gauge = gauge.with_label_values(&[&it.record.topic]);
            it.waiting = Some(Waiting::count(gauge));
            self.entries[place.0]
                .span
                .fail("publish", &error.to_string());
        }
    }

    fn drop_acknowledged(&mut self, acknowledged: &HashSet<Place>) {
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let State::ToAnnounce(outgoing) = &mut entry.state else {
                continue;
            };
            let mut number = 0;
            outgoing.retain(|it| {
                let is_acknowledged = acknowledged.contains(&Place(index, number));
                number += 1;
                if let (true, Some(reason)) = (is_acknowledged, it.dead) {
                    let dead_lettered = &self.orders.dead_lettered;
                    dead_lettered.with_label_values(&[reason]).inc();
                }
                !is_acknowledged
            });
            if outgoing.is_empty() {
                entry.enter(State::Done);
            }
        }
    }

    /// No trouble is left without something that waits for its end.
    pub(super) fn settle(&mut self) {
        self.is_store_away &= !self.entries.is_empty();
        let mut awaited = HashSet::new();
        for entry in &self.entries {
            if let State::ToAnnounce(outgoing) = &entry.state {
                awaited.extend(outgoing.iter().map(|it| &it.record.topic));
            }
        }
        self.troubled.retain(|topic, _| awaited.contains(topic));
    }
}
