//! One connection: a state machine, a socket, and the thread that reads.
//!
//! # Who does what
//!
//! One thread runs [`Link::run`]: it waits for the socket, hands what came to the state machine, and keeps the timers. Any
//! thread may act on a stream: it takes the lock, changes the state, and writes what the socket takes at once. Nobody
//! blocks with the lock held, since the socket never blocks. What the socket does not take is left to the reading thread,
//! which is woken through a pipe and waits until the socket takes more.
//!
//! Lock order: the connection's lock is the innermost one. No other lock is taken and no foreign code runs under it.

mod exchange;
mod run;
mod timers;
mod transport;

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tbd_deadline::{Deadline, lock};

pub(crate) use exchange::{End, Exchange};
pub(crate) use run::Side;
pub use timers::Keepalive;
pub(crate) use timers::Timers;
pub(crate) use transport::Transport;

use crate::code::Code;
use crate::h2::{self, ActionError, ErrorCode, SEND_BUFFER_BYTES};
use crate::hpack::Header;
use crate::message::Received;
use crate::status::Status;

/// How a connection is kept.
#[derive(Clone, Debug)]
pub(crate) struct LinkConfig {
    pub(crate) limits: h2::Limits,
    pub(crate) message_bytes_max: usize,
    /// Octets of messages that a connection's streams may hold together.
    pub(crate) buffered_bytes_max: usize,
    /// Octets that may wait to be sent on all streams before senders wait.
    pub(crate) unsent_bytes_max: usize,
    pub(crate) handshake_timeout: Duration,
    /// How long a peer may take nothing of what it is sent.
    pub(crate) write_timeout: Duration,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) idle_max: Option<Duration>,
    pub(crate) age_max: Option<Duration>,
    /// How long running calls may take to end after GOAWAY.
    pub(crate) drain_timeout: Duration,
}

/// Everything under the connection's lock.
#[derive(Debug)]
pub(crate) struct LinkState {
    pub(crate) h2: h2::Connection,
    transport: Transport,
    pub(crate) exchanges: HashMap<u32, Exchange>,
    pub(crate) timers: Timers,
    /// Whether the socket took less than there was.
    is_blocked: bool,
    /// Whether somebody waits until less is unsent on all streams.
    is_short_of_room: bool,
    /// Whether more streams may be opened than before.
    has_new_room: bool,
    /// Why the connection is over.
    pub(crate) closed: Option<Status>,
}

/// A connection, shared by the threads that use it.
#[derive(Debug)]
pub(crate) struct Link {
    state: Mutex<LinkState>,
    socket: TcpStream,
    wake_sender: UnixStream,
    wake_receiver: UnixStream,
    /// Wakes those who wait for the end of the connection.
    ended: Condvar,
    role: h2::Role,
    pub(crate) config: LinkConfig,
    pub(crate) peer: SocketAddr,
}

