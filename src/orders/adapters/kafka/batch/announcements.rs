//! Announcements of records in hand. An announcement that Kafka refuses waits until Kafka accepts
//! it: order and event are valid, so somebody has to correct a setting, a permission or a clock.

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
    /// Its trace context, from [`tracing::serialize`](tbd_telemetry::tracing::serialize).
    pub(super) cause: Option<String>,
    /// Why it is a dead letter, if it is one.
    pub(super) dead: Option<&'static str>,
    /// Whether it is a dead letter to be sent without its value.
    pub(super) is_short: bool,
    /// Present after the first failure to publish.
    pub(super) waiting: Option<Waiting>,
}

impl Outgoing {
    fn to_send(&self) -> Record {
        let short = self.is_short.then(|| without_value(&self.record));
        short.flatten().unwrap_or_else(|| self.record.clone())
    }
}

/// Counts a waiting announcement in a gauge, until dropped.
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

/// A record to publish for a consumed record.
pub struct Announcement {
    /// Identifies the announcement in [`Batch::announced`].
    pub place: Place,
    /// The record to publish.
    pub record: Record,
    /// Its trace context, from [`tracing::serialize`](tbd_telemetry::tracing::serialize).
    pub cause: Option<String>,
}

/// The index of an entry, and the index of the announcement within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(usize, usize);

impl Batch {
    /// Why announcements wait, if they do: a sentence without secrets.
    pub fn trouble(&self) -> Option<String> {
        let (topic, reason) = self.troubled.first_key_value()?;
        Some(format!("announcements for {topic} have to wait: {reason}"))
    }

    /// The announcements to publish at `now`. A topic that refused the last ones gets only one
    /// announcement, a different one each time: thousands of refused records would load the
    /// brokers for nothing.
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
        let mut is_new_probe = false;
        for (topic, places) in by_topic {
            match self.troubled.contains_key(topic) {
                false => wanted.extend(places),
                true if now < self.probe_at => {}
                true => {
                    // A short letter is the second half of a probe, so it comes first.
                    let is_short =
                        |place: &&Place| self.outgoing(**place).is_some_and(|it| it.is_short);
                    let short = places.iter().find(is_short);
                    wanted.push(*short.unwrap_or(&places[self.probes % places.len()]));
                    is_new_probe |= short.is_none();
                }
            }
        }
        // Only a probe counts. Otherwise the calls between two probes could make the same announcement
        // the next one for ever.
        if is_new_probe {
            self.probes = self.probes.wrapping_add(1);
        }
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

    /// Applies the outcomes of published announcements, a whole round at a time.
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
                // It is sent again at once, without its value.
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

    /// Marks a dead letter that is too large to be sent without its value. False if the short
    /// letter was too large as well, or saves nothing: then the whole letter waits for a higher
    /// limit.
    fn shorten(&mut self, place: Place) -> bool {
        let Some(it) = self.outgoing_mut(place) else {
            return false;
        };
        let may_shorten = it.dead.is_some() && !it.is_short;
        it.is_short = may_shorten && without_value(&it.record).is_some();
        it.is_short
    }

    /// The error is not the fault of the order or the record, so the announcement waits.
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
                    let dead_lettered = &self.worker.dead_lettered;
                    dead_lettered.with_label_values(&[reason]).inc();
                }
                !is_acknowledged
            });
            if outgoing.is_empty() {
                entry.enter(State::Done);
            }
        }
    }

    /// Clears every trouble that no entry waits for any more.
    pub(super) fn settle(&mut self) {
        self.is_held_up &= !self.entries.is_empty();
        let mut awaited = HashSet::new();
        for entry in &self.entries {
            if let State::ToAnnounce(outgoing) = &entry.state {
                awaited.extend(outgoing.iter().map(|it| &it.record.topic));
            }
        }
        self.troubled.retain(|topic, _| awaited.contains(topic));
    }
}
