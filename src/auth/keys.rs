//! Keys for verifying tokens: one secret, or a set of public keys (RFC 7517).

use std::collections::HashSet;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};

/// Minimum number of bytes of a secret: the size of the hash (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;

/// The source of the keys.
#[derive(Clone, Copy)]
pub enum KeySource<'a> {
    /// A secret shared with the issuer, for HS256 alone.
    Secret(&'a [u8]),
    /// A JSON Web Key Set's text, for RS256 to RS512, PS256 to PS512, ES256, ES384 and EdDSA.
    Jwks(&'a str),
}

/// Why there are no usable keys. Contains nothing of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The secret is too short to resist guessing.
    #[error("the secret has fewer than {SECRET_BYTES_MIN} bytes")]
    ShortSecret,
    /// The text is not a JSON Web Key Set.
    #[error("it is not a JSON Web Key Set (line {line}, column {column})")]
    NotASet {
        /// Where reading ended.
        line: usize,
        /// Where reading ended.
        column: usize,
    },
    /// A key of the set is symmetric. A file of public keys must not contain secrets.
    #[error("the set holds a secret (kty oct); only public keys may be in it")]
    SecretInSet,
    /// No key of the set is for a signature that we can verify.
    #[error("the set has no key for a supported signature algorithm")]
    NoKey,
    /// Among several keys, each needs a unique `kid`.
    #[error("the set has several keys; each needs a kid of its own")]
    Unnamed,
}

/// A key, and the signatures that it may verify.
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) key: DecodingKey,
    pub(super) validation: Validation,
}

/// The usable keys; at least one.
pub(super) fn keys(source: KeySource<'_>) -> Result<Vec<Key>, KeyError> {
    match source {
        KeySource::Secret(secret) if secret.len() < SECRET_BYTES_MIN => Err(KeyError::ShortSecret),
        KeySource::Secret(secret) => Ok(vec![Key {
            id: None,
            key: DecodingKey::from_secret(secret),
            validation: Validation::new(Algorithm::HS256),
        }]),
        KeySource::Jwks(text) => of_set(text),
    }
}

fn of_set(text: &str) -> Result<Vec<Key>, KeyError> {
    let set: JwkSet = serde_json::from_str(text).map_err(|error| KeyError::NotASet {
        line: error.line(),
        column: error.column(),
    })?;
    let is_secret = |jwk: &Jwk| matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    if set.keys.iter().any(is_secret) {
        return Err(KeyError::SecretInSet);
    }
    // Ignores keys of other kinds and for other uses (RFC 7517, section 5).
    let keys: Vec<Key> = set.keys.iter().filter_map(of_jwk).collect();
    let names: HashSet<&str> = keys.iter().filter_map(|key| key.id.as_deref()).collect();
    match keys.len() {
        0 => Err(KeyError::NoKey),
        1 => Ok(keys),
        count if names.len() == count => Ok(keys),
        _ => Err(KeyError::Unnamed),
    }
}

fn of_jwk(jwk: &Jwk) -> Option<Key> {
    let mut algorithms = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => vec![
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            vec![Algorithm::EdDSA]
        }
        _ => return None,
    };
    let is_for_signatures = matches!(
        jwk.common.public_key_use,
        None | Some(PublicKeyUse::Signature)
    );
    if let Some(named) = jwk.common.key_algorithm {
        let named = Algorithm::try_from(named).ok()?;
        algorithms.retain(|algorithm| *algorithm == named);
    }
    if !is_for_signatures || algorithms.is_empty() {
        return None;
    }
    Some(Key {
        id: jwk.common.key_id.clone(),
        key: DecodingKey::from_jwk(jwk).ok()?,
        validation: Validation {
            algorithms,
            ..Validation::default()
        },
    })
}
