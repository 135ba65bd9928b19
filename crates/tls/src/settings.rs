//! TLS settings of clients and servers, made from PEM files. TLS 1.2 and 1.3.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ConfigBuilder, ConfigSide, RootCertStore, ServerConfig, WantsVerifier,
    WantsVersions,
};

use super::files::{FileError, certificates, key, roots, system_roots};
use super::reloading::Reloading;
use super::verifier::LenientVerifier;

/// The CAs that are trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// The operating system's, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    System,
    /// Those in a PEM file, and no other.
    File(PathBuf),
}

/// What a client requires of the server's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerCheck {
    /// Nothing: encryption without knowing to whom.
    Nothing,
    /// A trusted CA has signed it.
    Chain,
    /// A trusted CA has signed it, for the name that was dialled.
    ChainAndName,
}

/// A certificate (followed by its intermediates) and its key, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The certificates.
    pub certificate: PathBuf,
    /// The key, unencrypted.
    pub key: PathBuf,
}

impl Identity {
    /// The identity in these files.
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
        }
    }
}

/// A client's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFiles {
    /// The check of the server's certificate.
    pub check: ServerCheck,
    /// The CAs for this check.
    pub roots: Roots,
    /// The client's own certificate, for servers that ask for one.
    pub identity: Option<Identity>,
    /// The protocols to offer by ALPN.
    pub alpn: Vec<Vec<u8>>,
}

impl ClientFiles {
    /// Checks chain and name against the CAs in a PEM file; no own certificate.
    pub fn trusting(ca_file: impl Into<PathBuf>) -> Self {
        Self {
            check: ServerCheck::ChainAndName,
            roots: Roots::File(ca_file.into()),
            identity: None,
            alpn: Vec::new(),
        }
    }

    /// The settings of these files now. Reads them.
    ///
    /// # Errors
    /// A file cannot be used, or certificate and key do not belong together.
    pub fn load(&self) -> Result<ClientConfig, FileError> {
        let builder = with_versions(ClientConfig::builder_with_provider)?;
        let builder = match self.check {
            ServerCheck::ChainAndName => builder.with_root_certificates(self.trusted()?),
            check => {
                let chain = match check {
                    ServerCheck::Nothing => None,
                    _ => {
                        let provider = Arc::new(ring::default_provider());
                        let roots = Arc::new(self.trusted()?);
                        let verifier =
                            WebPkiServerVerifier::builder_with_provider(roots, provider).build();
                        Some(verifier.map_err(|error| FileError::of("the CAs", error))?)
                    }
                };
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(LenientVerifier::new(chain)))
            }
        };
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some(Identity { certificate, key }) => builder
                .with_client_auth_cert(certificates(certificate)?, self::key(key)?)
                .map_err(|error| FileError::new(certificate, error))?,
        };
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }

    /// The settings, made again when a file changes. The system's CAs are read once.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn watch(self) -> Result<Reloading<ClientConfig>, FileError> {
        let mut files = Vec::new();
        if let Roots::File(file) = &self.roots {
            files.push(file.clone());
        }
        files.extend(
            self.identity
                .iter()
                .flat_map(|it| [it.certificate.clone(), it.key.clone()]),
        );
        Reloading::new(files, move || self.load())
    }

    fn trusted(&self) -> Result<RootCertStore, FileError> {
        match &self.roots {
            Roots::System => system_roots(),
            Roots::File(path) => roots(path),
        }
    }
}

/// A server's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFiles {
    /// The server's certificate.
    pub identity: Identity,
    /// The CAs of clients' certificates. With it, every client needs a certificate.
    pub client_ca: Option<PathBuf>,
    /// The protocols to accept by ALPN.
    pub alpn: Vec<Vec<u8>>,
}

impl ServerFiles {
    /// The settings of these files now. Reads them.
    ///
    /// # Errors
    /// A file cannot be used, or certificate and key do not belong together.
    pub fn load(&self) -> Result<ServerConfig, FileError> {
        let builder = with_versions(ServerConfig::builder_with_provider)?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let provider = Arc::new(ring::default_provider());
                let roots = Arc::new(roots(path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|error| FileError::new(path, error))?,
                )
            }
        };
        let Identity { certificate, key } = &self.identity;
        let mut config = builder
            .with_single_cert(certificates(certificate)?, self::key(key)?)
            .map_err(|error| FileError::new(certificate, error))?;
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }

    /// The settings, made again when a file changes.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn watch(self) -> Result<Reloading<ServerConfig>, FileError> {
        let mut files = vec![self.identity.certificate.clone(), self.identity.key.clone()];
        files.extend(self.client_ca.clone());
        Reloading::new(files, move || self.load())
    }
}

/// A builder with ring's cryptography, for TLS 1.2 and 1.3.
fn with_versions<S: ConfigSide>(
    builder: fn(Arc<CryptoProvider>) -> ConfigBuilder<S, WantsVersions>,
) -> Result<ConfigBuilder<S, WantsVerifier>, FileError> {
    builder(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| FileError::of("TLS", error))
}
