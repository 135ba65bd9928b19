//! The worker's access to the participants of sagas: TLS and a bearer token, from files that may change.

use std::sync::Arc;

use tbd_grpc::tls::{ClientTls, FileError, Roots};
use tbd_tls::token_file;

use crate::config::ParticipantsAccess;
use crate::orders::adapters::TokenSource;

/// TLS with the participants, if it is configured. Reads the files.
///
/// # Errors
/// A file cannot be used.
pub(super) fn participants_tls(
    access: &ParticipantsAccess,
) -> Result<Option<ClientTls>, FileError> {
    let Some(ca_file) = &access.ca_file else {
        return Ok(None);
    };
    ClientTls::from_files(Roots::File(ca_file.clone()), access.identity.clone()).map(Some)
}

/// The token for the participants, if it is configured. Reads the file.
///
/// # Errors
/// The file cannot be used.
pub(super) fn participants_token(
    access: &ParticipantsAccess,
) -> Result<Option<TokenSource>, FileError> {
    let Some(path) = &access.token_file else {
        return Ok(None);
    };
    let token = token_file(path)?;
    Ok(Some(Arc::new(move || token.get().as_str().to_owned())))
}
