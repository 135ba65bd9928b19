//! Construction of the bearer-token check from its settings.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

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
    /// The file or secret contains no usable key.
    #[error("AUTH_JWT_JWKS_FILE or AUTH_JWT_HS256_SECRET: {0}")]
    Keys(#[from] KeyError),
}

/// The check that `settings` ask for, if any. Reads the keys once and logs their number. Later changes
/// take effect at the next start.
///
/// # Errors
/// [`AuthError`]. Then the program must not start: it would admit nobody or everybody.
pub fn token_check(settings: Option<&AuthSettings>) -> Result<Option<Arc<TokenCheck>>, AuthError> {
    let Some(settings) = settings else {
        return Ok(None);
    };
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
    log::info!(keys = check.keys(); "requests below /v1 need a bearer token");
    if settings.audience.is_none() {
        log::warn!("AUTH_JWT_AUDIENCE is unset: tokens for other services are accepted, too");
    }
    Ok(Some(Arc::new(check)))
}
