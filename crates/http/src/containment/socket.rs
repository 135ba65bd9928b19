//! Listener options, and a way to end a connection.
//!
//! The fault: tiny_http sets no time-outs, and it hands out neither a connection's socket nor a way
//! to close one.
//!
//! Skip this file if this suffices: accepted sockets inherit the listener's options. A connection's
//! socket is found by the client's address among the process's descriptors (`/proc/self/fd`). That
//! takes about a millisecond per thousand descriptors, and happens only for a request that is
//! broken, unread or too slow.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};

use super::descriptors as sockets;

/// Connections the kernel may complete before they are accepted.
const BACKLOG: i32 = 1024;

/// How long a write may make no progress. Responses fit into the socket's buffer, so only a client
/// that does not read at all reaches this.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the listener. On Linux an accepted socket starts with the listener's options, so they are
/// set here for every later connection.
///
/// The read time-out bounds `accept` too, and tiny_http's accept thread ends when `accept` fails.
/// So `self_check` must connect more often than `read_timeout`.
pub(crate) fn listen(addr: SocketAddr, read_timeout: Duration) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server gets its port although old connections linger.
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(read_timeout))?;
    socket.set_write_timeout(Some(WRITE_TIMEOUT))?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Raises the descriptor limit to the process's maximum; each connection takes two. Returns the
/// limit in force, `None` when there is none.
pub(crate) fn raise_descriptor_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    }
}

/// The descriptor number of a connection's socket. Use it once, right after it was found.
///
/// Nothing keeps the descriptor open. If tiny_http closes it before the use, and another thread
/// opens a socket with the same number in that microsecond, the call hits that socket. Its owner
/// then sees a broken connection. tiny_http closes a descriptor meanwhile only if the client leaves,
/// or its bytes end, at that moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DescriptorNumber(RawFd);

impl DescriptorNumber {
    /// Sends all of `bytes`, bypassing tiny_http's buffer. No earlier response of the connection
    /// may be outstanding. Waits at most [`WRITE_TIMEOUT`] between two parts.
    pub(crate) fn send(self, mut bytes: &[u8]) -> io::Result<()> {
        let mut has_begun = false;
        while !bytes.is_empty() {
            match send(self.0, bytes, MsgFlags::MSG_NOSIGNAL) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => (bytes, has_begun) = (&bytes[sent..], true),
                Err(Errno::EINTR) => {}
                // Not to be sent again from its beginning.
                Err(_) if has_begun => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Ends the server's half: the client sees the end after the bytes already sent.
    pub(crate) fn finish_sending(self) -> io::Result<()> {
        Ok(shutdown(self.0, Shutdown::Write)?)
    }

    /// Ends every read of the connection once its buffer is empty.
    pub(crate) fn stop_reading(self) -> io::Result<()> {
        Ok(shutdown(self.0, Shutdown::Read)?)
    }

    /// Ends both halves.
    pub(crate) fn end(self) -> io::Result<()> {
        Ok(shutdown(self.0, Shutdown::Both)?)
    }
}

/// Finds the connection of `peer` to the local port `local_port`, and calls `act` at once, for one
/// action.
///
/// tiny_http holds two descriptors. The accepted one is for writing and stays open as long as the
/// request. The other, a duplicate, is closed once the client's bytes have ended, perhaps between the
/// walk over all descriptors and the action. Then the next walk finds the first.
///
/// # Errors
/// [`io::ErrorKind::NotConnected`]: the client has gone (or there is no `/proc`). Otherwise `act`'s.
pub(crate) fn with_connection(
    peer: SocketAddr,
    local_port: u16,
    act: impl Fn(DescriptorNumber) -> io::Result<()>,
) -> io::Result<()> {
    let is_it =
        |local: SocketAddr, client: SocketAddr| client == peer && local.port() == local_port;
    for _ in 0..3 {
        let Some(fd) = sockets::connected(is_it) else {
            break;
        };
        // Check again, since the walk takes time.
        let is_still = |now: sockets::Found| now.peer.is_some_and(|peer| is_it(now.local, peer));
        if !sockets::look_at(fd).is_some_and(is_still) {
            continue;
        }
        match act(DescriptorNumber(fd)) {
            Err(error) if is_no_socket(&error) => {}
            result => return result,
        }
    }
    Err(io::ErrorKind::NotConnected.into())
}

/// Whether a descriptor was closed before the call.
fn is_no_socket(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EBADF | Errno::ENOTSOCK))
}

/// What the descriptors show about a listener on `local_port` and its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    /// Descriptors of the listening socket.
    pub(crate) listening: usize,
    /// Connections with received bytes that nobody has read.
    pub(crate) unread: usize,
    /// Whether there is a connection.
    pub(crate) is_connected: bool,
}

impl Survey {
    /// Looks at all descriptors without blocking. All zero without `/proc`.
    pub(crate) fn take(local_port: u16) -> Survey {
        let mut survey = Survey::default();
        let Ok(sockets) = sockets::all() else {
            return survey;
        };
        for socket in sockets.filter(|socket| socket.local.port() == local_port) {
            survey.is_connected |= socket.peer.is_some();
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            match recv(socket.fd, &mut [0], flags) {
                Ok(1..) => survey.unread += 1,
                Err(Errno::ENOTCONN) if socket.peer.is_none() => survey.listening += 1,
                _ => {}
            }
        }
        // Each connection has a descriptor for reading and one for writing.
        survey.unread = survey.unread.div_ceil(2);
        survey
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    #[test]
    fn an_accepted_socket_has_the_listeners_time_outs() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), Duration::from_secs(7)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(
            accepted.read_timeout().unwrap(),
            Some(Duration::from_secs(7))
        );
        assert_eq!(accepted.write_timeout().unwrap(), Some(WRITE_TIMEOUT));
        assert!(accepted.nodelay().unwrap());
    }

    #[test]
    fn a_connection_is_found_by_its_client_and_can_be_ended() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), Duration::from_secs(7)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_accepted, peer) = listener.accept().unwrap();
        with_connection(peer, port, |connection| connection.send(b"bye")).unwrap();
        with_connection(peer, port, DescriptorNumber::end).unwrap();
        let mut received = String::new();
        client.read_to_string(&mut received).unwrap();
        assert_eq!(received, "bye");
        let elsewhere = with_connection(peer, port.wrapping_add(1), DescriptorNumber::end);
        assert_eq!(elsewhere.unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_survey_counts_listeners_and_connections_nobody_reads() {
        let listener = listen("127.0.0.1:0".parse().unwrap(), Duration::from_secs(7)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let duplicate = listener.try_clone().unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let _writing = accepted.try_clone().unwrap();
        assert!(!Survey::take(port.wrapping_add(1)).is_connected);
        assert!(Survey::take(port).is_connected);
        let counts = |survey: Survey| (survey.listening, survey.unread);
        assert_eq!(counts(Survey::take(port)), (2, 0));
        client.write_all(b"x").unwrap();
        // On loopback, written bytes can be read at once.
        assert_eq!(counts(Survey::take(port)), (2, 1));
        accepted.read_exact(&mut [0]).unwrap();
        drop(duplicate);
        assert_eq!(counts(Survey::take(port)), (1, 0));
    }
}
