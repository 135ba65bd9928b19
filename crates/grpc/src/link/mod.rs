//! One connection: a state machine, a socket, and the thread that reads.
//!
//! # Who does what
//!
//! One thread runs [`Link::run`]: it waits for the socket, hands what came to the state machine, and keeps the timers. Any
//! thread may act on a stream: it takes the lock, changes the state, and writes what the socket takes at once, unless
//! another thread is writing. The socket never blocks. What it does not take is left to the reading thread, which is woken
//! through a pipe and waits until the socket takes more.
//!
//! Lock order: the connection's lock is the innermost one. No other lock is taken and no foreign code runs under it.

mod config;
mod exchange;
mod run;
mod timers;
mod transport;

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tbd_deadline::{Deadline, lock};

pub use config::{ConnectionConfig, Keepalive};
pub(crate) use exchange::{End, Exchange, draining, late};
pub(crate) use run::Side;
use timers::Flushed;
pub(crate) use timers::Timers;
pub(crate) use transport::Transport;

use crate::code::Code;
use crate::h2::{self, ActionError, ErrorCode, SEND_BUFFER_BYTES};
use crate::hpack::Header;
use crate::message::Received;
use crate::status::Status;

/// Everything under the connection's lock.
#[derive(Debug)]
pub(crate) struct LinkState {
    pub(crate) h2: h2::Connection,
    transport: Transport,
    pub(crate) exchanges: HashMap<u32, Exchange>,
    pub(crate) timers: Timers,
    /// Whether the socket took less than there was.
    is_blocked: bool,
    /// Whether a thread is writing, and writes what is added meanwhile.
    is_writing: bool,
    /// Whether the reading thread waits for the last write.
    is_closing: bool,
    /// Whether somebody waits until less is unsent on all streams.
    is_short_of_room: bool,
    /// Whether more streams may be opened than before.
    has_new_room: bool,
    /// Why the connection is over.
    pub(crate) closed: Option<Status>,
}

type Guard<'a> = MutexGuard<'a, LinkState>;

/// A response's header list and its end, as far as they have come.
type HeadOrEnd = (Option<Vec<Header>>, Option<End>);

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
    pub(crate) config: ConnectionConfig,
    pub(crate) peer: SocketAddr,
}

