//! The reading thread: waits for the socket, the timers and the other threads.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::timers::{Due, KEEPALIVE_PING};
use super::{End, Link, LinkState};
use crate::code::Code;
use crate::h2::{ErrorCode, Event, Role};
use crate::hpack::Header;
use crate::status::Status;

/// How much is read at once.
const READ_BYTES: usize = 32 * 1024;

/// Octets of output beyond which nothing more is read, while the socket takes none.
const UNSENT_BYTES_MAX: usize = 256 * 1024;

/// How long the end of a broken connection is waited for, so that the peer can read why.
const LINGER: Duration = Duration::from_millis(300);

/// What a server and a client do differently. The reading thread owns it.
pub(crate) trait Side {
    /// A header list opens a stream or answers one. Called under the lock.
    fn headers(&mut self, state: &mut LinkState, id: u32, headers: Vec<Header>, is_end: bool);
    /// Content came, or the peer's half ended. Called under the lock.
    fn progress(&mut self, state: &mut LinkState, id: u32);
    /// A stream's time is up. Called under the lock.
    fn due(&mut self, state: &mut LinkState, id: u32);
    /// What cannot be done under the lock: called without it after each turn, once more when the connection is over.
    fn unlocked(&mut self);
}

impl Link {
    /// Reads until the connection is over, and returns why.
    pub(crate) fn run(&self, side: &mut impl Side) -> Status {
        let mut buffer = vec![0; READ_BYTES];
        drop(self.flush(self.lock()));
        let reason = loop {
            if let Err(reason) = self.turn(side, &mut buffer) {
                break reason;
            }
            side.unlocked();
        };
        self.close(&reason);
        side.unlocked();
        self.linger(&mut buffer);
        reason
    }

    /// One wait, and what follows from it.
    fn turn(&self, side: &mut impl Side, buffer: &mut [u8]) -> Result<(), Status> {
        let (interest, next) = self.prepare(side)?;
        let readiness = self.poll(interest, next).map_err(|error| lost(&error))?;
        if readiness.is_woken {
            self.drain_pipe();
        }
        if readiness.is_woken || readiness.is_writable {
            let mut state = self.lock();
            if readiness.is_writable {
                state.is_blocked = false;
                state = self.flush(state);
            }
            // Other threads make events, too: a stream that they end leaves its place.
            self.absorb(side, &mut state);
        }
        if readiness.is_readable {
            self.read(side, buffer)?;
        }
        Ok(())
    }

    /// Does what is due; then what is to be waited for, and until when.
    fn prepare(&self, side: &mut impl Side) -> Result<(PollFlags, Option<Instant>), Status> {
        let mut state = self.lock();
        let now = Instant::now();
        let is_used = !state.exchanges.is_empty() || state.h2.open_streams() > 0;
        state.timers.is_used(is_used, now);
        while let Some(due) = state.timers.due(now) {
            match due {
                Due::Close(reason) => {
                    state.h2.go_away(ErrorCode::NO_ERROR, reason);
                    return Err(Status::unavailable(reason));
                }
                Due::Ping => state.h2.ping(KEEPALIVE_PING),
                Due::SecondGoAway => state.h2.go_away(ErrorCode::NO_ERROR, ""),
                Due::Drain => state.start_draining(now, self.config.drain_timeout),
                Due::Streams => {
                    let ids = state.timers.due_streams(now).into_iter();
                    ids.for_each(|id| side.due(&mut state, id));
                }
            }
        }
        state = self.flush(state);
        let is_drained = state.timers.is_draining() && state.h2.has_said_go_away();
        if is_drained && !is_used && !state.is_blocked && !state.is_writing {
            return Err(Status::unavailable("the connection has ended"));
        }
        let mut interest = PollFlags::empty();
        if state.is_blocked {
            interest |= PollFlags::OUT;
        }
        // A peer that makes us answer and does not read the answers has to wait, until the write timeout ends it.
        if !state.is_blocked || state.h2.unsent_bytes() < UNSENT_BYTES_MAX {
            interest |= PollFlags::IN;
        }
        Ok((interest, state.timers.next()))
    }

