//! Security settings: TLS and SASL.

use std::fmt;
#[cfg(feature = "tls")]
use std::path::Path;
#[cfg(feature = "tls")]
use std::sync::Arc;

#[cfg(feature = "tls")]
use tbd_tls::{
    ClientFiles, FileError, Identity, Reloading, Roots, ServerCheck, explain, token_file,
};

#[cfg(feature = "tls")]
use super::config::host_of;
#[cfg(feature = "tls")]
use super::error::Error;

/// How connections are protected. The four combinations are Kafka's
/// `security.protocol`; the default is PLAINTEXT.
#[derive(Clone, Debug, Default)]
pub struct Security {
    /// Encryption, and the check of brokers' certificates. Default: none.
    pub tls: Option<Tls>,
    /// The login. Default: none.
    #[doc(alias = "sasl.jaas.config")]
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

/// TLS 1.2 or 1.3, with the trusted certificates and the client's own. Clones share them.
///
/// The files are read again for a new connection after they have changed. If they cannot be used
/// then, the earlier ones stay in use, with a warning in the log.
#[cfg(feature = "tls")]
#[derive(Clone, Debug)]
pub struct Tls {
    settings: Arc<Reloading<rustls::ClientConfig>>,
}

#[cfg(feature = "tls")]
impl Tls {
    /// Trusts the operating system's CA certificates. Reads its files, or those that
    /// `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    ///
    /// # Errors
    /// [`Error::Resource`] when there are no certificates.
    pub fn with_system_roots() -> Result<Self, Error> {
        Self::from_files(None, None)
    }

    /// Trusts only the CA certificates in a PEM file. Reads the file.
    ///
    /// # Errors
    /// [`Error::Resource`] when the file cannot be used.
    pub fn with_ca_file(path: &Path) -> Result<Self, Error> {
        Self::from_files(Some(path), None)
    }

    /// Trusts the CA certificates in `ca_file`; without one, the operating system's. `identity` is
    /// the client's own certificate and its key, for brokers that ask for one
    /// (`ssl.client.auth`). All files are PEM. Reads them.
    ///
    /// # Errors
    /// [`Error::Resource`] when a file cannot be used, or certificate and key do not belong
    /// together.
    pub fn from_files(
        ca_file: Option<&Path>,
        identity: Option<(&Path, &Path)>,
    ) -> Result<Self, Error> {
        let files = ClientFiles {
            check: ServerCheck::ChainAndName,
            roots: ca_file.map_or(Roots::System, |path| Roots::File(path.to_owned())),
            identity: identity.map(|(certificate, key)| Identity::new(certificate, key)),
            alpn: Vec::new(),
        };
        Ok(Self {
            settings: Arc::new(files.watch().map_err(unusable)?),
        })
    }

    /// The settings for a new connection. Reads changed files.
    pub(super) fn settings(&self) -> Arc<rustls::ClientConfig> {
        self.settings.get()
    }
}

#[cfg(feature = "tls")]
fn unusable(error: FileError) -> Error {
    Error::Resource {
        reason: error.to_string(),
    }
}

/// The error of a failed TLS session with the broker that was dialled as `address`, with a hint.
#[cfg(feature = "tls")]
pub(super) fn tls_failure(address: &str, error: &rustls::Error) -> Error {
    Error::Tls {
        address: address.to_owned(),
        reason: explain(error, host_of(address)),
    }
}

/// The settings of TLS. This build of the crate has none: turn on the feature `tls`.
#[cfg(not(feature = "tls"))]
#[derive(Clone, Debug)]
pub enum Tls {}

/// A login.
#[derive(Clone)]
#[non_exhaustive]
pub enum Sasl {
    /// With a password.
    Password {
        /// How the client proves the password.
        mechanism: SaslMechanism,
        /// The user.
        username: String,
        /// The password. No text of this client contains it.
        password: String,
    },
    /// With a bearer token (OAUTHBEARER, RFC 7628). Use it only with TLS.
    #[cfg(feature = "tls")]
    Token(Token),
}

impl Sasl {
    /// A login with the token in a file. Reads it now, and again for a login after it has changed:
    /// on a new connection, and before the session on an open one ends (KIP-368).
    ///
    /// # Errors
    /// [`Error::Resource`] when the file cannot be used.
    #[cfg(feature = "tls")]
    pub fn with_token_file(path: &Path) -> Result<Self, Error> {
        let token = token_file(path).map_err(unusable)?;
        Ok(Self::Token(Token(Arc::new(token))))
    }

    /// The registered name of its SASL mechanism.
    pub fn mechanism(&self) -> &'static str {
        match self {
            Self::Password { mechanism, .. } => mechanism.name(),
            #[cfg(feature = "tls")]
            Self::Token(_) => "OAUTHBEARER",
        }
    }
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Sasl");
        shown.field("mechanism", &self.mechanism());
        match self {
            Self::Password { username, .. } => shown.field("username", username),
            #[cfg(feature = "tls")]
            Self::Token(token) => shown.field("token", token),
        };
        shown.finish_non_exhaustive()
    }
}

/// A bearer token in a file.
#[cfg(feature = "tls")]
#[derive(Clone, Debug)]
pub struct Token(Arc<Reloading<String>>);

#[cfg(feature = "tls")]
impl Token {
    /// The token as it is now. No text of this client contains it.
    pub(super) fn get(&self) -> Arc<String> {
        self.0.get()
    }
}

/// How the client proves its password to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
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
            sasl: Some(Sasl::Password {
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

    #[cfg(feature = "tls")]
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
