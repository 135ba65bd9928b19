//! The octets' way: a socket that never blocks, in the clear or inside TLS.

#[cfg(feature = "tls")]
use std::io::Read as _;
use std::io::{self, Write as _};
use std::net::TcpStream;

use crate::h2;

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
}

impl Transport {
    #[cfg(feature = "tls")]
    pub(crate) fn tls(session: impl Into<rustls::Connection>) -> Self {
        Self::Tls(Box::new(TlsTransport {
            session: session.into(),
            sealed: Vec::new(),
        }))
    }

    /// The peer's certificates, its own first; none without TLS or without a client certificate.
    pub(crate) fn peer_certificates(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Plain => Vec::new(),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => {
                let certificates = tls.session.peer_certificates().unwrap_or_default();
                certificates
                    .iter()
                    .map(|certificate| certificate.to_vec())
                    .collect()
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

    /// Writes as much of the output as the socket takes. Never blocks.
    pub(crate) fn flush(
        &mut self,
        h2: &mut h2::Connection,
        socket: &TcpStream,
    ) -> io::Result<Flushed> {
        match self {
            Self::Plain => flush_plain(h2, socket),
            #[cfg(feature = "tls")]
            Self::Tls(tls) => tls.flush(h2, socket),
        }
    }

    /// Says that nothing more will be sent, where the protocol below has a word for it.
    pub(crate) fn finish(&mut self) {
        #[cfg(feature = "tls")]
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
        }
    }
}

/// What came of a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flushed {
    /// Whether the socket took something.
    pub(crate) is_progress: bool,
    /// Whether output is left that the socket did not take.
    pub(crate) is_blocked: bool,
}

fn flush_plain(h2: &mut h2::Connection, socket: &TcpStream) -> io::Result<Flushed> {
    let mut is_progress = false;
    loop {
        let output = h2.output();
        if output.is_empty() {
            return Ok(Flushed {
                is_progress,
                is_blocked: false,
            });
        }
        match write(socket, output)? {
            None => {
                return Ok(Flushed {
                    is_progress,
                    is_blocked: true,
                });
            }
            Some(written) => h2.sent(written),
        }
        is_progress = true;
    }
}

/// One write; None when the socket takes nothing at this time.
fn write(mut socket: &TcpStream, octets: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.write(octets) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => return Ok(Some(written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
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
            let result = self.session.process_new_packets();
            if let Err(error) = result {
                // The alert that says why is sent before the connection ends.
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            loop {
                match self.session.reader().read(&mut plain) {
                    Ok(0) => break,
                    Ok(length) => sink(&plain[..length]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
        }
        self.check_protocol()
    }

    /// HTTP/2 over TLS is agreed on by ALPN (RFC 9113, section 3.2).
    fn check_protocol(&self) -> io::Result<()> {
        if !self.session.is_handshaking() && self.session.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer did not agree on h2 by ALPN",
            ));
        }
        Ok(())
    }

    fn flush(&mut self, h2: &mut h2::Connection, socket: &TcpStream) -> io::Result<Flushed> {
        let mut is_progress = false;
        loop {
            while self.sealed.len() < SEALED_BYTES && self.session.wants_write() {
                self.session.write_tls(&mut self.sealed)?;
            }
            if self.sealed.is_empty() && !self.session.is_handshaking() {
                let output = h2.output();
                let taken = self
                    .session
                    .writer()
                    .write(&output[..output.len().min(SEALED_BYTES)])?;
                h2.sent(taken);
                if self.session.wants_write() {
                    continue;
                }
            }
            if self.sealed.is_empty() {
                return Ok(Flushed {
                    is_progress,
                    is_blocked: false,
                });
            }
            match write(socket, &self.sealed)? {
                None => {
                    return Ok(Flushed {
                        is_progress,
                        is_blocked: true,
                    });
                }
                Some(written) => drop(self.sealed.drain(..written)),
            }
            is_progress = true;
        }
    }
}