impl Link {
    /// A connection over a socket that is connected. [`Link::run`] has to follow.
    pub(crate) fn new(
        socket: TcpStream,
        transport: Transport,
        role: h2::Role,
        config: LinkConfig,
    ) -> io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let peer = socket.peer_addr()?;
        let (wake_sender, wake_receiver) = UnixStream::pair()?;
        wake_sender.set_nonblocking(true)?;
        wake_receiver.set_nonblocking(true)?;
        let state = LinkState {
            h2: h2::Connection::new(role, config.limits.clone()),
            transport,
            exchanges: HashMap::new(),
            timers: Timers::new(Instant::now(), &config),
            is_blocked: false,
            is_short_of_room: false,
            has_new_room: false,
            closed: None,
        };
        Ok(Arc::new(Self {
            state: Mutex::new(state),
            socket,
            wake_sender,
            wake_receiver,
            ended: Condvar::new(),
            role,
            config,
            peer,
        }))
    }

    /// Takes the lock. Nobody waits for anything while holding it.
    pub(crate) fn lock(&self) -> MutexGuard<'_, LinkState> {
        lock(&self.state)
    }

    /// Writes what the socket takes, and leaves the rest to the reading thread. Never blocks.
    pub(crate) fn flush(&self, state: &mut LinkState) {
        if state.is_blocked || state.closed.is_some() {
            return; // the reading thread waits for the socket already, or nobody does any more
        }
        match state.transport.flush(&mut state.h2, &self.socket) {
            Ok(flushed) => {
                state.timers.written(Instant::now(), flushed);
                state.is_blocked = flushed.is_blocked;
                state.wake_senders(self.config.unsent_bytes_max);
                if flushed.is_blocked || state.h2.has_events() {
                    self.wake();
                }
            }
            // The reading thread finds the same error, and ends the connection.
            Err(_) => self.shut_down(),
        }
    }

    /// Lets the reading thread look at the state again.
    pub(crate) fn wake(&self) {
        // A full pipe wakes as well; a broken one belongs to a thread that has ended.
        let _ = (&self.wake_sender).write(&[0]);
    }

    /// Ends the connection at once: the reading thread finds the end of the stream.
    pub(crate) fn shut_down(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        self.wake();
    }

    /// Announces the end: no more streams, and calls in flight continue for the drain timeout.
    pub(crate) fn drain(&self) {
        let mut state = self.lock();
        state.start_draining(Instant::now(), self.config.drain_timeout);
        self.flush(&mut state);
        drop(state);
        self.wake();
    }

    /// Waits until the connection is over; false if it is not by `deadline`.
    pub(crate) fn wait_until_closed(&self, deadline: Deadline) -> bool {
        let mut state = self.lock();
        while state.closed.is_none() {
            let left = deadline.remaining();
            if left.is_zero() {
                return false;
            }
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        true
    }

    /// The peer's certificates, its own first.
    pub(crate) fn peer_certificates(&self) -> Vec<Vec<u8>> {
        self.lock().transport.peer_certificates()
    }

    /// The next message of a stream; None at its end. Waits until `deadline`.
    pub(crate) fn receive(&self, id: u32, deadline: Deadline) -> Result<Option<Received>, Status> {
        if deadline.is_past() {
            return Err(Status::new(
                Code::DeadlineExceeded,
                "the deadline has passed",
            ));
        }
        let mut state = self.lock();
        loop {
            let state_ref = &mut *state;
            let Some(exchange) = state_ref.exchanges.get_mut(&id) else {
                return Err(state_ref.gone());
            };
            if let Some((message, released)) = exchange.take() {
                state_ref.h2.consume(id, released);
                self.flush(state_ref);
                return Ok(Some(message));
            }
            if let Some(end) = &exchange.end {
                return end.failure().map_or(Ok(None), Err);
            }
            if exchange.is_remote_done {
                return Ok(None);
            }
            state = self.wait(state, id, deadline)?;
        }
    }

    /// Waits for a change on the stream.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, LinkState>,
        id: u32,
        deadline: Deadline,
    ) -> Result<MutexGuard<'a, LinkState>, Status> {
        let left = deadline.remaining();
        if left.is_zero() {
            return Err(Status::new(
                Code::DeadlineExceeded,
                "the deadline has passed",
            ));
        }
        let Some(changed) = state
            .exchanges
            .get(&id)
            .map(|exchange| Arc::clone(&exchange.changed))
        else {
            return Err(state.gone());
        };
        let waited = changed.wait_timeout(state, left);
        Ok(waited.unwrap_or_else(std::sync::PoisonError::into_inner).0)
    }

    /// Waits until the response's header list or the stream's end is there, then gives it to `look`.
    pub(crate) fn wait_for_head<T>(
        &self,
        id: u32,
        deadline: Deadline,
        look: impl FnOnce(&mut Exchange) -> T,
    ) -> Result<T, Status> {
        let mut state = self.lock();
        loop {
            let state_ref = &mut *state;
            let Some(exchange) = state_ref.exchanges.get_mut(&id) else {
                return Err(state_ref.gone());
            };
            if exchange.head.is_some() || exchange.end.is_some() {
                return Ok(look(exchange));
            }
            state = self.wait(state, id, deadline)?;
        }
    }

    /// Queues a message, with `is_end` as the last one. Waits while much waits already, until `deadline`.
    pub(crate) fn send(
        &self,
        id: u32,
        message: Bytes,
        is_end: bool,
        deadline: Deadline,
    ) -> Result<(), Status> {
        let mut state = self.lock();
        loop {
            if let Some(failure) = state.send_failure(id, self.role) {
                return Err(failure);
            }
            let has_room = state.h2.queued_bytes_total() < self.config.unsent_bytes_max;
            if has_room && state.h2.queued_bytes(id) < SEND_BUFFER_BYTES {
                break;
            }
            state.is_short_of_room |= !has_room;
            state = self.wait(state, id, deadline)?;
        }
        let sent = state.h2.send_data(id, message, is_end);
        self.flush(&mut state);
        sent.map_err(|_| state.gone())
    }

    /// Opens a stream with a request's header list, at a client. With `is_flushed` it is written at once, and not together
    /// with the first message.
    pub(crate) fn start_call(
        &self,
        headers: &[Header],
        is_flushed: bool,
    ) -> Result<u32, ActionError> {
        let mut state = self.lock();
        if state.closed.is_some() {
            return Err(ActionError::NoMoreStreams);
        }
        let id = state.h2.open(headers, false)?;
        state.exchanges.insert(id, Exchange::new());
        if is_flushed {
            self.flush(&mut state);
        }
        Ok(id)
    }

    /// Ends the request, at a client. A stream that has ended meanwhile tells so to its reader.
    pub(crate) fn end_request(&self, id: u32) {
        let mut state = self.lock();
        let _ = state.h2.send_data(id, Bytes::new(), true);
        self.flush(&mut state);
    }

    /// Waits for the end of a stream.
    pub(crate) fn wait_for_end(&self, id: u32, deadline: Deadline) -> Result<End, Status> {
        let mut state = self.lock();
        loop {
            let Some(exchange) = state.exchanges.get(&id) else {
                return Err(state.gone());
            };
            if let Some(end) = &exchange.end {
                return Ok(end.clone());
            }
            if exchange.is_remote_done {
                return Ok(End::Trailers(Vec::new()));
            }
            state = self.wait(state, id, deadline)?;
        }
    }

    /// Cancels a call while somebody may wait for it.
    pub(crate) fn cancel(&self, id: u32) {
        let mut state = self.lock();
        let cancelled = Status::new(Code::Cancelled, "the call was cancelled");
        state.end_exchange(id, End::Failed(cancelled));
        state.h2.reset(id, ErrorCode::CANCEL);
        self.flush(&mut state);
    }

    /// Ends a stream at once, if it is still open, and forgets what came on it.
    pub(crate) fn abandon(&self, id: u32, code: ErrorCode) {
        let mut state = self.lock();
        state.exchanges.remove(&id);
        state.h2.reset(id, code);
        self.flush(&mut state);
        let is_draining = state.timers.is_draining();
        drop(state);
        if is_draining {
            self.wake();
        }
    }
}

