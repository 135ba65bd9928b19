//! The bytes' way to a broker: a TCP socket, in the clear or inside TLS, with a
//! deadline on every wait.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::security::Tls;
use tbd_deadline::Deadline;

/// A connected socket.
pub(super) struct Transport {
    socket: TcpStream,
    /// The TLS session on it, if there is one.
    session: Option<Box<ClientConnection>>,
}

impl Transport {
    /// Connects to `address` (`host:port`), at most until `deadline`. A name with
    /// several addresses is tried in order, each with a fair share of what is left.
    ///
    /// # Errors
    /// The last attempt's.
    pub(super) fn dial(address: &str, deadline: Deadline) -> io::Result<Self> {
        let addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
        let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for (index, socket_address) in addresses.iter().enumerate() {
            let untried = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let share = deadline.remaining() / untried;
            if share.is_zero() {
                failure = io::Error::new(ErrorKind::TimedOut, "no time left");
                break;
            }
            let connected = TcpStream::connect_timeout(socket_address, share).and_then(|socket| {
                // A request waits for nothing that could fill its packet up.
                socket.set_nodelay(true)?;
                Ok(socket)
            });
            match connected {
                Ok(socket) => {
                    return Ok(Self {
                        socket,
                        session: None,
                    });
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Makes it a TLS session with the server that was dialled as `address`, whose
    /// certificate must be valid for that name, at most until `deadline`.
    ///
    /// # Errors
    /// As [`Transport::read`]; `UnexpectedEof` when the server ends the connection.
    pub(super) fn secure(
        &mut self,
        tls: &Tls,
        address: &str,
        deadline: Deadline,
    ) -> io::Result<()> {
        let host = host_of(address);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let session = ClientConnection::new(Arc::clone(&tls.config), name).map_err(tls_error)?;
        let session = self.session.insert(Box::new(session));
        while session.is_handshaking() {
            flush(session, &mut self.socket, deadline)?;
            if session.is_handshaking() && fill(session, &mut self.socket, deadline)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        flush(session, &mut self.socket, deadline)
    }

    /// Whether what travels is encrypted.
    pub(super) fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    /// Reads what is there, waiting at most until `deadline` for the first byte;
    /// 0 means that the server has ended the connection.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; `InvalidData` around a [`rustls::Error`] when the
    /// session cannot go on; the operating system's.
    pub(super) fn read(&mut self, buffer: &mut [u8], deadline: Deadline) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return patient(deadline, |left| {
                self.socket.set_read_timeout(Some(left))?;
                self.socket.read(buffer)
            });
        };
        loop {
            match session.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Brokers end connections without TLS's farewell; a frame cut short
                // is noticed by its length.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
            fill(session, &mut self.socket, deadline)?;
        }
    }

    /// Writes all of `bytes`, at most until `deadline`.
    ///
    /// # Errors
    /// As [`Transport::read`]; `WriteZero` when the socket takes no more.
    pub(super) fn write_all(&mut self, mut bytes: &[u8], deadline: Deadline) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = match &mut self.session {
                None => send(&mut self.socket, deadline, |socket| socket.write(bytes))?,
                Some(session) => {
                    // It takes as much as its buffer holds, encrypted.
                    let count = session.writer().write(bytes)?;
                    flush(session, &mut self.socket, deadline)?;
                    count
                }
            };
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Whether nothing has arrived that was not read, and the server has not ended
    /// the connection. Does not wait.
    pub(super) fn is_silent(&self) -> bool {
        let mut byte = [0];
        self.socket.set_nonblocking(true).is_ok()
            && matches!(self.socket.peek(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
            && self.socket.set_nonblocking(false).is_ok()
    }

    /// Ends the connection at once, in both directions.
    pub(super) fn shutdown(&self) {
        // It may be closed already, which is what we want.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// A second handle on the socket, to shut it down from another thread.
    pub(super) fn try_clone_socket(&self) -> io::Result<TcpStream> {
        self.socket.try_clone()
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("socket", &self.socket)
            .field("secure", &self.is_secure())
            .finish()
    }
}

/// The host in `host:port`; an IPv6 address without its brackets.
pub(super) fn host_of(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Reads once from the socket into the session; the number of bytes that came.
fn fill(
    session: &mut ClientConnection,
    socket: &mut TcpStream,
    deadline: Deadline,
) -> io::Result<usize> {
    let count = patient(deadline, |left| {
        socket.set_read_timeout(Some(left))?;
        session.read_tls(socket)
    })?;
    if let Err(error) = session.process_new_packets() {
        // The server learns why, if it can still be told.
        let _ = flush(session, socket, deadline);
        return Err(tls_error(error));
    }
    // New keys are answered with new keys.
    flush(session, socket, deadline)?;
    Ok(count)
}

/// Sends what the session has to say.
fn flush(
    session: &mut ClientConnection,
    socket: &mut TcpStream,
    deadline: Deadline,
) -> io::Result<()> {
    while session.wants_write() {
        send(socket, deadline, |socket| session.write_tls(socket))?;
    }
    Ok(())
}

fn send(
    socket: &mut TcpStream,
    deadline: Deadline,
    mut write: impl FnMut(&mut TcpStream) -> io::Result<usize>,
) -> io::Result<usize> {
    let count = patient(deadline, |left| {
        socket.set_write_timeout(Some(left))?;
        write(socket)
    })?;
    match count {
        0 => Err(io::Error::new(
            ErrorKind::WriteZero,
            "it takes no more bytes",
        )),
        count => Ok(count),
    }
}

/// Tries again after interruptions, with what is left of the time; one kind of error
/// for its end.
fn patient(
    deadline: Deadline,
    mut attempt: impl FnMut(std::time::Duration) -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        let left = deadline.remaining();
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        match attempt(left) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                return Err(ErrorKind::TimedOut.into());
            }
            other => return other,
        }
    }
}

fn tls_error(error: rustls::Error) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_what_stands_before_the_port() {
        assert_eq!(host_of("kafka-1.example.com:9092"), "kafka-1.example.com");
        assert_eq!(host_of("[::1]:9092"), "::1");
    }
}
