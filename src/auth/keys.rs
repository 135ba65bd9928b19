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
#[error("{0}")]
pub struct KeyError(String);

/// A key, and the signatures that it may verify.
pub(super) struct Key {
    pub(super) id: Option<String>,
    pub(super) key: DecodingKey,
    pub(super) validation: Validation,
}

/// The usable keys; at least one.
pub(super) fn keys(source: KeySource<'_>) -> Result<Vec<Key>, KeyError> {
    match source {
        // A shorter one can be guessed.
        KeySource::Secret(secret) if secret.len() < SECRET_BYTES_MIN => Err(KeyError(format!(
            "the secret has fewer than {SECRET_BYTES_MIN} bytes"
        ))),
        KeySource::Secret(secret) => Ok(vec![Key {
            id: None,
            key: DecodingKey::from_secret(secret),
            validation: Validation::new(Algorithm::HS256),
        }]),
        KeySource::Jwks(text) => of_set(text),
    }
}

fn of_set(text: &str) -> Result<Vec<Key>, KeyError> {
    let refuse = |why: &str| Err(KeyError(why.to_owned()));
    let set: JwkSet = serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        KeyError(format!(
            "it is not a JSON Web Key Set (line {line}, column {column})"
        ))
    })?;
    let is_secret = |jwk: &Jwk| matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_));
    if set.keys.iter().any(is_secret) {
        return refuse("the set holds a secret (kty oct); only public keys may be in it");
    }
    // Ignores keys of other kinds and for other uses (RFC 7517, section 5).
    let keys: Vec<Key> = set.keys.iter().filter_map(of_jwk).collect();
    let names: HashSet<&str> = keys.iter().filter_map(|key| key.id.as_deref()).collect();
    match keys.len() {
        0 => refuse("the set has no key for a supported signature algorithm"),
        1 => Ok(keys),
        count if names.len() == count => Ok(keys),
        _ => refuse("the set has several keys; each needs a kid of its own"),
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
