//! TLS in front of the server: a listener of its own, and a bridge for each connection.
//!
//! The containment of tiny_http rests on plain TCP sockets. So with TLS the server itself listens on
//! a port of the loopback, and a bridge carries each connection there. That port speaks plain text,
//! and every user of the same machine (in a container: nobody else) can reach it.
//!
//! A connection costs one thread more (`http-tls-N`), two descriptors and some 80 KiB, and its bytes
//! are copied twice more. The bridge's only wait is `poll` on both sockets and on the stop pipe,
//! except for the connection to the server. It holds at most one piece of 16 KiB in each direction
//! (rustls' buffers), and reads from a side only once the other has taken the piece before.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ServerConnection;
use socket2::SockRef;

use tbd_deadline::lock;
use tbd_tls::{FileError, Identity, Reloading, ServerFiles};

/// How long the accepting thread waits after an error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Warnings about refused connections come no more often than this.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// How long the connection to the server may take. It is on the loopback, so only a full backlog
/// takes time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a client may take none of the bytes that wait for it, as without TLS.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the client's bytes are read and discarded once the server has ended the connection.
/// Closed with unread bytes, the socket would destroy an answer that the client has not read yet.
const LINGER: Duration = Duration::from_millis(500);

/// The server's own limits act first by so much.
const IDLE_MARGIN: Duration = Duration::from_secs(15);

/// How much is read from the server at once: one TLS record.
const PIECE_BYTES: usize = 16 * 1024;

/// TLS of a server's listener: TLS 1.2 and 1.3, for HTTP/1.1.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The certificate and its key. A new connection uses the files of that moment.
    pub identity: Identity,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
    /// Connections at a time; one more is closed at once. Each takes four descriptors.
    pub connections_max: usize,
}

impl TlsConfig {
    /// 10 s for a handshake, and 2048 connections.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            handshake_timeout: Duration::from_secs(10),
            connections_max: 2048,
        }
    }
}

/// The listener for TLS. Dropping it ends the bridges.
pub(crate) struct Front {
    listener: TcpListener,
    shared: Arc<FrontShared>,
    /// The other end of [`FrontShared::stopped`].
    running: Option<UnixStream>,
}

/// What the accepting thread and the bridges share.
pub(crate) struct FrontShared {
    config: TlsConfig,
    settings: Reloading<rustls::ServerConfig>,
    /// The server's own listener.
    server: SocketAddr,
    idle_timeout: Duration,
    stopping: AtomicBool,
    /// Readable once the bridges have to end.
    stopped: UnixStream,
    /// At most [`TlsConfig::connections_max`].
    bridges: Mutex<Vec<JoinHandle<()>>>,
}

impl Front {
    /// A listener in front of the server on `server`, which ends connections by itself when nothing
    /// happens for `idle_timeout`. Reads the files.
    ///
    /// # Errors
    /// [`FileError`] for a file that cannot be used; the system's refusal of a pipe.
    pub(crate) fn new(
        listener: TcpListener,
        config: TlsConfig,
        settings: Reloading<rustls::ServerConfig>,
        server: SocketAddr,
        idle_timeout: Duration,
    ) -> io::Result<Self> {
        let (running, stopped) = UnixStream::pair()?;
        let shared = FrontShared {
            config,
            settings,
            server,
            idle_timeout: idle_timeout + IDLE_MARGIN,
            stopping: AtomicBool::new(false),
            stopped,
            bridges: Mutex::default(),
        };
        Ok(Self {
            listener,
            shared: Arc::new(shared),
            running: Some(running),
        })
    }

    /// What the accepting thread runs: returns after [`stop_accepting`](Self::stop_accepting). Every
    /// bridge holds a clone of `alive`.
    pub(crate) fn acceptor(&self, alive: Sender<()>) -> io::Result<impl FnOnce() + Send + 'static> {
        let (listener, shared) = (self.listener.try_clone()?, Arc::clone(&self.shared));
        Ok(move || shared.accept_all(&listener, &alive))
    }

    /// Ends the accepting thread. Does not block.
    pub(crate) fn stop_accepting(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        // Wakes `accept` with an error.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
    }

    /// Ends each bridge as soon as the server has sent what it had to send. Does not block.
    pub(crate) fn stop(&mut self) {
        drop(self.running.take());
    }

    /// The bridges, to be joined once nobody accepts any more.
    pub(crate) fn take_bridges(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut lock(&self.shared.bridges))
    }
}

/// The settings for new connections, made again when a file changes. Reads the files.
///
/// # Errors
/// [`FileError`] for a file that cannot be used.
pub(crate) fn settings(config: &TlsConfig) -> Result<Reloading<rustls::ServerConfig>, FileError> {
    let files = ServerFiles {
        identity: config.identity.clone(),
        client_ca: None,
        alpn: vec![b"http/1.1".to_vec()],
    };
    files.watch()
}