    fn poll(&self, interest: PollFlags, next: Option<Instant>) -> io::Result<Readiness> {
        let mut polled = [
            PollFd::new(&self.socket, interest),
            PollFd::new(&self.wake_receiver, PollFlags::IN),
        ];
        // Rounded up by a millisecond, so that what is waited for is due afterwards.
        let left = next
            .map(|next| next.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Readiness::default()),
            Err(error) => return Err(error.into()),
        }
        let socket = polled[0].revents();
        let is_over = socket.intersects(PollFlags::ERR | PollFlags::HUP);
        Ok(Readiness {
            is_readable: socket.contains(PollFlags::IN) || is_over,
            is_writable: socket.contains(PollFlags::OUT),
            is_woken: !polled[1].revents().is_empty(),
        })
    }

    fn drain_pipe(&self) {
        let mut octets = [0; 64];
        while matches!((&self.wake_receiver).read(&mut octets), Ok(length) if length == octets.len())
        {
        }
    }

    fn read(&self, side: &mut impl Side, buffer: &mut [u8]) -> Result<(), Status> {
        let length = match (&self.socket).read(buffer) {
            Ok(0) => return Err(Status::unavailable("the peer has closed the connection")),
            Ok(length) => length,
            Err(error) if is_passing(&error) => return Ok(()),
            Err(error) => return Err(lost(&error)),
        };
        let mut state = self.lock();
        let now = Instant::now();
        state.timers.received(now);
        let LinkState { transport, h2, .. } = &mut *state;
        let mut result = Ok(());
        let opened = transport.open(&buffer[..length], &mut |plain| {
            if result.is_ok() {
                result = h2.receive(plain, now);
            }
        });
        // What came before an error is still worked on, and the peer hears of the error.
        self.absorb(side, &mut state);
        drop(self.flush(state));
        opened.map_err(|error| lost(&error))?;
        result.map_err(|error| {
            log::debug!("{}: {error}", self.peer);
            lost(&error)
        })
    }

    /// Works through the events.
    fn absorb(&self, side: &mut impl Side, state: &mut LinkState) {
        while let Some(event) = state.h2.next_event() {
            match event {
                Event::Ready => state.timers.ready(),
                Event::Headers {
                    stream,
                    headers,
                    is_end,
                } => side.headers(state, stream, headers, is_end),
                Event::Data {
                    stream,
                    data,
                    is_end,
                } => {
                    self.content(state, stream, &data, is_end);
                    side.progress(state, stream);
                }
                Event::Trailers { stream, headers } => {
                    state.end_exchange(stream, End::Trailers(headers));
                    side.progress(state, stream);
                }
                Event::Reset { stream, code } => {
                    state.end_exchange(stream, End::Reset(code));
                    side.progress(state, stream);
                }
                Event::Pong { payload } => state.pong(payload),
                Event::GoAway { .. } if self.role == Role::Client => {
                    state.start_draining(Instant::now(), self.config.drain_timeout);
                }
                Event::GoAway { .. } => {}
                Event::StreamsAvailable => state.has_new_room = true,
            }
        }
    }

    fn content(&self, state: &mut LinkState, id: u32, data: &bytes::Bytes, is_end: bool) {
        let Some(exchange) = state.exchanges.get_mut(&id) else {
            return state.h2.consume(id, data.len());
        };
        let mut received = exchange.receive(data, self.config.message_bytes_max);
        if exchange.buffered() > self.config.limits.stream_window_bytes as usize
            && state.buffered() > self.config.buffered_bytes_max
        {
            let text = "the connection's calls hold too many bytes";
            received = Err(Status::new(Code::ResourceExhausted, text));
        }
        match received {
            Ok(released) => state.h2.consume(id, released),
            Err(status) => return state.end_exchange(id, End::Failed(status)),
        }
        let Some(exchange) = state.exchanges.get_mut(&id) else {
            return;
        };
        exchange.is_remote_done |= is_end;
        if is_end && exchange.is_cut_off() {
            let status = Status::internal("the stream ended within a message");
            exchange.finish(End::Failed(status));
        }
        exchange.notify();
    }

    /// Tells everybody that the connection is over.
    fn close(&self, reason: &Status) {
        let mut state = self.lock();
        state.transport.finish();
        state.is_closing = true;
        state = self.flush(state);
        while state.is_writing {
            // The other thread's write does not block, and takes what was added now.
            let waited = self.ended.wait_timeout(state, LINGER);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.closed = Some(reason.clone());
        for exchange in state.exchanges.values_mut() {
            exchange.finish(End::Lost(reason.clone()));
        }
        self.ended.notify_all();
    }

    /// Closes without a reset, which would destroy a GOAWAY frame that the peer has not read.
    fn linger(&self, buffer: &mut [u8]) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let end = Instant::now() + LINGER;
        while Instant::now() < end {
            if self.poll(PollFlags::IN, Some(end)).is_err() {
                break;
            }
            self.drain_pipe();
            match (&self.socket).read(buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(_) => break,
            }
        }
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

#[derive(Debug, Default)]
struct Readiness {
    is_readable: bool,
    is_writable: bool,
    is_woken: bool,
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

fn lost(error: &dyn std::error::Error) -> Status {
    Status::unavailable(format!("the connection broke: {error}"))
}
