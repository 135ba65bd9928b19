//! Authentication by bearer tokens (RFC 6750): admits requests with a JWT that one of our keys
//! signed, and that is meant for us and valid now.
//!
//! There is no authorization: every valid token may do everything. Only Idempotency-Keys belong to
//! the caller that `iss` and `sub` name.
//!
//! # Checks and threats
//!
//! | Check | Threat |
//! |---|---|
//! | the key determines the algorithms; a token must use one of them, and `none` is unknown (RFC 8725, 3.1) | algorithm confusion: an RSA key used as an HMAC secret |
//! | a set of keys contains no secrets, and a secret excludes a set | the same |
//! | `kid` selects the key; `jku`, `jwk` and `x5u` of a token are ignored | keys that a token brings along |
//! | tokens with `crit` are refused, since no extension is supported (RFC 7515, 4.1.11) | tokens with extensions that we would ignore |
//! | `exp` is required; `exp` and `nbf` have 30 s of leeway | old and early tokens |
//! | `iss` and `aud`, if configured, are required and must match | tokens from or for somebody else |
//! | `iss` and `sub`, if present, are strings (RFC 7519, 4.1) | callers that cannot be distinguished |
//! | at most 8 KiB, checked before any decoding | expensive requests |
//!
//! jsonwebtoken parses tokens and claims; *ring* does the cryptography (`crypto`). Nothing here
//! blocks or does I/O. A check takes some 50 us (RSA, ES256) or less. Tokens are never logged.

mod crypto;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{decode, decode_header};
use serde::Deserialize;
use serde_json::Value;

use tbd_http::{Identity, Problem};

use keys::{Key, keys};
pub use keys::{KeyError, KeySource, SECRET_BYTES_MIN};

/// Maximum length of a token. Common identity providers issue 1 to 4 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Allowed difference between the clocks of issuer and api, in seconds.
const LEEWAY_SECONDS: u64 = 30;

/// The check of bearer tokens.
pub struct TokenCheck {
    keys: Vec<Key>,
}

/// Why a request is refused. The text is for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no bearer token.
    #[error("Send a token: Authorization: Bearer <token>.")]
    Missing,
    /// There are several `Authorization` headers, or the text is not a token.
    #[error("The token is not a JWT of at most 8 KiB in a single Authorization header.")]
    Malformed,
    /// None of our keys signed it, or not with the algorithm that it names.
    #[error("The token is not signed by a known key.")]
    Unverified,
    /// `exp` has passed.
    #[error("The token has expired.")]
    Expired,
    /// `nbf` is in the future.
    #[error("The token is not valid yet.")]
    Early,
    /// It is from another issuer or for another audience, or a claim is missing or has another type.
    #[error("The token's claims (exp, nbf, iss, sub, aud) are not those required here.")]
    Claims,
}

impl TokenCheck {
    /// A check for tokens signed by a key of `source`. With `issuer` or `audience`, a token must
    /// have that `iss` or `aud`; otherwise any value or none is accepted.
    ///
    /// # Errors
    /// [`KeyError`] if there is no usable key.
    pub fn new(
        source: KeySource<'_>,
        issuer: Option<&str>,
        audience: Option<&str>,
    ) -> Result<Self, KeyError> {
        crypto::install();
        let mut keys = keys(source)?;
        for key in &mut keys {
            let validation = &mut key.validation;
            let set = |value: Option<&str>| value.map(|value| HashSet::from([value.to_owned()]));
            validation.leeway = LEEWAY_SECONDS;
            validation.validate_nbf = true;
            validation.iss = set(issuer);
            validation.aud = set(audience);
            validation.validate_aud = audience.is_some();
            let required = [
                ("exp", true),
                ("iss", issuer.is_some()),
                ("aud", audience.is_some()),
            ];
            validation.required_spec_claims = required
                .into_iter()
                .filter(|(_, required)| *required)
                .map(|(claim, _)| claim.to_owned())
                .collect();
        }
        Ok(Self { keys })
    }

    /// The number of keys.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Like [`check`](Self::check).
    ///
    /// # Errors
    /// 401 with `WWW-Authenticate: Bearer` (RFC 6750, section 3).
    pub fn admit<'a>(&self, values: impl Iterator<Item = &'a str>) -> Result<Identity, Problem> {
        self.check(values).map_err(Refusal::into_problem)
    }

    /// Checks the values of all `Authorization` headers of a request, and returns its sender.
    ///
    /// # Errors
    /// Why the request is refused.
    pub fn check<'a>(
        &self,
        mut values: impl Iterator<Item = &'a str>,
    ) -> Result<Identity, Refusal> {
        let token = bearer(values.next().unwrap_or_default()).ok_or(Refusal::Missing)?;
        if values.next().is_some() || token.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let header = decode_header(token).map_err(|error| refusal(error.kind()))?;
        if header.crit.is_some() {
            return Err(Refusal::Unverified);
        }
        let key = self.key(header.kid.as_deref()).ok_or(Refusal::Unverified)?;
        let token = decode::<Claims>(token, &key.key, &key.validation)
            .map_err(|error| refusal(error.kind()))?;
        Ok(Identity {
            issuer: text(token.claims.iss)?,
            subject: text(token.claims.sub)?,
        })
    }

    /// The key that a token's `kid` names. With a single key, the token or the key may lack a
    /// `kid`.
    fn key(&self, id: Option<&str>) -> Option<&Key> {
        match (self.keys.as_slice(), id) {
            ([only], None) => Some(only),
            ([only], _) if only.id.is_none() => Some(only),
            (_, None) => None,
            (keys, id) => keys.iter().find(|key| key.id.as_deref() == id),
        }
    }
}

/// The claims that identify the caller.
#[derive(Deserialize)]
struct Claims {
    iss: Option<Value>,
    sub: Option<Value>,
}

fn text(claim: Option<Value>) -> Result<Option<String>, Refusal> {
    match claim {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::Claims),
    }
}

/// The token of an `Authorization` value; the scheme's case does not matter (RFC 9110, 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    let token = token.trim_start();
    (scheme.eq_ignore_ascii_case("Bearer") && !token.is_empty()).then_some(token)
}

fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::Early,
        ErrorKind::InvalidIssuer
        | ErrorKind::InvalidAudience
        | ErrorKind::MissingRequiredClaim(_)
        | ErrorKind::InvalidClaimFormat(_) => Refusal::Claims,
        ErrorKind::InvalidSignature
        | ErrorKind::InvalidAlgorithm
        | ErrorKind::UnsupportedAlgorithm => Refusal::Unverified,
        _ => Refusal::Malformed,
    }
}

impl Refusal {
    fn into_problem(self) -> Problem {
        // A request without a token gets the scheme, but no error code (RFC 6750, section 3.1).
        let challenge = match self {
            Refusal::Missing => "Bearer realm=\"tbd\"".to_owned(),
            _ => format!(
                "Bearer realm=\"tbd\", error=\"invalid_token\", error_description=\"{self}\""
            ),
        };
        Problem::new(401, "unauthorized", "Unauthorized", self.to_string())
            .header("WWW-Authenticate", challenge)
    }
}
