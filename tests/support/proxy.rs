//! A TCP proxy before a server: counts round trips, and breaks the network in mid-test in each of the ways in which
//! networks break.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use socket2::SockRef;

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
    /// Bytes whose answer gets lost, the next time that they are sent.
    lose_answer_to: Mutex<Option<&'static [u8]>>,
    answers: AtomicUsize,
    open: Mutex<Vec<Arc<Pair>>>,
    round_trips: AtomicUsize,
    connections: AtomicUsize,
}

/// A connection of a client and the one to the server that serves it.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    server_spoke: AtomicBool,
    /// The server's half is gone, and the client is not told.
    half_open: AtomicBool,
    /// The next answer gets lost.
    answer_is_lost: AtomicBool,
    /// Both end by a reset, at which nothing more is said.
    reset: AtomicBool,
}

impl Proxy {
    /// A proxy on a free port before `upstream` (host:port).
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
            answers: AtomicUsize::new(0),
            open: Mutex::new(Vec::new()),
            round_trips: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&state);
        // Ends with the test's process; a proxy has nothing to hand back.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&accepting);
                thread::spawn(move || state.serve(client));
            }
        });
        Proxy { port, state }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// From now on new connections go to `upstream`; those that are open stay where they are.
    pub fn lead_to(&self, upstream: &str) {
        *self.state.upstream.lock().expect("upstream") = upstream.to_owned();
    }

    /// How often a client spoke after its server had spoken (or first), since the start.
    pub fn round_trips(&self) -> usize {
        self.state.round_trips.load(Ordering::SeqCst)
    }

    /// How many connections were accepted and served, since the start.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Connections stay and are accepted, but no byte gets through.
    pub fn freeze(&self) {
        *self.state.frozen.lock().expect("frozen") = true;
    }

    /// Ends a freeze.
    pub fn thaw(&self) {
        *self.state.frozen.lock().expect("frozen") = false;
        self.state.thawed.notify_all();
    }

    /// Breaks every connection, and every new one at once.
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

    /// Every piece takes so long, in each direction; zero ends it.
    pub fn delay(&self, delay: Duration) {
        *self.state.delay.lock().expect("delay") = delay;
    }

    /// Resets every connection (RST); new ones are fine.
    pub fn reset(&self) {
        for pair in self.state.pairs() {
            pair.reset();
        }
    }

    /// Takes the server's half away from every connection: the client is told nothing, ever, and what it sends is
    /// swallowed. New connections are fine.
    pub fn half_open(&self) {
        for pair in self.state.pairs() {
            pair.half_open.store(true, Ordering::SeqCst);
            let _ = pair.server.shutdown(Shutdown::Both);
        }
    }

    /// Every so many answers one gets lost: what was asked is done, and the connection is reset instead of saying so. Zero
    /// ends it.
    pub fn lose_answers(&self, every: usize) {
        self.state.lose_every.store(every, Ordering::SeqCst);
    }

    /// The next answer to a piece that holds these bytes gets lost, in the same way; those after it arrive.
    pub fn lose_answer_to(&self, bytes: &'static [u8]) {
        *self.state.lose_answer_to.lock().expect("lose") = Some(bytes);
    }

    /// Whether such a piece has not come yet.
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
        // It may have been cut since it was let in.
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
            let holds = |bytes: &[u8]| piece.windows(bytes.len()).any(|window| window == bytes);
            if lose.take_if(|bytes| holds(bytes)).is_some() {
                pair.answer_is_lost.store(true, Ordering::SeqCst);
            }
            true
        });
        // A client of a half-open connection is listened to for as long as it believes in it.
        if pair.half_open.load(Ordering::SeqCst) {
            let _ = std::io::copy(&mut &pair.client, &mut std::io::sink());
        }
        pair.end();
    }

    fn pump_answers(&self, pair: &Pair) {
        self.pump(&pair.server, &pair.client, |_| {
            pair.server_spoke.store(true, Ordering::SeqCst);
            let every = self.lose_every.load(Ordering::SeqCst);
            let number = self.answers.fetch_add(1, Ordering::SeqCst);
            let is_lost = pair.answer_is_lost.load(Ordering::SeqCst)
                || every > 0 && number.is_multiple_of(every);
            if is_lost {
                pair.reset();
            }
            !is_lost
        });
        if !pair.half_open.load(Ordering::SeqCst) {
            pair.end();
        }
    }

    /// Carries bytes over until either side ends; `pass` sees each piece come and may stop it.
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, pass: impl Fn(&[u8]) -> bool) {
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
            if !pass(&buffer[..length]) || to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
    }
}

impl Pair {
    fn end(&self) {
        if !self.reset.load(Ordering::SeqCst) {
            let _ = self.client.shutdown(Shutdown::Both);
            let _ = self.server.shutdown(Shutdown::Both);
        }
    }

    /// To close a socket that lingers for no time is to reset it. It is closed once nobody reads from it any more.
    fn reset(&self) {
        self.reset.store(true, Ordering::SeqCst);
        for socket in [&self.client, &self.server] {
            let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Read);
        }
    }
}