impl Link {
    /// A connection over a socket that is connected. [`Link::run`] has to follow.
    pub(crate) fn new(
        socket: TcpStream,
        transport: Transport,
        role: h2::Role,
        config: ConnectionConfig,
    ) -> io::Result<Arc<Self>> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        transport::limit_silence(&socket, config.write_timeout)?;
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
            is_writing: false,
            is_closing: false,
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
    pub(crate) fn lock(&self) -> Guard<'_> {
        lock(&self.state)
    }

    /// Writes what the socket takes, and leaves the rest to the reading thread. Never blocks. The lock is free during a
    /// write: what other threads add meanwhile goes with the next one, on this thread.
    pub(crate) fn flush<'a>(&'a self, mut state: Guard<'a>) -> Guard<'a> {
        // Whoever writes it, a stream whose last octet is made is closed now.
        let _ = state.h2.output();
        if state.is_writing || state.is_blocked || state.closed.is_some() {
            return state;
        }
        state.is_writing = true;
        let mut has_written = false;
        let flushed = loop {
            let LinkState { transport, h2, .. } = &mut *state;
            let taken = transport.take(h2);
            let mut octets = taken.unwrap_or_else(|_| self.fail_writing());
            if octets.is_empty() {
                transport.put_back(h2, octets);
                break Flushed::All;
            }
            drop(state);
            let written = transport::write(&self.socket, &octets);
            let written = written.unwrap_or_else(|_| self.fail_writing());
            state = self.lock();
            octets.drain(..written);
            let LinkState { transport, h2, .. } = &mut *state;
            transport.put_back(h2, octets);
            match written {
                0 if has_written => break Flushed::Part,
                0 => break Flushed::Nothing,
                _ => has_written = true,
            }
        };
        state.is_writing = false;
        state.is_blocked = flushed != Flushed::All;
        state.timers.written(Instant::now(), flushed);
        state.wake_senders(self.config.unsent_bytes_max);
        // What the reading thread waits for has changed, or what it would have done next.
        let is_last = state.timers.is_draining() && has_written;
        if state.is_blocked || is_last || state.h2.has_events() {
            self.wake();
        }
        if state.is_closing {
            self.ended.notify_all();
        }
        state
    }

    /// The reading thread finds the same error, and ends the connection.
    fn fail_writing<T: Default>(&self) -> T {
        self.shut_down();
        T::default()
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
        drop(self.flush(state));
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
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// The peer's certificates, its own first.
    pub(crate) fn peer_certificates(&self) -> Vec<Vec<u8>> {
        self.lock().transport.peer_certificates()
    }

    /// Waits until `look` finds something, at most until `deadline`. It looks again after each change on the stream.
    fn wait_for<T>(
        &self,
        id: u32,
        deadline: Deadline,
        mut look: impl FnMut(&mut LinkState) -> Result<Option<T>, Status>,
    ) -> Result<T, Status> {
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state)? {
                drop(self.flush(state));
                return Ok(found);
            }
            // Only now, so that what is there, such as a last change of health, still gets out.
            if state.timers.is_draining() && state.exchange(id)?.ends_with_drain {
                return Err(draining());
            }
            let left = deadline.remaining();
            if left.is_zero() {
                return Err(late());
            }
            let changed = Arc::clone(state.exchange(id)?.changed.get_or_insert_default());
            let waited = changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The next message of a stream; None at its end. Waits until `deadline`.
    pub(crate) fn receive(&self, id: u32, deadline: Deadline) -> Result<Option<Received>, Status> {
        if deadline.is_past() {
            return Err(late());
        }
        self.wait_for(id, deadline, |state| {
            let exchange = state.exchange(id)?;
            if let Some((message, released)) = exchange.take() {
                state.h2.consume(id, released);
                return Ok(Some(Some(message)));
            }
            match &exchange.end {
                Some(end) => end.failure().map_or(Ok(Some(None)), Err),
                None => Ok(exchange.is_remote_done.then_some(None)),
            }
        })
    }

    /// Waits until the response's header list or the stream's end is there; both, as far as they are.
    pub(crate) fn wait_for_head(&self, id: u32, deadline: Deadline) -> Result<HeadOrEnd, Status> {
        self.wait_for(id, deadline, |state| {
            let exchange = state.exchange(id)?;
            let is_there = exchange.head.is_some() || exchange.end.is_some();
            Ok(is_there.then(|| (exchange.head.clone(), exchange.end.clone())))
        })
    }

    /// Queues a message, with `is_end` as the last one. Waits while much waits already, until `deadline`.
    pub(crate) fn send(
        &self,
        id: u32,
        message: Bytes,
        is_end: bool,
        deadline: Deadline,
    ) -> Result<(), Status> {
        self.wait_for(id, deadline, |state| {
            state.check_sending(id, self.role)?;
            let has_room = state.h2.queued_bytes_total() < self.config.unsent_bytes_max;
            if !has_room || state.h2.queued_bytes(id) >= SEND_BUFFER_BYTES {
                state.is_short_of_room |= !has_room;
                return Ok(None);
            }
            let sent = state.h2.send_data(id, message.clone(), is_end);
            sent.map(Some).map_err(|_| state.gone())
        })
    }

    /// Waits until [`Link::wake_call`] was called for the stream, until `deadline`.
    pub(crate) fn wait_for_wake(&self, id: u32, deadline: Deadline) -> Result<(), Status> {
        self.wait_for(id, deadline, |state| {
            state.check_sending(id, self.role)?;
            let is_woken = std::mem::take(&mut state.exchange(id)?.is_woken);
            Ok(is_woken.then_some(()))
        })
    }

    /// Ends the present or the next [`Link::wait_for_wake`] of the stream.
    pub(crate) fn wake_call(&self, id: u32) {
        if let Some(exchange) = self.lock().exchanges.get_mut(&id) {
            exchange.is_woken = true;
            exchange.notify();
        }
    }

    /// Opens a stream with a request's header list, at a client. With `is_flushed` it is written at once, and not together
    /// with the first message.
    pub(crate) fn start_call(&self, head: &[Header], is_flushed: bool) -> Result<u32, ActionError> {
        let mut state = self.lock();
        if state.closed.is_some() {
            return Err(ActionError::NoMoreStreams);
        }
        let id = state.h2.open(head, false)?;
        state.exchanges.insert(id, Exchange::default());
        if state.h2.is_going_away() {
            // The last stream number is used, and only the reading thread tells the pool.
            self.wake();
        }
        if is_flushed {
            drop(self.flush(state));
        }
        Ok(id)
    }

    /// Ends the request, at a client. The reader of a stream that has ended meanwhile sees its end.
    pub(crate) fn end_request(&self, id: u32) {
        let mut state = self.lock();
        let _ = state.h2.send_data(id, Bytes::new(), true);
        drop(self.flush(state));
    }

    /// Waits for the end of a stream.
    pub(crate) fn wait_for_end(&self, id: u32, deadline: Deadline) -> Result<End, Status> {
        self.wait_for(id, deadline, |state| {
            let exchange = state.exchange(id)?;
            let nothing = exchange.is_remote_done.then(|| End::Trailers(Vec::new()));
            Ok(exchange.end.clone().or(nothing))
        })
    }

    /// Cancels a call while somebody may wait for it.
    pub(crate) fn cancel(&self, id: u32) {
        let mut state = self.lock();
        state.end_exchange(id, End::Failed(cancelled()));
        state.h2.reset(id, ErrorCode::CANCEL);
        drop(self.flush(state));
    }

    /// Ends a stream at once, if it is still open, and forgets what came on it.
    pub(crate) fn abandon(&self, id: u32, code: ErrorCode) {
        let mut state = self.lock();
        if let Some(mut exchange) = state.exchanges.remove(&id) {
            // The thread that holds the call's other half may wait.
            exchange.notify();
        }
        state.h2.reset(id, code);
        let is_draining = self.flush(state).timers.is_draining();
        if is_draining {
            self.wake();
        }
    }
}

