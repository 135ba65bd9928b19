//! TCP proxy in front of a server: counts round trips, and injects network faults during a test.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

/// A TCP proxy whose connections a test can cut, freeze and slow.
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    upstream: Mutex<String>,
    frozen: Mutex<bool>,
    thawed: Condvar,
    cut: AtomicBool,
    delay: Mutex<Duration>,
    lose_every: AtomicUsize,
    /// The answer to the next piece with these bytes gets lost.
    lose_answer_to: Mutex<Option<&'static [u8]>>,
    /// These bytes are spoiled in the next piece that has them.
    spoil: Mutex<Option<&'static [u8]>>,
    /// All answers get lost, and connections stay open.
    swallow_answers: AtomicBool,
    answers: AtomicUsize,
    open: Mutex<Vec<Arc<Pair>>>,
    round_trips: AtomicUsize,
    connections: AtomicUsize,
}

/// A client's connection, and the connection to the server that serves it.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    server_spoke: AtomicBool,
    /// The server's half is gone, and the client does not notice.
    half_open: AtomicBool,
    /// The next answer gets lost.
    answer_is_lost: AtomicBool,
    /// Both connections end with a reset, without further bytes.
    reset: AtomicBool,
}

impl Proxy {
    /// A proxy on a free port in front of `upstream` (host:port).
    pub fn before(upstream: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind the proxy");
        let port = listener.local_addr().expect("the proxy's address").port();
        let state = Arc::new(State {
            upstream: Mutex::new(upstream.to_owned()),
            frozen: Mutex::new(false),
            thawed: Condvar::new(),
            cut: AtomicBool::new(false),
            delay: Mutex::new(Duration::ZERO),
            lose_every: AtomicUsize::new(0),
            lose_answer_to: Mutex::new(None),
            spoil: Mutex::new(None),
            swallow_answers: AtomicBool::new(false),
            answers: AtomicUsize::new(0),
            open: Mutex::new(Vec::new()),
            round_trips: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&state);
        // Ends with the test's process; a proxy has nothing to release.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&accepting);
                thread::spawn(move || state.serve(client));
            }
        });
        Proxy { port, state }
    }

    /// The port on which it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on new connections go to `upstream`; open ones stay where they are.
    pub fn lead_to(&self, upstream: &str) {
        *self.state.upstream.lock().expect("upstream") = upstream.to_owned();
    }

    /// Round trips since the start: how often a client sent after its server had sent, or first.
    pub fn round_trips(&self) -> usize {
        self.state.round_trips.load(Ordering::SeqCst)
    }

    /// Connections accepted and served since the start.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Freezes the network: connections stay open and are accepted, but no byte gets through.
    pub fn freeze(&self) {
        *self.state.frozen.lock().expect("frozen") = true;
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        *self.state.frozen.lock().expect("frozen") = false;
        self.state.thawed.notify_all();
    }

    /// Cuts the network: every connection breaks, and every new one at once.
    pub fn cut(&self) {
        self.state.cut.store(true, Ordering::SeqCst);
        for pair in self.state.pairs() {
            pair.end();
        }
    }

    /// Ends a cut.
    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }

    /// Delays every piece by this time in each direction; zero ends it.
    pub fn delay(&self, delay: Duration) {
        *self.state.delay.lock().expect("delay") = delay;
    }

    /// Resets every connection (RST); new ones are fine.
    pub fn reset(&self) {
        for pair in self.state.pairs() {
            pair.reset();
        }
    }

    /// Closes the server's half of every connection. The client never notices, and its bytes are
    /// discarded. New connections are fine.
    pub fn half_open(&self) {
        for pair in self.state.pairs() {
            pair.half_open.store(true, Ordering::SeqCst);
            let _ = pair.server.shutdown(Shutdown::Both);
        }
    }

    /// Loses one answer in this many: the server does the work, and the client gets a reset instead of
    /// the answer. Zero ends it.
    pub fn lose_answers(&self, every: usize) {
        self.state.lose_every.store(every, Ordering::SeqCst);
    }

    /// Loses the next answer to a piece with these bytes, in the same way; later answers arrive.
    pub fn lose_answer_to(&self, bytes: &'static [u8]) {
        *self.state.lose_answer_to.lock().expect("lose") = Some(bytes);
    }

    /// Overwrites these bytes with `x` the next time that a client sends them, so that the server refuses
    /// what it gets.
    pub fn spoil(&self, bytes: &'static [u8]) {
        *self.state.spoil.lock().expect("spoil") = Some(bytes);
    }

    /// Loses all answers from now on, or no more of them: the server does the work, and the client
    /// waits.
    pub fn swallow_answers(&self, swallow: bool) {
        self.state.swallow_answers.store(swallow, Ordering::SeqCst);
    }

    /// Whether no such piece has been sent yet.
    pub fn is_to_lose_an_answer(&self) -> bool {
        self.state.lose_answer_to.lock().expect("lose").is_some()
    }
}

