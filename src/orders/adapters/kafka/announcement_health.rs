//! Whether Kafka takes the worker's announcements.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What the consumer threads report about their announcements. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct AnnouncementHealth(Arc<Mutex<BTreeMap<usize, String>>>);

impl AnnouncementHealth {
    /// Thread `number` has announcements that wait, or none. Only a change is logged.
    pub(super) fn report(&self, number: usize, trouble: Option<String>) {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (threads.remove(&number), trouble.clone());
        threads.extend(trouble.map(|trouble| (number, trouble)));
        drop(threads);
        match (before, now) {
            (None, Some(trouble)) => log::warn!("{trouble}; trying again until it works"),
            (Some(_), None) => log::info!("no announcement has to wait any more"),
            _ => {}
        }
    }

    /// Whether no announcement waits. Does not wait itself.
    ///
    /// # Errors
    /// Why one does, in a sentence without secrets.
    pub fn health(&self) -> Result<(), String> {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match threads.first_key_value() {
            Some((_, trouble)) => Err(trouble.clone()),
            None => Ok(()),
        }
    }
}
