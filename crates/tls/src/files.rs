//! PEM files: certificates, keys, trusted CAs.

use std::fmt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A file that cannot be used. The text names the file and the reason, and never quotes a content.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct FileError {
    what: String,
    reason: String,
}

impl FileError {
    /// `path` cannot be used because of `reason`.
    pub fn new(path: &Path, reason: impl fmt::Display) -> Self {
        Self {
            what: path.display().to_string(),
            reason: reason.to_string(),
        }
    }

    /// `what`, which is no file, cannot be used because of `reason`.
    pub(crate) fn of(what: &str, reason: impl fmt::Display) -> Self {
        Self {
            what: what.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// The certificates in a PEM file; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| FileError::new(path, error))?;
    match found.is_empty() {
        true => Err(FileError::new(path, "the file has no PEM certificate")),
        false => Ok(found),
    }
}

/// The private key in a PEM file, which must not be encrypted.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            FileError::new(path, "the file has no unencrypted PEM key")
        }
        error => FileError::new(path, error),
    })
}

/// The CA certificates in a PEM file.
pub(crate) fn roots(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| FileError::new(path, error))?;
    }
    Ok(roots)
}

/// The operating system's CA certificates, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
pub(crate) fn system_roots() -> Result<RootCertStore, FileError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // A system's store may contain old certificates that no longer parse.
    let (added, _) = roots.add_parsable_certificates(found.certs);
    let refusal = |reason: &dyn fmt::Display| FileError::of("the system's CA certificates", reason);
    match (added, found.errors.first()) {
        (0, Some(error)) => Err(refusal(error)),
        (0, None) => Err(refusal(&"there are none")),
        _ => Ok(roots),
    }
}
