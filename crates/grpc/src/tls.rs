//! TLS and mutual TLS by rustls, with ALPN for HTTP/2 (RFC 9113, section 3.2).

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

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

/// A server's certificate, and the CA of its clients. Clones share it.
#[derive(Clone)]
pub struct ServerTls(Arc<ServerConfig>);

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
        Ok(Self(Arc::new(config)))
    }

    /// A configuration of your own: a resolver that reads certificates again when they change, say. ALPN is set to `h2`.
    pub fn from_config(mut config: ServerConfig) -> Self {
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Self(Arc::new(config))
    }

    pub(crate) fn session(&self) -> io::Result<ServerConnection> {
        ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)
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
    config: Arc<ClientConfig>,
    name: Option<String>,
}

impl ClientTls {
    /// Trusts what the operating system trusts. Reads its files.
    ///
    /// # Errors
    /// [`TlsError`] when there are none.
    pub fn with_system_roots() -> Result<Self, TlsError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            return Err(TlsError::new(
                "CA certificates of the operating system",
                "there are none",
            ));
        }
        Self::with_roots(roots, None)
    }

    /// Trusts the CA certificates in `ca_pem` and nobody else. With an identity (certificates and key, as PEM) it shows
    /// who it is.
    ///
    /// # Errors
    /// [`TlsError`] for PEM that does not hold what it should.
    pub fn from_pem(ca_pem: &[u8], identity: Option<(&[u8], &[u8])>) -> Result<Self, TlsError> {
        Self::with_roots(roots(ca_pem)?, identity)
    }

    fn with_roots(
        roots: RootCertStore,
        identity: Option<(&[u8], &[u8])>,
    ) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::new("TLS", error))?
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate_pem, key_pem)) => builder
                .with_client_auth_cert(certificates(certificate_pem)?, key(key_pem)?)
                .map_err(|error| TlsError::new("client certificate", error))?,
        };
        Ok(Self::from_config(config))
    }

    /// A configuration of your own. ALPN is set to `h2`.
    pub fn from_config(mut config: ClientConfig) -> Self {
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        Self {
            config: Arc::new(config),
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
        ClientConnection::new(Arc::clone(&self.config), name).map_err(io::Error::other)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls")
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
