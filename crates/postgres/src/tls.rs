//! Encryption of a session: libpq's modes, the negotiation with the server, channel binding.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use postgres::Socket;
use postgres::tls::{MakeTlsConnect, TlsConnect};
use ring::digest;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tbd_deadline::Deadline;
use tbd_tls::{ClientFiles, FileError, Identity, Reloading, Roots, ServerCheck, explain};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;

use super::limit::{Limited, TimeLimit, Transport};

/// The message that asks for TLS: its length, and the code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Whether sessions are encrypted; the names are libpq's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Plain text.
    #[default]
    Disable,
    /// TLS; plain text if the server has no TLS, or if TLS fails.
    Prefer,
    /// TLS. With trusted CAs the same as [`VerifyCa`](Self::VerifyCa).
    Require,
    /// TLS with a server whose certificate a trusted CA has signed.
    VerifyCa,
    /// The same, and the certificate is for the host that was dialled.
    VerifyFull,
}

/// Encryption of the sessions. Unix sockets are never encrypted. The default is plain text.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    mode: SslMode,
    settings: Option<Arc<Reloading<ClientConfig>>>,
    has_identity: bool,
}

impl Tls {
    /// Encryption in this mode. `identity` is for servers that ask for a certificate. Reads the
    /// files now, and again for a new session after they have changed.
    ///
    /// # Errors
    /// A file cannot be used, or the mode verifies and there are no trusted CAs.
    pub fn new(
        mode: SslMode,
        roots: Option<Roots>,
        identity: Option<Identity>,
    ) -> Result<Self, FileError> {
        if mode == SslMode::Disable {
            return Ok(Self::default());
        }
        let has_identity = identity.is_some();
        let files = ClientFiles {
            check: match (mode, &roots) {
                (SslMode::VerifyFull, _) => ServerCheck::ChainAndName,
                (SslMode::VerifyCa, _) | (_, Some(_)) => ServerCheck::Chain,
                _ => ServerCheck::Nothing,
            },
            roots: roots.unwrap_or(Roots::System),
            identity,
            alpn: Vec::new(),
        };
        Ok(Self {
            mode,
            settings: Some(Arc::new(files.watch()?)),
            has_identity,
        })
    }

    /// Whether servers can see a certificate.
    pub(super) fn has_identity(&self) -> bool {
        self.has_identity
    }

    /// The ways to open one session, in the order to try them. Reads changed files.
    pub(super) fn ways(&self) -> Vec<Option<Way>> {
        let way = self.settings.as_ref().map(|settings| Way {
            settings: settings.get(),
            is_required: self.mode != SslMode::Prefer,
        });
        match self.mode {
            SslMode::Prefer => vec![way, None],
            _ => vec![way],
        }
    }
}

/// How to encrypt one session.
#[derive(Clone)]
pub(super) struct Way {
    settings: Arc<ClientConfig>,
    is_required: bool,
}

/// Encryption failed. The text is the reason.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TlsFailure(String);

impl From<TlsFailure> for io::Error {
    fn from(failure: TlsFailure) -> Self {
        Self::new(ErrorKind::InvalidData, failure)
    }
}

/// Opens the transport on a connected socket. The driver calls it before it sends the first byte.
#[derive(Clone)]
pub(super) struct Negotiator {
    pub host: String,
    pub way: Option<Way>,
    /// The session's limit. In force from the first byte until the caller lifts it.
    pub limit: TimeLimit,
    /// When the session must be open.
    pub deadline: Deadline,
    /// How long that may take once the socket is connected.
    pub handshake_timeout: Duration,
}

impl MakeTlsConnect<Socket> for Negotiator {
    type Stream = Limited;
    type TlsConnect = Self;
    type Error = Infallible;

    fn make_tls_connect(&mut self, _: &str) -> Result<Self, Infallible> {
        Ok(self.clone())
    }
}

impl TlsConnect<Socket> for Negotiator {
    type Stream = Limited;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Limited>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move {
            let end = self
                .deadline
                .earlier_of(Deadline::after(self.handshake_timeout));
            let negotiated = tokio::time::timeout(end.remaining(), self.negotiate(socket));
            let (transport, binding) = negotiated
                .await
                .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))?;
            self.limit.set(end.remaining());
            Ok(Limited::new(transport, binding, self.limit))
        })
    }
}

impl Negotiator {
    async fn negotiate(
        &self,
        mut socket: Socket,
    ) -> io::Result<(Box<dyn Transport>, Option<Vec<u8>>)> {
        let Some(way) = &self.way else {
            return Ok((Box::new(socket), None));
        };
        socket.write_all(&SSL_REQUEST).await?;
        match socket.read_u8().await? {
            b'S' => {}
            b'N' if !way.is_required => return Ok((Box::new(socket), None)),
            b'N' => {
                let reason = "it has no TLS, and DB_SSLMODE requires it";
                return Err(TlsFailure(reason.to_owned()).into());
            }
            _ => {
                let reason = "it does not answer a request for TLS as PostgreSQL does";
                return Err(TlsFailure(reason.to_owned()).into());
            }
        }
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| TlsFailure(error.to_string()))?;
        let stream = TlsConnector::from(Arc::clone(&way.settings))
            .connect(name, socket)
            .await
            .map_err(|error| match tls_reason(&error, &self.host) {
                Some(reason) => TlsFailure(reason).into(),
                None => error,
            })?;
        let certificates = stream.get_ref().1.peer_certificates();
        let binding = certificates
            .and_then(<[_]>::first)
            .and_then(|certificate| server_end_point(certificate));
        Ok((Box::new(stream), binding))
    }
}

/// Why TLS failed with the server dialled as `host`, if that is what `error` says.
pub(super) fn tls_reason(error: &io::Error, host: &str) -> Option<String> {
    let inner = error.get_ref()?;
    inner
        .downcast_ref()
        .map(|error| explain(error, host))
        .or_else(|| inner.downcast_ref::<TlsFailure>().map(ToString::to_string))
}

/// The channel binding `tls-server-end-point` (RFC 5929, section 4): the certificate's hash, by the
/// hash function of its signature. None for signatures without one, such as Ed25519's.
fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, .. }, .. }
    let (fields, _) = element(certificate)?;
    let (_, after_tbs) = element(fields)?;
    let (algorithm, _) = element(after_tbs)?;
    let (oid, _) = element(algorithm)?;
    // RSA's (1.2.840.113549.1.1.x) and ECDSA's (1.2.840.10045.4.x).
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4];
    let hash = match (oid.strip_prefix(RSA), oid.strip_prefix(ECDSA)) {
        // MD5 and SHA-1 are replaced by SHA-256.
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => &digest::SHA256,
        (Some([12]), _) | (_, Some([3, 3])) => &digest::SHA384,
        (Some([13]), _) | (_, Some([3, 4])) => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

/// The content of the first DER element, and what follows it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&[_tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
        let length = bytes.iter().try_fold(0_usize, |length, &byte| {
            Some(length.checked_mul(256)? | usize::from(byte))
        })?;
        (length, rest)
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_bound_to_the_hash_of_a_whole_certificate() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let der = made.cert.der();
        // ECDSA with SHA-256.
        let expected = digest::digest(&digest::SHA256, der);
        assert_eq!(server_end_point(der).as_deref(), Some(expected.as_ref()));
        for length in 0..der.len() {
            server_end_point(&der[..length]);
        }
        assert_eq!(server_end_point(&der[..der.len() / 2]), None);
        assert_eq!(
            server_end_point(&[0x30, 0x88, 255, 255, 255, 255, 255, 255, 255, 255]),
            None
        );
    }
}
