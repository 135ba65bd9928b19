//! The octets' way: a socket that never blocks, in the clear or inside TLS.

#[cfg(feature = "tls")]
use std::io::Read as _;
use std::io::{self, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::h2::Connection as Http2;

/// Ciphertext made ahead of the socket, in octets.
#[cfg(feature = "tls")]
const SEALED_BYTES: usize = 32 * 1024;

/// What protects the octets of a connection.
#[derive(Debug)]
pub(crate) enum Transport {
    Plain,
    #[cfg(feature = "tls")]
    Tls(Box<TlsTransport>),
}

/// A TLS session and the ciphertext that waits for the socket.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub(crate) struct TlsTransport {
    session: rustls::Connection,
    sealed: Vec<u8>,
    /// Whether close_notify follows the last output.
    is_finishing: bool,
}

impl Transport {
    #[cfg(feature = "tls")]
    pub(crate) fn tls(session: impl Into<rustls::Connection>) -> Self {
        Self::Tls(Box::new(TlsTransport {
            session: session.into(),
            sealed: Vec::new(),
            is_finishing: false,
        }))
    }

    /// The peer's certificates, its own first; none without TLS or without a client certificate.
    pub(crate) fn peer_certificates(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Plain => Vec::new(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => {
                let certificates = tls.session.peer_certificates().unwrap_or_default();
                certificates.iter().map(|der| der.to_vec()).collect()
            }
        }
    }

    /// Hands what was received to `sink`, decrypted.
    pub(crate) fn open(&mut self, received: &[u8], sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        match self {
            Self::Plain => sink(received),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.open(received, sink)?,
        }
        Ok(())
    }

    /// Takes the octets that the socket gets next; none when all is sent. [`Transport::put_back`] has to follow.
    pub(crate) fn take(&mut self, h2: &mut Http2) -> io::Result<Vec<u8>> {
        match self {
            Self::Plain => Ok(h2.take_output()),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.seal(h2),
        }
    }

    /// Returns what the socket did not take.
    pub(crate) fn put_back(&mut self, h2: &mut Http2, unsent: Vec<u8>) {
        match self {
            Self::Plain => h2.put_back(unsent),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.sealed = unsent,
        }
    }

    /// Says that nothing more will be sent, once all is, where the protocol below has a word for it.
    pub(crate) fn finish(&mut self) {
        #[cfg(feature = "tls")]
        if let Self::Tls(tls) = self {
            tls.is_finishing = true;
        }
    }
}

/// Breaks the connection when the peer's system has confirmed nothing of what it was sent for so long. Without this, one
/// that has gone without a word is noticed only once the socket's buffer is full, or after a quarter of an hour.
pub(super) fn limit_silence(socket: &TcpStream, timeout: Duration) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        rustix::net::sockopt::set_tcp_user_timeout(socket, millis)?;
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, timeout);
    Ok(())
}

/// One write; 0 when the socket takes nothing at this time.
pub(super) fn write(mut socket: &TcpStream, octets: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(octets) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

#[cfg(feature = "tls")]
impl TlsTransport {
    fn open(&mut self, received: &[u8], sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut received = received;
        let mut plain = [0; 16 * 1024];
        while !received.is_empty() {
            self.session.read_tls(&mut received)?;
            // The alert that says why is sent before the connection ends.
            let processed = self.session.process_new_packets();
            let state =
                processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            loop {
                match self.session.reader().read(&mut plain) {
                    Ok(0) => break,
                    Ok(length) => sink(&plain[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            // As without TLS, where the peer's end is that of the connection. The session takes in nothing more,
            // and a peer may wait for our end before it closes.
            if state.peer_has_closed() {
                let reason = "the peer has ended the TLS session";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason));
            }
        }
        self.check_protocol()
    }

    /// HTTP/2 over TLS is agreed on by ALPN (RFC 9113, section 3.2).
    fn check_protocol(&self) -> io::Result<()> {
        if !self.session.is_handshaking() && self.session.alpn_protocol() != Some(b"h2") {
            let reason = "the peer did not agree on h2 by ALPN";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(())
    }

    /// Encrypts output, and takes the ciphertext.
    fn seal(&mut self, h2: &mut Http2) -> io::Result<Vec<u8>> {
        let is_handshaking = self.session.is_handshaking();
        if self.sealed.is_empty() && !self.session.wants_write() && !is_handshaking {
            let output = h2.output();
            let part = &output[..output.len().min(SEALED_BYTES)];
            let taken = self.session.writer().write(part)?;
            h2.sent(taken);
        }
        // The peer reads nothing behind it.
        if self.is_finishing && (is_handshaking || h2.unsent_bytes() == 0) {
            self.session.send_close_notify();
        }
        while self.sealed.len() < SEALED_BYTES && self.session.wants_write() {
            self.session.write_tls(&mut self.sealed)?;
        }
        Ok(std::mem::take(&mut self.sealed))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::h2::Role;
    use crate::link::{ConnectionConfig, Link};

    #[test]
    fn a_peer_that_has_gone_is_waited_for_no_longer_than_one_that_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut config = ConnectionConfig::channel();
        config.write_timeout = Duration::from_secs(7);
        let link = Link::new(socket, Transport::Plain, Role::Client, config).unwrap();
        let limit = rustix::net::sockopt::tcp_user_timeout(&link.socket);
        assert_eq!(limit, Ok(7000));
    }
}
