//! Start and shutdown of the server's threads.

use std::fmt;
#[cfg(feature = "tls")]
use std::net::Ipv4Addr;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use socket2::SockRef;

use super::containment::self_check::{PING_INTERVAL, Ping, SelfCheck};
use super::containment::socket;
use super::observer::{Observer, Observers};
use super::router::Router;
use super::serve::queues::Queues;
use super::serve::refusals::Held;
use super::serve::{Lane, Linger, ServerShared, Task, Work};
#[cfg(feature = "tls")]
use super::tls::{self, Front, TlsConfig};
use tbd_deadline::Deadline;

/// Threads for probe routes.
const PROBE_THREADS: usize = 2;

/// How long dropping a server that was not shut down waits for its threads.
const DROP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long idle threads may take to end after the deadline.
const GRACE: Duration = Duration::from_millis(250);

/// A server's configuration.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address to listen on; port 0 takes a free one.
    pub addr: SocketAddr,
    /// Threads that take requests from tiny_http.
    pub acceptors: usize,
    /// Threads that run handlers: requests answered at a time.
    pub workers: usize,
    /// Requests that may wait for a thread; beyond this, 503.
    pub queue: usize,
    /// Refusals that are sent at once in each second. Each further one is sent a second later, so that
    /// clients which ignore `Retry-After` leave the threads their cores.
    pub refusals_at_once: u32,
    /// How long the queue may stay too long, or all threads may take no request, before further
    /// requests get 503 (see `admission`).
    pub burst: Duration,
    /// The time from a request's arrival to its response, waiting included.
    pub request_timeout: Duration,
    /// How long a connection may send nothing before it is closed. It must exceed the idle timeout
    /// of the proxy in front (nginx: 60 s), or the proxy occasionally sends a request into a
    /// closing connection. At least 15 s (three times the self-check's interval).
    pub idle_timeout: Duration,
    /// Longest request body, in bytes.
    pub body_limit: usize,
    /// The process must end when its resident memory exceeds this, in bytes.
    pub memory_limit_bytes: u64,
    /// TLS on `addr`, and nothing else there; `None`: plain text.
    #[cfg(feature = "tls")]
    pub tls: Option<TlsConfig>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from(([0, 0, 0, 0], 8080)),
            acceptors: 2,
            workers: 64,
            queue: 1024,
            refusals_at_once: 1_000,
            burst: Duration::from_millis(500),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            body_limit: 64 * 1024,
            memory_limit_bytes: 512 * 1024 * 1024,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on: taken, not local, or not permitted.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The requested address.
        addr: SocketAddr,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A certificate or key cannot be used.
    #[cfg(feature = "tls")]
    #[error("TLS of the HTTP server: {0}")]
    Tls(#[from] tbd_tls::FileError),
    /// tiny_http did not take the listener.
    #[error("tiny_http did not start: {0}")]
    TinyHttp(String),
    /// The operating system refused a thread.
    #[error("cannot start thread {name}: {source}")]
    Thread {
        /// The thread's name.
        name: String,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

/// The shutdown's deadline passed before the last request was answered.
#[derive(Debug, thiserror::Error)]
#[error("{threads} threads of the HTTP server were still busy at the deadline")]
pub struct StillBusy {
    /// Threads that had not ended; they run until the process ends.
    pub threads: usize,
}

/// Called once, with the reason, when the server cannot continue and only a new process can help. A
/// program exits with code 70 here.
pub type OnFatal = Box<dyn Fn(&str) + Send + Sync>;

/// A running server. Dropped without [`shutdown`](Self::shutdown), it stops the same way but waits
/// at most 5 s.
pub struct Server {
    local_addr: SocketAddr,
    #[cfg(feature = "tls")]
    front: Option<Front>,
    workers: usize,
    acceptors: usize,
    shared: Arc<ServerShared>,
    observers: Observers,
    /// tiny_http's server, shared with the acceptors.
    tiny: Arc<tiny_http::Server>,
    /// The same socket as tiny_http's, to stop it from accepting.
    listener: TcpListener,
    /// Acceptors end at their next wake-up.
    quit: Arc<AtomicBool>,
    /// Kept, so that the self-check ends with its message and not before.
    stop_check: Sender<()>,
    threads: Vec<JoinHandle<()>>,
    /// Disconnected once every thread has ended.
    ended: Receiver<()>,
}

impl Server {
    /// Raises the process's descriptor limit, listens and starts all threads. Requests are answered
    /// from now on. `observers` makes the observer of each thread. Does not block.
    ///
    /// # Errors
    /// [`StartError`]; no thread keeps running.
    pub fn start(
        config: ServerConfig,
        router: Router,
        observers: Observers,
        on_fatal: OnFatal,
    ) -> Result<Server, StartError> {
        let descriptors = socket::raise_descriptor_limit();
        let listen_error = |source| StartError::Listen {
            addr: config.addr,
            source,
        };
        let idle_timeout = config.idle_timeout.max(3 * PING_INTERVAL);
        let listener = socket::listen(config.addr, idle_timeout).map_err(listen_error)?;
        let local_addr = listener.local_addr().map_err(listen_error)?;
        // With TLS, that listener is the front's, and the server has one on the loopback.
        #[cfg(feature = "tls")]
        let (listener, front) = match &config.tls {
            None => (listener, None),
            Some(tls) => {
                let settings = tls::settings(tls)?;
                let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let inner = socket::listen(addr, idle_timeout).map_err(listen_error)?;
                let addr = inner.local_addr().map_err(listen_error)?;
                let limit = idle_timeout.max(config.request_timeout);
                let front = Front::new(listener, tls.clone(), settings, addr, limit);
                (inner, Some(front.map_err(listen_error)?))
            }
        };
        let inner_addr = listener.local_addr().map_err(listen_error)?;
        let handed_over = listener.try_clone().map_err(listen_error)?;

        let (shared, queues) = ServerShared::new(&config, router, inner_addr.port());
        let tiny = tiny_http::Server::from_listener(handed_over, None)
            .map_err(|error| StartError::TinyHttp(error.to_string()))?;
        let (stop_check, stopped) = bounded(1);
        let (alive, ended) = bounded(0);
        // From here on, dropping the partial server stops what was started.
        let mut server = Server {
            local_addr,
            #[cfg(feature = "tls")]
            front,
            workers: config.workers.max(1),
            acceptors: config.acceptors.max(1),
            shared,
            observers,
            tiny: Arc::new(tiny),
            listener,
            quit: Arc::new(AtomicBool::new(false)),
            stop_check,
            threads: Vec::new(),
            ended,
        };
        let on_fatal = Arc::new(on_fatal);
        server.spawn_answering(&alive, &queues)?;
        server.spawn_acceptors(&alive, &on_fatal)?;
        server.spawn_checks(&alive, &config, inner_addr, queues, stopped, on_fatal)?;
        #[cfg(feature = "tls")]
        server.spawn_front(alive)?;
        log::info!(
            target: "tbd::http",
            workers = server.workers,
            queue = config.queue,
            tls = local_addr != inner_addr,
            descriptors = descriptors.unwrap_or(u64::MAX);
            "listening on {local_addr}"
        );
        Ok(server)
    }

    /// Starts the threads that answer: the pool's, the probes', the one that sends held refusals, and the
    /// one that lingers.
    fn spawn_answering(&mut self, alive: &Sender<()>, queues: &Queues) -> Result<(), StartError> {
        let pool = (0..self.workers).map(|number| (format!("http-worker-{number}"), Lane::Pool));
        let probes =
            (0..PROBE_THREADS).map(|number| (format!("http-probe-{number}"), Lane::Probes));
        for (name, lane) in pool.chain(probes) {
            let (shared, observers) = (self.shared.clone(), self.observers.clone());
            let work = match lane {
                Lane::Pool => queues.pool.clone(),
                Lane::Probes => queues.probes.clone(),
            };
            self.spawn(alive, name, move || {
                shared.work(&mut *observers(), &work, lane);
            })?;
        }
        let (shared, observers, held) = (
            self.shared.clone(),
            self.observers.clone(),
            queues.held.clone(),
        );
        self.spawn(alive, "http-refuser".to_owned(), move || {
            shared.send_held(&mut *observers(), &held);
        })?;
        let (shared, lingering) = (self.shared.clone(), queues.lingering.clone());
        let stop_check = self.stop_check.clone();
        self.spawn(alive, "http-linger".to_owned(), move || {
            shared.linger(&lingering);
            // Not before: the self-check ends the reads of this thread, the last that reads from clients.
            let _ = stop_check.try_send(());
        })
    }

    fn spawn_acceptors(
        &mut self,
        alive: &Sender<()>,
        on_fatal: &Arc<OnFatal>,
    ) -> Result<(), StartError> {
        for number in 0..self.acceptors {
            let acceptor = Acceptor {
                shared: self.shared.clone(),
                tiny: self.tiny.clone(),
                quit: self.quit.clone(),
                on_fatal: on_fatal.clone(),
            };
            let observers = self.observers.clone();
            self.spawn(alive, format!("http-acceptor-{number}"), move || {
                acceptor.run(&mut *observers());
            })?;
        }
        Ok(())
    }

    /// Starts the self-check and its pings. It ends them when it ends.
    fn spawn_checks(
        &mut self,
        alive: &Sender<()>,
        config: &ServerConfig,
        addr: SocketAddr,
        queues: Queues,
        stopped: Receiver<()>,
        on_fatal: Arc<OnFatal>,
    ) -> Result<(), StartError> {
        let ping = Arc::new(Ping {
            addr,
            failed: AtomicU32::new(0),
        });
        let check = SelfCheck {
            addr,
            memory_limit_bytes: config.memory_limit_bytes,
            ping: ping.clone(),
        };
        let (pinging, ping_stopped) = bounded(1);
        let shared = self.shared.clone();
        self.spawn(alive, "http-ping".to_owned(), move || {
            ping.run(&shared, &ping_stopped);
        })?;
        let (shared, observers) = (self.shared.clone(), self.observers.clone());
        self.spawn(alive, "http-self-check".to_owned(), move || {
            let mut observer = observers();
            let reason = check.run(&shared, &stopped, &queues.newcomers, || {
                shared.shed_stuck(&mut *observer, &queues.pool);
            });
            if let Some(reason) = reason {
                fatal(&**on_fatal, &reason);
            }
            drop(pinging);
        })
    }

    /// Starts the thread that accepts TLS connections, if there are to be any.
    #[cfg(feature = "tls")]
    fn spawn_front(&mut self, alive: Sender<()>) -> Result<(), StartError> {
        let Some(front) = &self.front else {
            return Ok(());
        };
        let name = "http-tls-accept".to_owned();
        match front.acceptor(alive.clone()) {
            Ok(acceptor) => self.spawn(&alive, name, acceptor),
            Err(source) => Err(StartError::Thread { name, source }),
        }
    }

    /// The address in use, with the actual port if 0 was requested.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Queue and threads, for the work of another server of the process.
    pub fn pool(&self) -> Pool {
        Pool {
            shared: Arc::clone(&self.shared),
            observers: Arc::clone(&self.observers),
        }
    }

    /// Stops accepting; [`shutdown`](Self::shutdown) does the rest. Each response is its
    /// connection's last from now on. Does not block.
    pub fn stop_accepting(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        #[cfg(feature = "tls")]
        self.front.iter().for_each(Front::stop_accepting);
        // Wakes tiny_http's accept thread with an error, which ends it.
        let _ = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both);
    }

    /// Stops accepting, drains, and joins all threads. It answers the requests in flight and those
    /// that open connections still send. Each response is its connection's last, except for probes
    /// while other requests are in flight. Idle connections are not waited for.
    ///
    /// # Errors
    /// [`StillBusy`] when `deadline` came first; busy threads keep running. Returned at most a
    /// quarter of a second after `deadline`.
    pub fn shutdown(mut self, deadline: Deadline) -> Result<(), StillBusy> {
        self.stop(deadline)
    }

    fn stop(&mut self, deadline: Deadline) -> Result<(), StillBusy> {
        self.stop_accepting();
        self.shared.connections.wait_until_idle(deadline);
        self.quit.store(true, Ordering::Release);
        #[cfg(feature = "tls")]
        self.front.iter_mut().for_each(Front::stop);
        for _ in 0..self.acceptors {
            self.tiny.unblock();
        }
        for _ in 0..self.workers {
            let _ = self
                .shared
                .queue
                .send_deadline(Work::Stop, deadline.instant());
        }
        for _ in 0..PROBE_THREADS {
            let _ = self
                .shared
                .probes
                .send_deadline(Work::Stop, deadline.instant());
        }
        let _ = self
            .shared
            .refusals
            .held
            .send_deadline(Held::Stop, deadline.instant());
        let _ = self
            .shared
            .lingering
            .send_deadline(Linger::Stop, deadline.instant());
        // Nothing is ever sent. This ends when the last thread drops its sender.
        let patience = deadline.remaining().max(GRACE);
        let all_ended = self.ended.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected);
        #[cfg(feature = "tls")]
        let bridges = self.front.iter().flat_map(Front::take_bridges);
        #[cfg(feature = "tls")]
        self.threads.extend(bridges);
        let mut threads = 0;
        for thread in self.threads.drain(..) {
            if all_ended || thread.is_finished() {
                let _ = thread.join();
            } else {
                threads += 1;
            }
        }
        match threads {
            0 => Ok(()),
            threads => Err(StillBusy { threads }),
        }
    }

    fn spawn(
        &mut self,
        alive: &Sender<()>,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let alive = alive.clone();
        let thread = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || {
                run();
                drop(alive);
            })
            .map_err(|source| StartError::Thread { name, source })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            let _ = self.stop(Deadline::after(DROP_TIMEOUT));
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("local_addr", &self.local_addr)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}