impl FrontShared {
    fn accept_all(self: &Arc<Self>, listener: &TcpListener, alive: &Sender<()>) {
        let (mut refused, mut warned) = (0_u64, None::<Instant>);
        for number in 0_u64.. {
            let accepted = listener.accept();
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            let error = match accepted.map(|(socket, peer)| self.admit(socket, peer, number, alive))
            {
                Ok(Ok(())) => continue,
                Ok(Err(refusal)) => refusal,
                // The listener's time-out, or a client that has gone already.
                Err(error) if is_passing(&error) => continue,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => error,
            };
            refused += 1;
            if warned.is_none_or(|at| at.elapsed() >= WARN_INTERVAL) {
                log::warn!(target: "tbd::http", refused; "a TLS connection was refused: {error}");
                (refused, warned) = (0, Some(Instant::now()));
            }
            if error.kind() != io::ErrorKind::QuotaExceeded {
                self.pause();
            }
        }
    }

    /// Starts the bridge of a new connection, or closes it.
    fn admit(
        self: &Arc<Self>,
        socket: TcpStream,
        peer: SocketAddr,
        number: u64,
        alive: &Sender<()>,
    ) -> io::Result<()> {
        let mut bridges = lock(&self.bridges);
        for ended in bridges.extract_if(.., |bridge| bridge.is_finished()) {
            let _ = ended.join();
        }
        if bridges.len() >= self.config.connections_max {
            let reason = format!("there are {} already", bridges.len());
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, reason));
        }
        drop(bridges);
        let (shared, alive) = (Arc::clone(self), alive.clone());
        let bridge = thread::Builder::new()
            .name(format!("http-tls-{number}"))
            .spawn(move || {
                if let Err(error) = Bridge::new(&shared, socket).and_then(Bridge::run) {
                    log::debug!(target: "tbd::http", "{peer}: {error}");
                }
                drop(alive);
            })?;
        lock(&self.bridges).push(bridge);
        Ok(())
    }

    /// Waits a moment, or for the stop.
    fn pause(&self) {
        let mut polled = [PollFd::new(&self.stopped, PollFlags::IN)];
        let _ = poll(&mut polled, Timespec::try_from(ACCEPT_PAUSE).ok().as_ref());
    }
}

/// A client's connection over TLS and its plain connection to the server.
///
/// *Upward* is from the client to the server.
struct Bridge<'a> {
    shared: &'a FrontShared,
    client: TcpStream,
    session: ServerConnection,
    /// From the end of the handshake on.
    server: Option<TcpStream>,
    /// The client has ended its half.
    is_client_done: bool,
    /// The server has seen the end of the client's half, or takes no more.
    is_upward_done: bool,
    /// The server has ended its half.
    is_server_done: bool,
    /// The client has got everything, the end included.
    is_downward_done: bool,
    is_stopping: bool,
    began: Instant,
    /// When bytes last went into one of the two connections, or came out.
    moved: Instant,
    /// When the client last took bytes, or had none to take.
    taken: Instant,
    piece: Vec<u8>,
}

impl<'a> Bridge<'a> {
    fn new(shared: &'a FrontShared, client: TcpStream) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        client.set_nodelay(true)?;
        let session = ServerConnection::new(shared.settings.get()).map_err(io::Error::other)?;
        let now = Instant::now();
        Ok(Self {
            shared,
            client,
            session,
            server: None,
            is_client_done: false,
            is_upward_done: false,
            is_server_done: false,
            is_downward_done: false,
            is_stopping: false,
            began: now,
            moved: now,
            taken: now,
            piece: vec![0; PIECE_BYTES],
        })
    }

    /// Carries bytes until both halves have ended.
    fn run(mut self) -> io::Result<()> {
        loop {
            self.read_client()?;
            self.connect()?;
            self.write_server();
            self.read_server()?;
            self.write_client()?;
            if self.is_downward_done && self.is_client_done {
                return Ok(());
            }
            if !self.wait()? {
                return Ok(());
            }
        }
    }

