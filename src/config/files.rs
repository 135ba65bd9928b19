//! Files that variables name: certificates, keys, tokens.

use std::fs::{self, File};
use std::path::PathBuf;

use tbd_tls::Identity;

use super::reader::{Reader, optional};

/// The PEM files of a server that speaks TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsServerFiles {
    /// The server's own certificate.
    pub identity: Identity,
    /// CAs of the clients' certificates; `None`: clients need none.
    pub client_ca: Option<PathBuf>,
}

/// The server's files that three variables name.
pub(super) fn server_files(
    reader: &mut Reader<'_>,
    [certificate, key, client_ca]: [&'static str; 3],
) -> Option<TlsServerFiles> {
    let identity = identity(reader, certificate, key);
    let ca = reader.get(client_ca, optional(readable_file));
    reader.require_with(certificate, client_ca);
    Some(TlsServerFiles {
        identity: identity?,
        client_ca: ca,
    })
}

/// The identity in the files that two variables name: both of them, or neither.
pub(super) fn identity(
    reader: &mut Reader<'_>,
    certificate: &'static str,
    key: &'static str,
) -> Option<Identity> {
    let files = [certificate, key].map(|name| reader.get(name, optional(readable_file)));
    reader.require_with(certificate, key);
    reader.require_with(key, certificate);
    let [certificate, key] = files;
    Some(Identity::new(certificate?, key?))
}

pub(super) fn readable_folder(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text.trim());
    fs::read_dir(&path).is_ok().then_some(path)
}

pub(super) fn readable_file(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text.trim());
    let is_file = File::open(&path)
        .and_then(|file| file.metadata())
        .is_ok_and(|metadata| metadata.is_file());
    is_file.then_some(path)
}