impl State {
    fn pairs(&self) -> Vec<Arc<Pair>> {
        self.open.lock().expect("pairs").clone()
    }

    fn serve(&self, client: TcpStream) {
        if self.cut.load(Ordering::SeqCst) {
            return;
        }
        let upstream = self.upstream.lock().expect("upstream").clone();
        let Ok(server) = TcpStream::connect(upstream) else {
            return;
        };
        self.connections.fetch_add(1, Ordering::SeqCst);
        for socket in [&client, &server] {
            let _ = socket.set_nodelay(true);
        }
        let pair = Arc::new(Pair {
            client,
            server,
            server_spoke: AtomicBool::new(true),
            answer_is_lost: AtomicBool::new(false),
            half_open: AtomicBool::new(false),
            reset: AtomicBool::new(false),
        });
        self.open.lock().expect("pairs").push(Arc::clone(&pair));
        // The network may have been cut since the connection was accepted.
        if self.cut.load(Ordering::SeqCst) {
            pair.end();
        }
        thread::scope(|scope| {
            scope.spawn(|| self.pump_answers(&pair));
            self.pump_requests(&pair);
        });
        let mut open = self.open.lock().expect("pairs");
        open.retain(|other| !Arc::ptr_eq(other, &pair));
    }

    fn pump_requests(&self, pair: &Pair) {
        self.pump(&pair.client, &pair.server, |piece| {
            if pair.server_spoke.swap(false, Ordering::SeqCst) {
                self.round_trips.fetch_add(1, Ordering::SeqCst);
            }
            let mut lose = self.lose_answer_to.lock().expect("lose");
            if lose.take_if(|bytes| find(piece, bytes).is_some()).is_some() {
                pair.answer_is_lost.store(true, Ordering::SeqCst);
            }
            let mut spoil = self.spoil.lock().expect("spoil");
            if let Some(bytes) = *spoil
                && let Some(at) = find(piece, bytes)
            {
                piece[at..at + bytes.len()].fill(b'x');
                *spoil = None;
            }
            Some(piece)
        });
        // Read from the client of a half-open connection until it gives up.
        if pair.half_open.load(Ordering::SeqCst) {
            let _ = std::io::copy(&mut &pair.client, &mut std::io::sink());
        }
        pair.end();
    }

    fn pump_answers(&self, pair: &Pair) {
        self.pump(&pair.server, &pair.client, |piece| {
            pair.server_spoke.store(true, Ordering::SeqCst);
            let every = self.lose_every.load(Ordering::SeqCst);
            let number = self.answers.fetch_add(1, Ordering::SeqCst);
            let is_lost = pair.answer_is_lost.load(Ordering::SeqCst)
                || every > 0 && number.is_multiple_of(every);
            if is_lost {
                pair.reset();
                return None;
            }
            let is_swallowed = self.swallow_answers.load(Ordering::SeqCst);
            Some(if is_swallowed { &[] } else { piece })
        });
        if !pair.half_open.load(Ordering::SeqCst) {
            pair.end();
        }
    }

    /// Copies bytes until either side ends. `pass` sees each piece, returns what to write, and ends
    /// the copying with `None`.
    fn pump(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        pass: impl Fn(&mut [u8]) -> Option<&[u8]>,
    ) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let delay = *self.delay.lock().expect("delay");
            if !delay.is_zero() {
                thread::sleep(delay);
            }
            let frozen = self.frozen.lock().expect("frozen");
            drop(
                self.thawed
                    .wait_while(frozen, |frozen| *frozen)
                    .expect("frozen"),
            );
            let Some(piece) = pass(&mut buffer[..length]) else {
                break;
            };
            if to.write_all(piece).is_err() {
                break;
            }
        }
    }
}

fn find(piece: &[u8], bytes: &[u8]) -> Option<usize> {
    piece.windows(bytes.len()).position(|it| it == bytes)
}

impl Pair {
    fn end(&self) {
        if !self.reset.load(Ordering::SeqCst) {
            let _ = self.client.shutdown(Shutdown::Both);
            let _ = self.server.shutdown(Shutdown::Both);
        }
    }

    /// Closing a socket with a linger time of zero resets it. It is closed once no thread reads from it.
    fn reset(&self) {
        self.reset.store(true, Ordering::SeqCst);
        for socket in [&self.client, &self.server] {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
}