impl LinkState {
    /// The state of a stream, or the status of one that is not known any more.
    fn exchange(&mut self, id: u32) -> Result<&mut Exchange, Status> {
        let gone = self.closed.as_ref();
        let exchange = self.exchanges.get_mut(&id);
        exchange.ok_or_else(|| gone.cloned().unwrap_or_else(cancelled))
    }

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
            if let Some(exchange) = self.exchanges.get_mut(&id) {
                exchange.notify();
            }
        }
        if self.is_short_of_room && self.h2.queued_bytes_total() < unsent_bytes_max {
            self.is_short_of_room = false;
            self.exchanges.values_mut().for_each(Exchange::notify);
        }
    }

    /// The status with which a stream is over on which nothing can be sent any more.
    fn check_sending(&mut self, id: u32, role: h2::Role) -> Result<(), Status> {
        let failure = match &self.exchange(id)?.end {
            // A server that has said all does not read on. A client that has said all waits for the answer.
            Some(End::Trailers(trailers)) if role == h2::Role::Client => {
                let early = || Status::new(Code::Unknown, "the server has ended the call");
                Some(Status::from_trailers(trailers).unwrap_or_else(early))
            }
            Some(End::Trailers(_)) | None => self.closed.clone(),
            Some(end) => end.failure(),
        };
        failure.map_or(Ok(()), Err)
    }

    /// The status of a stream that is not known any more.
    fn gone(&self) -> Status {
        self.closed.clone().unwrap_or_else(cancelled)
    }

    pub(crate) fn end_exchange(&mut self, id: u32, end: End) {
        if let Some(exchange) = self.exchanges.get_mut(&id) {
            exchange.finish(end);
        }
    }

    /// Octets of messages in memory.
    fn buffered(&self) -> usize {
        self.exchanges.values().map(Exchange::buffered).sum()
    }
}

fn cancelled() -> Status {
    Status::new(Code::Cancelled, "the call was cancelled")
}
