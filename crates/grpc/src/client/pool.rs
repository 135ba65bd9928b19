//! The connections of a channel: one for each address, used in turn.
//!
//! Lock order: the pool's lock before a connection's lock. Neither is held while a thread waits for the network.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use tbd_deadline::{Deadline, lock};

use super::config::ChannelConfig;
use super::side::ClientSide;
use crate::code::Code;
use crate::h2::Role;
use crate::link::{Link, Transport};
use crate::status::Status;
#[cfg(feature = "tls")]
use crate::tls::ClientTls;

/// Where a channel's servers are.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// `host:port` each.
    pub(super) names: Vec<String>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<ClientTls>,
}

/// The connections, shared by callers and the connections' threads.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) config: ChannelConfig,
    target: Target,
    state: Mutex<PoolState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct PoolState {
    servers: Vec<Server>,
    /// Where the next call looks first.
    next: usize,
    resolved_at: Option<Instant>,
    is_resolving: bool,
    /// Why the last look-up found nothing, and when it may be repeated.
    resolve_error: Option<(Status, Instant)>,
    resolve_failures: u32,
    is_closed: bool,
    threads: Vec<JoinHandle<()>>,
    /// Connections that are open, in use or not.
    links: Vec<Arc<Link>>,
}

/// One address.
#[derive(Debug)]
struct Server {
    address: SocketAddr,
    /// The name that it was found by.
    name: String,
    connection: Connection,
    failures: u32,
}

#[derive(Debug)]
enum Connection {
    Idle,
    Connecting,
    Ready(Arc<Link>),
    /// The server said GOAWAY before a call: it is there, but not for us at this time.
    Paused {
        until: Instant,
    },
    Failed {
        until: Instant,
        status: Status,
    },
}

/// What looking for a connection came to.
enum Look {
    Found(Arc<Link>),
    /// Something may change: by itself at this time, or else by another thread.
    Wait(Option<Instant>),
    /// All addresses failed. Calls that wait for a connection look again at this time.
    Failed(Status, Option<Instant>),
}

