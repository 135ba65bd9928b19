//! The server: threads around connections and calls.

mod call;
mod config;
mod health;
mod job;
mod pool;
mod reflection;
mod router;
mod side;

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tbd_deadline::{Deadline, StopSignal, lock};

pub use call::Call;
pub use config::ServerConfig;
pub use health::{Health, ServingStatus};
pub use job::Job;
pub use pool::{Executor, WorkerPool};
pub use reflection::add_reflection;
pub use router::{Next, Requests, Responses, Router};

use crate::h2::Role;
use crate::link::{Link, Transport};
#[cfg(feature = "tls")]
use crate::tls::ServerTls;
use pool::OwnThreads;
use side::ServerSide;

/// How long the accepting thread waits after an error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A server that runs. Dropping it ends all connections at once; [`Server::stop`] lets calls end. Both wait for the threads
/// of its own pool, and so for handlers that do not look whether their calls are cancelled.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    address: SocketAddr,
}

/// What the accepting thread, the connections' threads and the owner share.
#[derive(Debug)]
struct Shared {
    config: ServerConfig,
    router: Arc<Router>,
    executor: Arc<dyn Executor>,
    own_threads: Arc<OwnThreads>,
    #[cfg(feature = "tls")]
    tls: Option<ServerTls>,
    connections: Mutex<Connections>,
    stop: StopSignal,
    wake: UnixStream,
}

#[derive(Debug, Default)]
struct Connections {
    next: u64,
    open: HashMap<u64, (Arc<Link>, JoinHandle<()>)>,
    /// Connections whose threads are about to end.
    ended: Vec<u64>,
}

/// Collects what a server needs.
#[derive(Debug)]
pub struct ServerBuilder {
    config: ServerConfig,
    router: Router,
    executor: Option<Arc<dyn Executor>>,
    #[cfg(feature = "tls")]
    tls: Option<ServerTls>,
}

impl ServerBuilder {
    /// Other settings than the defaults.
    pub fn config(mut self, config: ServerConfig) -> Self {
        self.config = config;
        self
    }

    /// Runs calls there, instead of on a pool of 16 threads with 1024 places.
    pub fn executor(mut self, executor: Arc<dyn Executor>) -> Self {
        self.executor = Some(executor);
        self
    }

    /// Speaks TLS.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Starts the thread `grpc-acceptor`, and one `grpc-conn-N` for each connection that it accepts.
    ///
    /// # Errors
    /// The operating system refuses a thread or a socket.
    pub fn start(self, listener: TcpListener) -> io::Result<Server> {
        let executor = match self.executor {
            Some(executor) => executor,
            None => Arc::new(WorkerPool::new(16, 1024)?),
        };
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            own_threads: Arc::new(OwnThreads::new(self.config.own_threads_max)),
            config: self.config,
            router: Arc::new(self.router),
            executor,
            #[cfg(feature = "tls")]
            tls: self.tls,
            connections: Mutex::default(),
            stop: StopSignal::new(),
            wake,
        });
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name("grpc-acceptor".to_owned())
                .spawn(move || shared.accept_all(&listener, &woken))?
        };
        Ok(Server {
            shared,
            acceptor: Some(acceptor),
            address,
        })
    }
}

impl Server {
    /// A server for the methods of `router`.
    pub fn builder(router: Router) -> ServerBuilder {
        ServerBuilder {
            config: ServerConfig::default(),
            router,
            executor: None,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// The address on which it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The number of open connections.
    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).open.len()
    }

    /// Accepts no more, says GOAWAY to every client and waits until the calls under way have ended. Connections that are
    /// open at `deadline` are closed. Blocks until `deadline` and some milliseconds more; true if no call was cut off.
    pub fn stop(mut self, deadline: Deadline) -> bool {
        self.stop_accepting();
        let connections = self.shared.take_connections();
        connections.iter().for_each(|(link, _)| link.drain());
        let mut is_complete = true;
        for (link, thread) in connections {
            let has_ended = link.wait_until_closed(deadline);
            if !has_ended {
                link.shut_down();
            }
            let _ = thread.join();
            is_complete &= has_ended;
        }
        is_complete
    }

    fn stop_accepting(&mut self) {
        self.shared.stop.stop();
        self.shared.wake();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_accepting();
        for (link, thread) in self.shared.take_connections() {
            link.shut_down();
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        let _ = (&self.wake).write(&[0]);
    }

    fn take_connections(&self) -> Vec<(Arc<Link>, JoinHandle<()>)> {
        let mut connections = lock(&self.connections);
        connections.open.drain().map(|(_, open)| open).collect()
    }

    /// The accepting thread.
    fn accept_all(self: &Arc<Self>, listener: &TcpListener, woken: &UnixStream) {
        while !self.stop.is_stopped() {
            self.join_ended();
            let is_full = lock(&self.connections).open.len() >= self.config.connections_max;
            let interest = match is_full {
                true => PollFlags::empty(),
                false => PollFlags::IN,
            };
            let mut polled = [
                PollFd::new(listener, interest),
                PollFd::new(woken, PollFlags::IN),
            ];
            // Nothing but the two is waited for; the limit only bounds what a lost wake-up costs.
            let limit = Timespec {
                tv_sec: 10,
                tv_nsec: 0,
            };
            if poll(&mut polled, Some(&limit)).is_err() {
                continue;
            }
            if !polled[1].revents().is_empty() {
                let mut octets = [0; 64];
                let _ = (&mut &*woken).read(&mut octets);
            }
            if polled[0].revents().is_empty() {
                continue;
            }
            match listener.accept() {
                Ok((socket, _)) => {
                    if let Err(error) = self.start_connection(socket) {
                        log::warn!("cannot serve a new connection: {error}");
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("accepting failed: {error}");
                    self.stop.wait_for(ACCEPT_PAUSE);
                }
            }
        }
        self.join_ended();
    }

    fn start_connection(self: &Arc<Self>, socket: TcpStream) -> io::Result<()> {
        let config = self.config.connection.clone();
        let link = Link::new(socket, self.transport()?, Role::Server, config)?;
        let mut connections = lock(&self.connections);
        let number = connections.next;
        connections.next += 1;
        let (shared, thread_link) = (Arc::clone(self), Arc::clone(&link));
        let thread = thread::Builder::new()
            .name(format!("grpc-conn-{number}"))
            .spawn(move || {
                let mut side = ServerSide::new(Arc::clone(&thread_link), Arc::clone(&shared));
                let reason = thread_link.run(&mut side);
                log::debug!("{}: {}", thread_link.peer, reason.message());
                lock(&shared.connections).ended.push(number);
                shared.wake();
            })?;
        connections.open.insert(number, (link, thread));
        Ok(())
    }

    fn transport(&self) -> io::Result<Transport> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.session().map(Transport::tls);
        }
        Ok(Transport::Plain)
    }

    /// Joins the threads whose connections are over.
    fn join_ended(&self) {
        let ended: Vec<_> = {
            let mut connections = lock(&self.connections);
            let numbers = std::mem::take(&mut connections.ended).into_iter();
            let ended = numbers.filter_map(|number| connections.open.remove(&number));
            ended.collect()
        };
        for (_, thread) in ended {
            if thread.join().is_err() {
                log::error!("the thread of a connection panicked");
            }
        }
    }
}