/// A server's queue and threads. Work from here counts like a request: for the queue's limit, for
/// admission and for the observers.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<ServerShared>,
    observers: Observers,
}

impl Pool {
    /// Queues `task`, or calls it with [`Turn::Refused`](super::Turn::Refused) at once. Does not
    /// block. Once the server is shut down, tasks are refused or dropped.
    pub fn submit(&self, task: Task) {
        self.shared.submit(&mut *(self.observers)(), task);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

struct Acceptor {
    shared: Arc<ServerShared>,
    tiny: Arc<tiny_http::Server>,
    quit: Arc<AtomicBool>,
    on_fatal: Arc<OnFatal>,
}

impl Acceptor {
    fn run(&self, observer: &mut dyn Observer) {
        loop {
            match self.shared.accept(observer, &self.tiny) {
                Ok(()) => {}
                Err(_) if self.quit.load(Ordering::Acquire) => return,
                // The accept thread's final error; open connections still bring requests.
                Err(_) if self.shared.stopping.load(Ordering::Relaxed) => {}
                Err(error) => {
                    let reason = format!("connections are no longer accepted: {error}");
                    fatal(&**self.on_fatal, &reason);
                }
            }
        }
    }
}

fn fatal(on_fatal: &(dyn Fn(&str) + Send + Sync), reason: &str) {
    log::error!(target: "tbd::http", "the HTTP server cannot continue: {reason}");
    on_fatal(reason);
}