impl Pool {
    pub(super) fn new(target: Target, config: ChannelConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            target,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// A connection that takes another call, the next one in turn. Blocks until there is one, at most until `deadline`;
    /// unless `wait_for_ready`, only until all addresses have failed.
    pub(super) fn pick(
        self: &Arc<Self>,
        deadline: Deadline,
        wait_for_ready: bool,
    ) -> Result<Arc<Link>, Status> {
        let mut state = lock(&self.state);
        loop {
            if state.is_closed {
                return Err(Status::new(Code::Cancelled, "the channel is closed"));
            }
            let until = match self.look(&mut state) {
                Look::Found(link) => return Ok(link),
                Look::Failed(status, _) if !wait_for_ready => return Err(status),
                Look::Failed(_, until) | Look::Wait(until) => until,
            };
            if deadline.is_past() {
                let text = "no connection before the deadline";
                return Err(Status::new(Code::DeadlineExceeded, text));
            }
            let until = until.map_or(deadline, |until| deadline.earlier_of(Deadline::at(until)));
            let waited = self.changed.wait_timeout(state, until.remaining());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn look(self: &Arc<Self>, state: &mut PoolState) -> Look {
        let now = Instant::now();
        self.resolve_if_due(state, now);
        if state.servers.is_empty() {
            return match &state.resolve_error {
                Some((status, until)) if !state.is_resolving => {
                    Look::Failed(status.clone(), Some(*until))
                }
                _ => Look::Wait(None),
            };
        }
        let count = state.servers.len();
        let mut found = None;
        let mut failed = Vec::new();
        let mut paused = None;
        let first = state.next;
        for position in (0..count).map(|offset| (first + offset) % count) {
            let server = &mut state.servers[position];
            match &server.connection {
                Connection::Ready(link) if found.is_none() && link.lock().takes_calls() => {
                    found = Some((position, Arc::clone(link)));
                }
                Connection::Failed { until, status } if *until > now => {
                    failed.push((status.clone(), *until))
                }
                Connection::Paused { until } if *until > now => {
                    paused = Some(paused.map_or(*until, |before: Instant| before.min(*until)));
                }
                Connection::Idle | Connection::Paused { .. } | Connection::Failed { .. } => {
                    self.connect(state, position);
                }
                Connection::Ready(_) | Connection::Connecting => {}
            }
        }
        if let Some((position, link)) = found {
            state.next = position + 1;
            return Look::Found(link);
        }
        let until = failed.iter().map(|(_, until)| *until).chain(paused).min();
        match failed.pop() {
            Some((status, _)) if failed.len() + 1 == count => Look::Failed(status, until),
            _ => Look::Wait(until),
        }
    }

    /// Starts the thread that connects to a server and reads from it.
    fn connect(self: &Arc<Self>, state: &mut PoolState, position: usize) {
        let server = &mut state.servers[position];
        let (pool, address, name) = (Arc::clone(self), server.address, server.name.clone());
        let thread = thread::Builder::new().name(format!("grpc-client-{address}"));
        match thread.spawn(move || pool.run_connection(address, &name)) {
            Ok(thread) => {
                server.connection = Connection::Connecting;
                state.keep(thread);
            }
            Err(error) => server.fail(&self.config, no_thread(&error)),
        }
    }

    /// A connection's life, on its own thread.
    fn run_connection(self: Arc<Self>, address: SocketAddr, name: &str) {
        let link = match self.dial(address, name) {
            Ok(link) => link,
            Err(error) => {
                let text = format!("cannot connect to {name} ({address}): {error}");
                return self.failed(address, Status::unavailable(text));
            }
        };
        let mut state = lock(&self.state);
        state.links.push(Arc::clone(&link));
        if state.is_closed {
            link.shut_down();
        }
        drop(state);
        let mut side = ClientSide::new(Arc::clone(&link), Arc::clone(&self), address);
        let reason = link.run(&mut side);
        lock(&self.state)
            .links
            .retain(|other| !Arc::ptr_eq(other, &link));
        if !side.was_ready() {
            let text = format!("{name} ({address}): {}", reason.message());
            self.failed(address, Status::unavailable(text));
        }
    }

    fn dial(&self, address: SocketAddr, name: &str) -> io::Result<Arc<Link>> {
        let socket = TcpStream::connect_timeout(&address, self.config.connect_timeout)?;
        let config = self.config.connection.clone();
        Link::new(socket, self.transport(name)?, Role::Client, config)
    }

    #[cfg_attr(not(feature = "tls"), expect(unused_variables))]
    fn transport(&self, name: &str) -> io::Result<Transport> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.target.tls {
            let host = name.rsplit_once(':').map_or(name, |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            return tls.session(host).map(Transport::tls);
        }
        Ok(Transport::Plain)
    }

    /// The handshake with a server is over.
    pub(super) fn ready(&self, address: SocketAddr, link: &Arc<Link>) {
        let mut state = lock(&self.state);
        match state.find(address) {
            Some(server) => {
                server.connection = Connection::Ready(Arc::clone(link));
                server.failures = 0;
            }
            None => link.drain(), // the name has lost the address meanwhile
        }
        drop(state);
        self.notify();
    }

    /// A connection takes no more calls: the next one gets another.
    pub(super) fn retire(&self, address: SocketAddr, link: &Arc<Link>) {
        self.change(address, |server| {
            if matches!(&server.connection, Connection::Ready(current) if Arc::ptr_eq(current, link))
            {
                server.connection = Connection::Idle;
            }
        });
    }

    /// A server said GOAWAY before it had a call. It is asked again, but not at once and for ever.
    pub(super) fn ended_early(&self, address: SocketAddr) {
        self.change(address, |server| {
            let until = server.next_attempt(&self.config);
            server.connection = Connection::Paused { until };
        });
    }

    fn failed(&self, address: SocketAddr, status: Status) {
        log::debug!("{status}");
        self.change(address, |server| server.fail(&self.config, status));
    }

    /// Changes what is known of an address, if the name still has it.
    fn change(&self, address: SocketAddr, change: impl FnOnce(&mut Server)) {
        if let Some(server) = lock(&self.state).find(address) {
            change(server);
        }
        self.notify();
    }

    /// Lets the callers that wait look again.
    pub(super) fn notify(&self) {
        // A caller looks at connections and begins to wait under this lock. Without it, the change could come in between.
        drop(lock(&self.state));
        self.changed.notify_all();
    }

    /// Looks the names up on a thread of its own: the system's resolver knows no deadlines.
    fn resolve_if_due(self: &Arc<Self>, state: &mut PoolState, now: Instant) {
        let is_due = match (&state.resolve_error, state.resolved_at) {
            (Some((_, until)), _) => *until <= now,
            (None, Some(at)) => now >= at + self.config.resolve_interval,
            (None, None) => true,
        };
        if state.is_resolving || !is_due {
            return;
        }
        let pool = Arc::clone(self);
        let thread = thread::Builder::new().name("grpc-resolver".to_owned());
        match thread.spawn(move || pool.resolve()) {
            Ok(thread) => {
                state.is_resolving = true;
                state.keep(thread);
            }
            Err(error) => {
                let until = now + self.config.reconnect.initial;
                state.resolve_error = Some((no_thread(&error), until));
            }
        }
    }

    fn resolve(&self) {
        let mut found: Vec<(SocketAddr, &str)> = Vec::new();
        let mut error = None;
        for name in &self.target.names {
            match name.to_socket_addrs() {
                Ok(addresses) => found.extend(addresses.map(|address| (address, name.as_str()))),
                Err(reason) => error = Some(format!("cannot look up {name}: {reason}")),
            }
        }
        let mut state = lock(&self.state);
        let now = Instant::now();
        state.is_resolving = false;
        state.resolved_at = Some(now);
        if found.is_empty() {
            state.resolve_failures += 1;
            let reason = error.unwrap_or_else(|| "the name has no address".to_owned());
            let until = now + self.config.reconnect.pause(state.resolve_failures);
            state.resolve_error = Some((Status::unavailable(reason), until));
        } else {
            (state.resolve_failures, state.resolve_error) = (0, None);
            state.replace_servers(&found);
        }
        drop(state);
        self.notify();
    }

    /// Ends all connections and waits for their threads: at most the connect timeout, and the resolver's.
    pub(super) fn close(&self) {
        let (threads, links) = {
            let mut state = lock(&self.state);
            state.is_closed = true;
            state.servers.clear();
            (std::mem::take(&mut state.threads), state.links.clone())
        };
        self.notify();
        links.iter().for_each(|link| link.shut_down());
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl PoolState {
    fn find(&mut self, address: SocketAddr) -> Option<&mut Server> {
        let mut servers = self.servers.iter_mut();
        servers.find(|server| server.address == address)
    }

    /// Keeps a thread until the channel ends, and forgets those that have ended.
    fn keep(&mut self, thread: JoinHandle<()>) {
        self.threads.retain(|thread| !thread.is_finished());
        self.threads.push(thread);
    }

    /// Keeps the addresses that were there, and lets go of those that are not any more.
    fn replace_servers(&mut self, found: &[(SocketAddr, &str)]) {
        let mut before = std::mem::take(&mut self.servers);
        for (address, name) in found {
            if self.servers.iter().any(|server| server.address == *address) {
                continue;
            }
            let known = before.iter().position(|server| server.address == *address);
            self.servers.push(match known {
                Some(position) => before.swap_remove(position),
                None => Server {
                    address: *address,
                    name: (*name).to_owned(),
                    connection: Connection::Idle,
                    failures: 0,
                },
            });
        }
        for server in before {
            if let Connection::Ready(link) = server.connection {
                link.drain();
            }
        }
    }
}

fn no_thread(error: &io::Error) -> Status {
    Status::unavailable(format!("no thread: {error}"))
}

impl Server {
    fn fail(&mut self, config: &ChannelConfig, status: Status) {
        let until = self.next_attempt(config);
        self.connection = Connection::Failed { until, status };
    }

    /// Counts a failure; when to try again.
    fn next_attempt(&mut self, config: &ChannelConfig) -> Instant {
        self.failures += 1;
        Instant::now() + config.reconnect.pause(self.failures)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::echo::{self, ECHO};

    #[test]
    fn a_connection_without_stream_numbers_is_replaced() {
        let (_server, channel) = echo::server();
        let call = || {
            let deadline = Deadline::after(Duration::from_secs(20));
            channel.call(ECHO).deadline(deadline).send(&String::new())
        };
        call().unwrap();
        for link in &lock(&channel.0.pool.state).links {
            link.lock().h2.use_up_streams();
        }
        call().unwrap();
        call().unwrap();
    }
}
