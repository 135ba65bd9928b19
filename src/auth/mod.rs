//! Bearer tokens (RFC 6750): lets requests pass that carry a JWT which one of our
//! keys signed, for us, and for now.
//!
//! It says who is let in, not what one may do: every good token may do everything. Only
//! Idempotency-Keys belong to the caller that `iss` and `sub` name.
//!
//! # What is checked, and against what
//!
//! | Check | Against |
//! |---|---|
//! | the key decides the algorithm, the token only names one of its own; `none` is unknown (RFC 8725, 3.1) | algorithm confusion: an RSA key used as an HMAC secret |
//! | a set of keys has no secrets, a secret has no set | the same |
//! | `kid` picks the key; `jku`, `jwk`, `x5u` of a token are never looked at | keys that a token brings along |
//! | `crit` is refused, as we understand no extension (RFC 7515, 4.1.11) | tokens that mean more than we see |
//! | `exp` must be there; `exp` and `nbf` with 30 s of leeway | old and early tokens |
//! | `iss` and `aud`, if configured: must be there and fit | tokens made by or for somebody else |
//! | `iss` and `sub` are strings, if they are there (RFC 7519, 4.1) | callers that cannot be told apart |
//! | at most 8 KiB, looked at before anything is decoded | work for the asking |
//!
//! jsonwebtoken reads tokens and claims; *ring* does the cryptography (`crypto`).
//! Nothing here waits or does I/O; a check costs some 50 us (RSA, ES256) or less.
//! No token is ever logged.

mod crypto;
mod keys;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{decode, decode_header};
use serde::Deserialize;
use serde_json::Value;

use tbd_http::{Identity, Problem, Request};

use keys::{Key, keys};
pub use keys::{KeyError, KeySource, SECRET_BYTES_MIN};

/// Longest token that is looked at. Those of common identity providers have 1 to 4 KiB.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// By how much the clocks of issuer and api may differ, in seconds.
const LEEWAY_SECONDS: u64 = 30;

/// What tokens have to be.
pub struct TokenCheck {
    keys: Vec<Key>,
}

/// Why a request is not let in. Its text is for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no bearer token.
    #[error("Send a token: Authorization: Bearer <token>.")]
    Missing,
    /// There are two headers of the name, or the token is no token at all.
    #[error("The token is not a JWT of at most 8 KiB in a single Authorization header.")]
    Malformed,
    /// No key of ours made it, or not with the algorithm it says.
    #[error("The token is not signed by a key that is known here.")]
    Unverified,
    /// `exp` has passed.
    #[error("The token has expired.")]
    Expired,
    /// `nbf` is still to come.
    #[error("The token is not valid yet.")]
    Early,
    /// It is by another issuer, for another audience, lacks a claim, or has one of another type.
    #[error("The token's claims (exp, nbf, iss, sub, aud) are not those asked for here.")]
    Claims,
}

impl TokenCheck {
    /// A check for tokens signed by a key of `source`. With `issuer` or `audience`, a token
    /// has to have that `iss` or `aud`; without, any or none will do.
    ///
    /// # Errors
    /// [`KeyError`]: there is no usable key.
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

    /// How many keys there are.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Lets `request` pass and says who sent it, or says why not.
    ///
    /// # Errors
    /// 401 with `WWW-Authenticate: Bearer` (RFC 6750, section 3).
    pub fn admit(&self, request: &Request) -> Result<Identity, Problem> {
        self.check(request.headers("Authorization"))
            .map_err(Refusal::into_problem)
    }

    /// Checks the values of all `Authorization` headers of a request.
    fn check<'a>(&self, mut values: impl Iterator<Item = &'a str>) -> Result<Identity, Refusal> {
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

    /// The key that a token's `kid` names. A token without one, and a key without one, leave
    /// no doubt when there is one key only.
    fn key(&self, id: Option<&str>) -> Option<&Key> {
        match (self.keys.as_slice(), id) {
            ([only], None) => Some(only),
            ([only], _) if only.id.is_none() => Some(only),
            (_, None) => None,
            (keys, id) => keys.iter().find(|key| key.id.as_deref() == id),
        }
    }
}

/// The claims that say whose token it is.
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
        // A request without a token learns the scheme and no error (RFC 6750, section 3.1).
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
