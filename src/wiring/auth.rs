//! Construction of the bearer-token check from its settings.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tbd_tls::{FileError, Reloading};

use super::AnyError;
use crate::auth::{KeySource, TokenCheck};
use crate::config::{AuthKey, AuthSettings};

/// The check that `settings` ask for, if any. It reads the file of keys, and reads it again when it has
/// changed: then tokens need a key of the new file. Logs the number of keys.
///
/// # Errors
/// The file or secret contains no usable key. Then the program must not start: it would admit nobody or
/// everybody.
pub fn token_check(
    settings: Option<&AuthSettings>,
) -> Result<Option<Arc<Reloading<TokenCheck>>>, AnyError> {
    let Some(settings) = settings.cloned() else {
        return Ok(None);
    };
    if settings.audience.is_none() {
        log::warn!("AUTH_JWT_AUDIENCE is unset: tokens for other services are accepted, too");
    }
    let files = match &settings.key {
        AuthKey::Hs256(_) => Vec::new(),
        AuthKey::JwksFile(path) => vec![path.clone()],
    };
    let check = Reloading::new(files, move || load(&settings))
        .map_err(|error| format!("AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET: {error}"))?;
    Ok(Some(Arc::new(check)))
}

fn load(settings: &AuthSettings) -> Result<TokenCheck, FileError> {
    let check = |key| {
        TokenCheck::new(
            key,
            settings.issuer.as_deref(),
            settings.audience.as_deref(),
        )
    };
    let check = match &settings.key {
        AuthKey::Hs256(secret) => check(KeySource::Secret(secret.expose().as_bytes()))
            .map_err(|error| FileError::new(Path::new("the secret"), error)),
        AuthKey::JwksFile(path) => {
            let text = fs::read_to_string(path).map_err(|error| FileError::new(path, error))?;
            check(KeySource::Jwks(&text)).map_err(|error| FileError::new(path, error))
        }
    }?;
    log::info!(keys = check.keys(); "requests below /v1 need a bearer token");
    Ok(check)
}
