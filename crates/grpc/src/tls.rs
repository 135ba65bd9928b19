//! TLS and mutual TLS by rustls, with ALPN for HTTP/2 (RFC 9113, section 3.2).

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer, ServerName};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use tbd_tls::{ClientFiles, ServerCheck, ServerFiles};
pub use tbd_tls::{FileError, Identity, Roots};

/// What was agreed on by ALPN, and nothing else.
const PROTOCOL: &[u8] = b"h2";

/// Certificates or keys that cannot be used. Trying again is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct TlsError {
    what: &'static str,
    reason: String,
}

impl TlsError {
    fn new(what: &'static str, reason: impl fmt::Display) -> Self {
        Self {
            what,
            reason: reason.to_string(),
        }
    }
}

/// The settings for a new connection.
type Source<T> = Arc<dyn Fn() -> Arc<T> + Send + Sync>;

/// A server's certificate, and the CA of its clients. Clones share it.
#[derive(Clone)]
pub struct ServerTls(Source<ServerConfig>);

impl ServerTls {
    /// Shows the certificates in `certificate_pem` (its own first), for which it holds the key in `key_pem`. With
    /// `client_ca_pem` only clients with a certificate of that CA are let in. TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`TlsError`] for PEM that does not hold what it should.
    pub fn from_pem(
        certificate_pem: &[u8],
        key_pem: &[u8],
        client_ca_pem: Option<&[u8]>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new("TLS", error))?;
        let builder = match client_ca_pem {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let roots = Arc::new(roots(pem)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| TlsError::new("client CA", error))?,
                )
            }
        };
        let mut config = builder
            .with_single_cert(certificates(certificate_pem)?, key(key_pem)?)
            .map_err(|error| TlsError::new("certificate", error))?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Ok(Self::from_config(config))
    }

    /// As [`from_pem`](Self::from_pem), from files, which are read again for a new connection after they have changed.
    /// If they cannot be used then, the earlier ones stay in use, with a warning in the log. Reads the files.
    ///
    /// # Errors
    /// [`FileError`] for a file that cannot be used.
    pub fn from_files(identity: Identity, client_ca: Option<PathBuf>) -> Result<Self, FileError> {
        let files = ServerFiles {
            identity,
            client_ca,
            alpn: vec![PROTOCOL.to_vec()],
        };
        let files = files.watch()?;
        Ok(Self(Arc::new(move || files.get())))
    }

    /// A configuration of your own. ALPN is set to `h2`.
    pub fn from_config(mut config: ServerConfig) -> Self {
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let config = Arc::new(config);
        Self(Arc::new(move || Arc::clone(&config)))
    }

    pub(crate) fn session(&self) -> io::Result<ServerConnection> {
        ServerConnection::new((self.0)()).map_err(io::Error::other)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

/// A client's trusted CAs, and its own certificate. Clones share it.
#[derive(Clone)]
pub struct ClientTls {
    settings: Source<ClientConfig>,
    name: Option<String>,
}

impl ClientTls {
    /// Trusts the CA certificates in `ca_pem` and nobody else. With an identity (certificates and key, as PEM) it shows
    /// who it is.
    ///
    /// # Errors
    /// [`TlsError`] for PEM that does not hold what it should.
    pub fn from_pem(ca_pem: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new("TLS", error))?
            .with_root_certificates(roots(ca_pem)?);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate_pem, key_pem)) => builder
                .with_client_auth_cert(certificates(certificate_pem)?, key(key_pem)?)
                .map_err(|error| TlsError::new("client certificate", error))?,
        };
        Ok(Self::from_config(config))
    }

    /// Trusts these CAs, and shows this identity, from files, which are read again for a new connection after they have
    /// changed. If they cannot be used then, the earlier ones stay in use, with a warning in the log. Reads the files.
    ///
    /// # Errors
    /// [`FileError`] for a file that cannot be used.
    pub fn from_files(roots: Roots, identity: Option<Identity>) -> Result<Self, FileError> {
        let files = ClientFiles {
            check: ServerCheck::ChainAndName,
            roots,
            identity,
            alpn: vec![PROTOCOL.to_vec()],
        };
        let files = files.watch()?;
        Ok(Self {
            settings: Arc::new(move || files.get()),
            name: None,
        })
    }

    /// A configuration of your own. ALPN is set to `h2`.
    pub fn from_config(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let config = Arc::new(config);
        Self {
            settings: Arc::new(move || Arc::clone(&config)),
            name: None,
        }
    }

    /// Expects a certificate for `name`, and not for the name that is dialled.
    pub fn expecting(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    pub(crate) fn session(&self, host: &str) -> io::Result<ClientConnection> {
        let name = self.name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        ClientConnection::new((self.settings)(), name).map_err(io::Error::other)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
    }
}

/// Whether a certificate (DER) has the DNS name `name` among its subject alternative names. Nothing else of it is
/// verified.
pub fn is_certificate_of(certificate: &[u8], name: &str) -> bool {
    let certificate = CertificateDer::from(certificate);
    match (
        ParsedCertificate::try_from(&certificate),
        DnsName::try_from(name),
    ) {
        (Ok(certificate), Ok(name)) => {
            verify_server_name(&certificate, &ServerName::DnsName(name)).is_ok()
        }
        _ => false,
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| TlsError::new("certificates", error))?;
    if found.is_empty() {
        Err(TlsError::new("certificates", "there are none"))
    } else {
        Ok(found)
    }
}

fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| TlsError::new("private key", error))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::new("CA certificate", error))?;
    }
    Ok(roots)
}
