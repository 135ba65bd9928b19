//! Cryptography provider for jsonwebtoken, based on *ring*.
//!
//! jsonwebtoken has two back ends of its own. One is a C library that takes minutes to compile. The
//! other is in pure Rust, but its RSA has an open advisory (RUSTSEC-2023-0071), and it brings 40
//! crates. A provider can replace them; this one only verifies.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::error::Unspecified;
use ring::hmac;
use ring::signature::{
    self as asymmetric, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
    VerificationAlgorithm,
};

static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    // These serve thumbprints and the derivation of public keys. We use neither.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes jsonwebtoken use *ring*, in the whole process.
pub(super) fn install() {
    // Fails, harmlessly, if it is installed already.
    let _ = RING.install_default();
}

enum Scheme {
    Hmac(hmac::Algorithm),
    Rsa(&'static RsaParameters),
    Curve(&'static dyn VerificationAlgorithm),
}

struct RingVerifier {
    algorithm: Algorithm,
    scheme: Scheme,
    key: DecodingKey,
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>, Error> {
    if algorithm.family() != key.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let scheme = match algorithm {
        Algorithm::HS256 => Scheme::Hmac(hmac::HMAC_SHA256),
        Algorithm::RS256 => Scheme::Rsa(&asymmetric::RSA_PKCS1_2048_8192_SHA256),
        Algorithm::RS384 => Scheme::Rsa(&asymmetric::RSA_PKCS1_2048_8192_SHA384),
        Algorithm::RS512 => Scheme::Rsa(&asymmetric::RSA_PKCS1_2048_8192_SHA512),
        Algorithm::PS256 => Scheme::Rsa(&asymmetric::RSA_PSS_2048_8192_SHA256),
        Algorithm::PS384 => Scheme::Rsa(&asymmetric::RSA_PSS_2048_8192_SHA384),
        Algorithm::PS512 => Scheme::Rsa(&asymmetric::RSA_PSS_2048_8192_SHA512),
        Algorithm::ES256 => Scheme::Curve(&asymmetric::ECDSA_P256_SHA256_FIXED),
        Algorithm::ES384 => Scheme::Curve(&asymmetric::ECDSA_P384_SHA384_FIXED),
        Algorithm::EdDSA => Scheme::Curve(&asymmetric::ED25519),
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(RingVerifier {
        algorithm: *algorithm,
        scheme,
        key: key.clone(),
    }))
}

impl RingVerifier {
    fn check(&self, message: &[u8], signature: &[u8]) -> Result<(), Unspecified> {
        match (&self.scheme, self.key.kind()) {
            (Scheme::Hmac(hash), DecodingKeyKind::SecretOrDer(secret)) => {
                hmac::verify(&hmac::Key::new(*hash, secret), message, signature)
            }
            (Scheme::Rsa(parameters), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Scheme::Curve(curve), DecodingKeyKind::SecretOrDer(key)) => {
                UnparsedPublicKey::new(*curve, key).verify(message, signature)
            }
            _ => Err(Unspecified),
        }
    }
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        self.check(message, signature)
            .map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
