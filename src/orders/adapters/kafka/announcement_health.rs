//! Health of the worker's announcements: whether Kafka accepts them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tbd_deadline::lock;

/// The consumer threads' reports about their announcements. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct AnnouncementHealth(Arc<Mutex<BTreeMap<usize, String>>>);

impl AnnouncementHealth {
    /// Reports why announcements of thread `number` wait, or that none does. Logs changes only.
    pub(super) fn report(&self, number: usize, trouble: Option<String>) {
        let mut threads = lock(&self.0);
        let (before, now) = (threads.remove(&number), trouble.clone());
        threads.extend(trouble.map(|trouble| (number, trouble)));
        drop(threads);
        match (before, now) {
            (None, Some(trouble)) => log::warn!("{trouble}; trying again until it works"),
            (Some(_), None) => log::info!("no announcement waits any more"),
            _ => {}
        }
    }

    /// Whether no announcement waits. Does not block.
    ///
    /// # Errors
    /// Why an announcement waits: a sentence without secrets.
    pub fn health(&self) -> Result<(), String> {
        let threads = lock(&self.0);
        match threads.first_key_value() {
            Some((_, trouble)) => Err(trouble.clone()),
            None => Ok(()),
        }
    }
}
