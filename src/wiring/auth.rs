//! The check of bearer tokens, from its settings.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::auth::{KeyError, KeySource, TokenCheck};
use crate::config::{AuthKey, AuthSettings};

/// Why tokens cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file of keys cannot be read.
    #[error("AUTH_JWT_JWKS_FILE: cannot read {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// What was read holds no usable key.
    #[error("AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET: {0}")]
    Keys(#[from] KeyError),
}

/// Reads the keys, once: keys that change later take effect with the next start. Logs how
/// many there are.
///
/// # Errors
/// [`AuthError`]: then the program must not start, since it would let in nobody or anybody.
pub fn token_check(settings: &AuthSettings) -> Result<TokenCheck, AuthError> {
    let text;
    let source = match &settings.key {
        AuthKey::Hs256(secret) => KeySource::Secret(secret.expose().as_bytes()),
        AuthKey::JwksFile(path) => {
            text = fs::read_to_string(path).map_err(|source| AuthError::File {
                path: path.clone(),
                source,
            })?;
            KeySource::Jwks(&text)
        }
    };
    let check = TokenCheck::new(
        source,
        settings.issuer.as_deref(),
        settings.audience.as_deref(),
    )?;
    log::info!(keys = check.keys(); "/v1 is for requests with a bearer token");
    if settings.audience.is_none() {
        log::warn!("AUTH_JWT_AUDIENCE is unset: tokens meant for other services are taken, too");
    }
    Ok(check)
}
