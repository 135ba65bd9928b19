//! A TCP proxy before a server: counts round trips, and freezes or cuts the network in mid-test.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

struct State {
    upstream: String,
    frozen: Mutex<bool>,
    thawed: Condvar,
    cut: AtomicBool,
    sockets: Mutex<Vec<TcpStream>>,
    round_trips: AtomicUsize,
    connections: AtomicUsize,
}

impl Proxy {
    /// A proxy on a free port before `upstream` (host:port).
    pub fn before(upstream: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind the proxy");
        let port = listener.local_addr().expect("the proxy's address").port();
        let state = Arc::new(State {
            upstream: upstream.to_owned(),
            frozen: Mutex::new(false),
            thawed: Condvar::new(),
            cut: AtomicBool::new(false),
            sockets: Mutex::new(Vec::new()),
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
        for socket in self.state.sockets.lock().expect("sockets").drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Ends a cut.
    pub fn mend(&self) {
        self.state.cut.store(false, Ordering::SeqCst);
    }
}

impl State {
    fn serve(self: &Arc<Self>, client: TcpStream) {
        if self.cut.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(&self.upstream) else {
            return;
        };
        self.connections.fetch_add(1, Ordering::SeqCst);
        for socket in [&client, &server] {
            let _ = socket.set_nodelay(true);
            self.sockets
                .lock()
                .expect("sockets")
                .push(socket.try_clone().expect("clone a socket"));
        }
        let server_spoke = Arc::new(AtomicBool::new(true));
        let (state, spoke) = (Arc::clone(self), Arc::clone(&server_spoke));
        let (from, to) = (
            server.try_clone().expect("clone"),
            client.try_clone().expect("clone"),
        );
        thread::spawn(move || state.pump(from, to, || spoke.store(true, Ordering::SeqCst)));
        self.pump(client, server, || {
            if server_spoke.swap(false, Ordering::SeqCst) {
                self.round_trips.fetch_add(1, Ordering::SeqCst);
            }
        });
    }

    fn pump(&self, mut from: TcpStream, mut to: TcpStream, heard: impl Fn()) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let frozen = self.frozen.lock().expect("frozen");
            drop(
                self.thawed
                    .wait_while(frozen, |frozen| *frozen)
                    .expect("frozen"),
            );
            heard();
            if to.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = from.shutdown(Shutdown::Both);
    }
}
