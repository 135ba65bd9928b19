//! Security settings: TLS and SASL.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, ClientConfig, InvalidMessage, RootCertStore};

use super::error::Error;
use super::transport::host_of;

/// How connections are protected. The four combinations are Kafka's
/// `security.protocol`; the default is PLAINTEXT.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Encryption, and the check of brokers' certificates.
    pub tls: Option<Tls>,
    /// The login.
    pub sasl: Option<Sasl>,
}

impl Security {
    /// Its name in Kafka's `security.protocol`.
    pub fn protocol(&self) -> &'static str {
        match (&self.tls, &self.sasl) {
            (None, None) => "PLAINTEXT",
            (Some(_), None) => "SSL",
            (None, Some(_)) => "SASL_PLAINTEXT",
            (Some(_), Some(_)) => "SASL_SSL",
        }
    }
}

/// TLS 1.2 or 1.3, with the trusted certificates. Clones share them.
#[derive(Clone)]
pub struct Tls {
    pub(super) config: Arc<ClientConfig>,
}

impl Tls {
    /// Trusts the operating system's CA certificates. Reads its files, or those that
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    ///
    /// # Errors
    /// [`Error::Resource`] when there are no certificates.
    pub fn with_system_roots() -> Result<Self, Error> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        // A system's store may contain old certificates that no longer parse.
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let reason = match found.errors.first() {
                Some(error) => error.to_string(),
                None => "there are none".to_owned(),
            };
            return Err(Error::Resource {
                reason: format!("no CA certificates of the operating system: {reason}"),
            });
        }
        Self::with_roots(roots)
    }

    /// Trusts only the CA certificates in a PEM file. Reads the file.
    ///
    /// # Errors
    /// [`Error::Resource`] when the file cannot be read or has no certificates.
    pub fn with_ca_file(path: &Path) -> Result<Self, Error> {
        let unusable = |reason: &dyn fmt::Display| Error::Resource {
            reason: format!("CA certificates in {}: {reason}", path.display()),
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| unusable(&error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        if roots.is_empty() {
            return Err(unusable(&"the file holds none"));
        }
        Self::with_roots(roots)
    }

    fn with_roots(roots: RootCertStore) -> Result<Self, Error> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Resource {
                reason: error.to_string(),
            })?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            config: Arc::new(config),
        })
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// The error of a failed TLS session with the broker that was dialled as `address`, with a hint.
pub(super) fn tls_failure(address: &str, error: &rustls::Error) -> Error {
    let reason = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no trusted CA has signed its certificate; trust the CA that did, \
             if this is the right broker"
                .to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented,
            ..
        }) => format!(
            "its certificate is for {}, not for {}; dial it by a name of its certificate, \
             or give it a certificate for this name",
            presented.join(", "),
            host_of(address),
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired".to_owned(),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS here; use the security protocol of this listener".to_owned()
        }
        other => other.to_string(),
    };
    Error::Tls {
        address: address.to_owned(),
        reason,
    }
}

/// A login.
#[derive(Clone)]
pub struct Sasl {
    /// How the client proves the password.
    pub mechanism: SaslMechanism,
    /// The user.
    pub username: String,
    /// The password. No text of this client contains it.
    pub password: String,
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sasl")
            .field("mechanism", &self.mechanism)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// How the client proves its password to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslMechanism {
    /// Sends the password (RFC 4616). Use it only with TLS.
    Plain,
    /// Client and broker prove to each other that they know the password (RFC 5802, RFC 7677).
    ScramSha256,
    /// The same with the longer hash.
    ScramSha512,
}

impl SaslMechanism {
    /// Its registered SASL name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let security = Security {
            tls: None,
            sasl: Some(Sasl {
                mechanism: SaslMechanism::Plain,
                username: "ann".to_owned(),
                password: "hunter2".to_owned(),
            }),
        };
        let shown = format!("{security:?}");
        assert!(
            shown.contains("ann") && !shown.contains("hunter2"),
            "{shown}"
        );
        assert_eq!(security.protocol(), "SASL_PLAINTEXT");
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let file = std::env::current_exe().unwrap().with_extension("no-such");
        let error = Tls::with_ca_file(&file).unwrap_err();
        assert!(error.to_string().contains("no-such"), "{error}");
        assert!(!error.is_transient());
        let error = Tls::with_ca_file(Path::new("/dev/null")).unwrap_err();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }
}
