//! Requests in flight on one connection, and the hooks that observe them.

use std::collections::VecDeque;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::ApiKey;

/// Hooks that observe every request of a cluster's connections, called on the requesting thread.
/// The defaults do nothing. A panic in a hook is logged.
pub trait ClientHooks: fmt::Debug + Send + Sync {
    /// A request was sent.
    fn request_sent(&self, api: ApiKey) {
        let _ = api;
    }

    /// A request got its response after `latency`; the response may contain error codes. `None`:
    /// its connection ended without a response.
    fn request_ended(&self, api: ApiKey, latency: Option<Duration>) {
        let _ = (api, latency);
    }
}

/// No hooks.
impl ClientHooks for () {}

/// Calls a hook. Its panic is logged and goes no further: the client's threads must live on.
pub(crate) fn guarded(name: &str, hook: impl FnOnce()) {
    if std::panic::catch_unwind(AssertUnwindSafe(hook)).is_err() {
        log::error!("kafka client: the hook {name} panicked");
    }
}

/// A queue of correlation ids. Requests that are still in it when it is dropped have failed.
#[derive(Debug)]
pub(super) struct InFlight {
    requests: VecDeque<(i32, ApiKey, Instant)>,
    hooks: Arc<dyn ClientHooks>,
}

impl InFlight {
    pub(crate) fn new(hooks: Arc<dyn ClientHooks>) -> Self {
        Self {
            requests: VecDeque::new(),
            hooks,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(crate) fn push(&mut self, correlation_id: i32, api: ApiKey) {
        self.requests
            .push_back((correlation_id, api, Instant::now()));
        guarded("ClientHooks::request_sent", || self.hooks.request_sent(api));
    }

    /// The request whose response comes next.
    pub(crate) fn next(&self) -> Option<i32> {
        self.requests.front().map(|request| request.0)
    }

    /// Records that response.
    pub(crate) fn answered(&mut self) {
        if let Some((_, api, sent)) = self.requests.pop_front() {
            let latency = Some(sent.elapsed());
            guarded("ClientHooks::request_ended", || {
                self.hooks.request_ended(api, latency);
            });
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        for (_, api, _) in self.requests.drain(..) {
            guarded("ClientHooks::request_ended", || {
                self.hooks.request_ended(api, None);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Journal(Mutex<Vec<(ApiKey, Option<bool>)>>);

    impl ClientHooks for Journal {
        fn request_sent(&self, api: ApiKey) {
            self.0.lock().unwrap().push((api, None));
        }

        fn request_ended(&self, api: ApiKey, latency: Option<Duration>) {
            self.0.lock().unwrap().push((api, Some(latency.is_some())));
        }
    }

    #[test]
    fn every_request_ends_once_with_its_answer_or_with_its_connection() {
        let journal = Arc::new(Journal::default());
        let mut requests = InFlight::new(journal.clone());
        requests.push(7, ApiKey::Metadata);
        requests.push(8, ApiKey::Fetch);
        assert_eq!(requests.next(), Some(7));
        requests.answered();
        assert_eq!((requests.next(), requests.len()), (Some(8), 1));
        drop(requests);
        let expected = [
            (ApiKey::Metadata, None),
            (ApiKey::Fetch, None),
            (ApiKey::Metadata, Some(true)),
            (ApiKey::Fetch, Some(false)),
        ];
        assert_eq!(*journal.0.lock().unwrap(), expected);
    }
}
