//! A poll(2) wait for several events on one thread: broker answers, a wake-up from another thread,
//! or the deadline.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use tbd_deadline::Deadline;

/// Wakes a consumer's wait from any thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Waker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    is_woken: AtomicBool,
    sender: UnixStream,
}

impl Waker {
    /// Makes the current poll, or else the next one, return at once without records. Never blocks;
    /// several calls before a poll count as one.
    #[doc(alias = "wakeup")]
    pub fn wake(&self) {
        self.inner.is_woken.store(true, Ordering::SeqCst);
        self.nudge();
    }

    /// Ends a wait without ending the poll.
    pub(crate) fn nudge(&self) {
        // A full buffer means that a wake-up is already pending.
        let _ = (&self.inner.sender).write(&[1]);
    }
}

/// The waiting side of a [`Waker`].
#[derive(Debug)]
pub(crate) struct WakeReceiver {
    inner: Arc<Inner>,
    receiver: UnixStream,
}

/// Creates a waker and its waiting side.
///
/// # Errors
/// When the operating system cannot create a socket pair.
pub(crate) fn waker() -> io::Result<(Waker, WakeReceiver)> {
    let (sender, receiver) = UnixStream::pair()?;
    sender.set_nonblocking(true)?;
    receiver.set_nonblocking(true)?;
    let inner = Arc::new(Inner {
        is_woken: AtomicBool::new(false),
        sender,
    });
    Ok((
        Waker {
            inner: inner.clone(),
        },
        WakeReceiver { inner, receiver },
    ))
}

impl WakeReceiver {
    /// Whether [`Waker::wake`] was called since the last call.
    pub(crate) fn take(&self) -> bool {
        self.inner.is_woken.swap(false, Ordering::SeqCst)
    }

    /// Reads and discards the bytes that made it readable.
    pub(crate) fn drain(&self) {
        let mut bytes = [0; 64];
        while matches!((&self.receiver).read(&mut bytes), Ok(count) if count > 0) {}
    }
}

impl AsFd for WakeReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// Waits until one of `sources` is readable or broken, or until `deadline`. Returns for each source
/// whether it is. An interrupted or failed wait returns false for all: the caller checks its state
/// and waits again.
pub(crate) fn readable(sources: &[BorrowedFd<'_>], deadline: Deadline) -> Vec<bool> {
    let mut descriptors: Vec<PollFd<'_>> = sources
        .iter()
        .map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN))
        .collect();
    let left = deadline.remaining();
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    match poll(&mut descriptors, Some(&timeout)) {
        Ok(_) => descriptors
            .iter()
            .map(|descriptor| !descriptor.revents().is_empty())
            .collect(),
        Err(_) => vec![false; sources.len()],
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wake_up_before_the_wait_is_not_lost_and_counts_once() {
        let (waker, receiver) = waker().unwrap();
        waker.wake();
        waker.wake();
        assert_eq!(
            readable(
                &[receiver.as_fd()],
                Deadline::after(Duration::from_secs(60))
            ),
            [true]
        );
        receiver.drain();
        assert!(receiver.take());
        assert!(!receiver.take());
        assert_eq!(
            readable(&[receiver.as_fd()], Deadline::after(Duration::ZERO)),
            [false]
        );
    }

    #[test]
    fn a_nudge_ends_the_wait_but_is_no_wake_up() {
        let (waker, receiver) = waker().unwrap();
        for _ in 0..10_000 {
            waker.nudge();
        }
        assert_eq!(
            readable(
                &[receiver.as_fd()],
                Deadline::after(Duration::from_secs(60))
            ),
            [true]
        );
        assert!(!receiver.take());
    }
}
