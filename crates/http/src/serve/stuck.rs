//! Refusal of the requests in a queue that no thread takes from.

use std::time::Instant;

use crossbeam_channel::Receiver;

use super::{OVERLOAD, ServerShared, Turn, Work};
use crate::observer::Observer;

impl ServerShared {
    /// Refuses all requests in `queue` while no thread takes them.
    pub(crate) fn shed_stuck(&self, observer: &mut dyn Observer, queue: &Receiver<Work>) {
        while self.admission.gives_up(Instant::now(), queue.len()) {
            match queue.try_recv() {
                Ok(Work::Answer(exchange)) => {
                    observer.dequeued();
                    if let Some(next) = self.refuse(observer, exchange, OVERLOAD) {
                        self.dispatch(observer, next);
                    }
                }
                Ok(Work::Task(_, task)) => {
                    observer.dequeued();
                    observer.shed(OVERLOAD);
                    task(Turn::Refused);
                }
                // Meant for a thread of the pool. Taking it has freed a place in the queue.
                Ok(Work::Stop) => {
                    let _ = self.queue.try_send(Work::Stop);
                    return;
                }
                Err(_) => return,
            }
        }
    }
}