    fn read_client(&mut self) -> io::Result<()> {
        if self.is_client_done || !self.session.wants_read() {
            return Ok(());
        }
        match self.session.read_tls(&mut &self.client) {
            // With or without close_notify: HTTP itself says where a message ends.
            Ok(0) => self.is_client_done = true,
            Ok(_) => self.moved = Instant::now(),
            Err(error) if is_passing(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        let state = self.session.process_new_packets().map_err(|error| {
            // The alert that says why.
            let _ = self.session.write_tls(&mut &self.client);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        self.is_client_done |= state.peer_has_closed();
        Ok(())
    }

    /// Connects to the server once the handshake is done, so that an unfinished one costs no thread of
    /// tiny_http.
    fn connect(&mut self) -> io::Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        if self.session.is_handshaking() {
            return match self.is_client_done {
                true => Err(io::ErrorKind::UnexpectedEof.into()),
                false => Ok(()),
            };
        }
        let server = TcpStream::connect_timeout(&self.shared.server, CONNECT_TIMEOUT)?;
        server.set_nonblocking(true)?;
        server.set_nodelay(true)?;
        self.server = Some(server);
        self.moved = Instant::now();
        Ok(())
    }

    fn write_server(&mut self) {
        let Some(server) = &self.server else {
            return;
        };
        let mut reader = self.session.reader();
        // An error says that there is nothing at this time, or nothing more.
        while let Ok(plain @ [_, ..]) = reader.fill_buf() {
            let taken = match self.is_upward_done {
                true => Ok(plain.len()),
                false => (&*server).write(plain),
            };
            match taken {
                Ok(length) => {
                    reader.consume(length);
                    self.moved = Instant::now();
                }
                Err(error) if is_passing(&error) => return,
                // It may have answered before.
                Err(_) => self.is_upward_done = true,
            }
        }
        // At once: nothing else might happen that ends the next wait.
        if self.is_client_done && !self.is_upward_done {
            let _ = server.shutdown(Shutdown::Write);
            self.is_upward_done = true;
        }
    }

    fn read_server(&mut self) -> io::Result<()> {
        let Some(server) = &self.server else {
            return Ok(());
        };
        if self.is_server_done || self.session.wants_write() {
            return Ok(());
        }
        match (&*server).read(&mut self.piece) {
            Ok(0) => {
                self.session.send_close_notify();
                self.is_server_done = true;
            }
            Ok(length) => self.session.writer().write_all(&self.piece[..length])?,
            Err(error) if is_passing(&error) => return Ok(()),
            // Without close_notify: the answer may have been cut off.
            Err(_) => self.is_server_done = true,
        }
        self.moved = Instant::now();
        self.taken = self.moved;
        Ok(())
    }

    fn write_client(&mut self) -> io::Result<()> {
        if self.session.wants_write() {
            match self.session.write_tls(&mut &self.client) {
                Ok(_) => self.taken = Instant::now(),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if self.is_server_done && !self.is_downward_done && !self.session.wants_write() {
            let _ = self.client.shutdown(Shutdown::Write);
            self.is_downward_done = true;
            self.taken = Instant::now();
        }
        Ok(())
    }

    /// Waits until bytes can be moved. False when the connection is to be closed.
    fn wait(&mut self) -> io::Result<bool> {
        let (end, reason) = self.limit();
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return match reason {
                None => Ok(false),
                Some(reason) => Err(io::Error::new(io::ErrorKind::TimedOut, reason)),
            };
        }
        let [client, server] = self.interests();
        // A socket without an interest is left out: its hang-up would end every wait at once.
        let mut polled = Vec::with_capacity(3);
        if !client.is_empty() {
            polled.push(PollFd::new(&self.client, client));
        }
        if let Some(socket) = self.server.as_ref().filter(|_| !server.is_empty()) {
            polled.push(PollFd::new(socket, server));
        }
        if !self.is_stopping {
            polled.push(PollFd::new(&self.shared.stopped, PollFlags::IN));
        }
        // Rounded up, so that the limit has passed afterwards.
        let timeout = Timespec::try_from(left + Duration::from_millis(1)).ok();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_told = !self.is_stopping && polled.last().is_some_and(|it| !it.revents().is_empty());
        Ok(!is_told || self.stop())
    }

    /// What is waited for on both sockets.
    fn interests(&mut self) -> [PollFlags; 2] {
        let has_output = self.session.wants_write();
        let is_unread = self
            .session
            .reader()
            .fill_buf()
            .is_ok_and(|it| !it.is_empty());
        let reads_client = !self.is_client_done && self.session.wants_read();
        let reads_server = !self.is_server_done && !has_output;
        let flags = |reads, writes| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, reads);
            flags.set(PollFlags::OUT, writes);
            flags
        };
        [
            flags(reads_client, has_output),
            flags(reads_server, is_unread),
        ]
    }

    /// How long the next wait may take, and what to say when nothing has happened until then.
    fn limit(&self) -> (Instant, Option<&'static str>) {
        if self.server.is_none() {
            let end = self.began + self.shared.config.handshake_timeout;
            (end, Some("no TLS handshake in time"))
        } else if self.session.wants_write() {
            (self.taken + WRITE_TIMEOUT, Some("the client does not read"))
        } else if self.is_server_done {
            (self.taken + LINGER, None)
        } else {
            (
                self.moved + self.shared.idle_timeout,
                Some("idle for too long"),
            )
        }
    }

    /// The server has answered what it had to: it sees the end of the client's half, and ends its own.
    /// False if there is nothing to wait for.
    fn stop(&mut self) -> bool {
        self.is_stopping = true;
        self.is_upward_done = true;
        let server = self.server.as_ref();
        server.is_some_and(|server| {
            server.shutdown(Shutdown::Write).is_ok() || self.session.wants_write()
        })
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