impl LinkState {
    /// Whether the peer takes no more calls, or we open none.
    pub(crate) fn is_going_away(&self) -> bool {
        self.h2.is_going_away() || self.timers.is_draining()
    }

    /// Whether a call can be started at this time.
    pub(crate) fn takes_calls(&self) -> bool {
        self.closed.is_none() && self.h2.can_open()
    }

    /// Whether more streams may be opened than when this was asked last.
    pub(crate) fn take_new_room(&mut self) -> bool {
        std::mem::take(&mut self.has_new_room)
    }

    /// Wakes the threads that can send again.
    fn wake_senders(&mut self, unsent_bytes_max: usize) {
        while let Some(id) = self.h2.next_drained() {
            if let Some(exchange) = self.exchanges.get(&id) {
                exchange.changed.notify_all();
            }
        }
        if self.is_short_of_room && self.h2.queued_bytes_total() < unsent_bytes_max {
            self.is_short_of_room = false;
            self.exchanges
                .values()
                .for_each(|exchange| exchange.changed.notify_all());
        }
    }

    /// Why nothing can be sent on the stream, if that is so.
    fn send_failure(&self, id: u32, role: h2::Role) -> Option<Status> {
        let Some(exchange) = self.exchanges.get(&id) else {
            return Some(self.gone());
        };
        match exchange.end.as_ref() {
            // A server that has said all does not read on. A client that has said all waits for the answer.
            Some(End::Trailers(trailers)) if role == h2::Role::Client => {
                let early = || Status::new(Code::Unknown, "the server has ended the call");
                Some(Status::from_trailers(trailers).unwrap_or_else(early))
            }
            Some(End::Trailers(_)) => self.closed.clone(),
            Some(end) => end.failure(),
            None => self.closed.clone(),
        }
    }

    /// The status of a stream that is not known any more.
    fn gone(&self) -> Status {
        let cancelled = || Status::new(Code::Cancelled, "the call was cancelled");
        self.closed.clone().unwrap_or_else(cancelled)
    }

    /// Octets of messages in memory.
    pub(crate) fn buffered(&self) -> usize {
        self.exchanges.values().map(Exchange::buffered).sum()
    }
}
