//! Transport to a broker: a TCP socket, plain or with TLS, with a deadline on every wait.

use std::fmt;
use std::io::{self, BufRead, ErrorKind, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::buffer::spare_capacity;
#[cfg(feature = "tls")]
use rustls::pki_types::ServerName;

#[cfg(feature = "tls")]
use super::config::host_of;
use super::rustls_types::{ClientConnection, TlsError};
#[cfg(feature = "tls")]
use super::security::Tls;
use tbd_deadline::Deadline;

/// A connected socket.
pub(super) struct Transport {
    socket: TcpStream,
    /// Its TLS session, if there is one.
    session: Option<Box<ClientConnection>>,
}

impl Transport {
    /// Connects to `address`, at most until `deadline`.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; errors of the operating system.
    pub(super) fn dial(address: SocketAddr, deadline: Deadline) -> io::Result<Self> {
        let left = deadline.remaining();
        if left.is_zero() {
            return Err(io::Error::new(ErrorKind::TimedOut, "no time left"));
        }
        let socket = TcpStream::connect_timeout(&address, left)?;
        // Without TCP_NODELAY the kernel may delay a small request.
        socket.set_nodelay(true)?;
        Ok(Self {
            socket,
            session: None,
        })
    }

    /// Starts a TLS session with the server that was dialled as `address`, at most until
    /// `deadline`. The server's certificate must be valid for that name.
    ///
    /// # Errors
    /// As [`Transport::read`]; `UnexpectedEof` when the server ends the connection.
    #[cfg(feature = "tls")]
    pub(super) fn secure(
        &mut self,
        tls: &Tls,
        address: &str,
        deadline: Deadline,
    ) -> io::Result<()> {
        let host = host_of(address);
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))?;
        let session = ClientConnection::new(tls.settings(), name).map_err(tls_error)?;
        let session = self.session.insert(Box::new(session));
        while session.is_handshaking() {
            flush(session, &mut self.socket, deadline)?;
            if session.is_handshaking() && fill(session, &mut self.socket, deadline)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        flush(session, &mut self.socket, deadline)
    }

    /// Whether the transport uses TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.session.is_some()
    }

    /// Appends the available bytes to `buffer`, as many as it has room for, waiting at most until
    /// `deadline` for the first one. 0 means that the server has ended the connection.
    ///
    /// # Errors
    /// `TimedOut` at the deadline; `InvalidData` around a [`rustls::Error`] when the TLS session
    /// fails; errors of the operating system.
    pub(super) fn read(&mut self, buffer: &mut Vec<u8>, deadline: Deadline) -> io::Result<usize> {
        let Some(session) = &mut self.session else {
            return patient(deadline, |left| {
                self.socket.set_read_timeout(Some(left))?;
                // Unlike `Read::read`, it needs no cleared memory.
                Ok(rustix::io::read(&self.socket, spare_capacity(buffer))?)
            });
        };
        loop {
            let mut reader = session.reader();
            match reader.fill_buf() {
                Ok(available) => {
                    let count = available.len().min(buffer.capacity() - buffer.len());
                    buffer.extend_from_slice(&available[..count]);
                    reader.consume(count);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // Brokers end connections without TLS's close_notify. The length of a frame reveals
                // a truncated one.
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
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
                    // The session takes only what fits its buffer.
                    let count = session.writer().write(bytes)?;
                    flush(session, &mut self.socket, deadline)?;
                    count
                }
            };
            bytes = &bytes[count..];
        }
        Ok(())
    }

    /// Whether there are no unread bytes and the server has not ended the connection. Does not
    /// wait.
    pub(super) fn is_silent(&self) -> bool {
        let mut byte = [0];
        self.socket.set_nonblocking(true).is_ok()
            && matches!(self.socket.peek(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
            && self.socket.set_nonblocking(false).is_ok()
    }

    /// Ends the connection at once, in both directions.
    pub(super) fn shutdown(&self) {
        // An error means that it is closed already.
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

/// Reads once from the socket into the session; returns the number of bytes.
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
        // Sends the alert that names the error, if that still works.
        let _ = flush(session, socket, deadline);
        return Err(tls_error(error));
    }
    // A key update needs an answer.
    flush(session, socket, deadline)?;
    Ok(count)
}

/// Sends the session's pending TLS records.
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

/// Retries after interruptions until the deadline, with one error kind for every time-out.
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

fn tls_error(error: TlsError) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, error)
}
