//! Issuer of valid and invalid bearer tokens, with keys of its own.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents,
};
use ring::{hmac, rand};
use serde_json::{Value, json};

/// A key for these tests only. It is a file because ring reads RSA keys but generates none.
const RSA: &[u8] = include_bytes!("rsa-for-tests.pk8");

/// A secret long enough for HS256.
pub const SECRET: &str = "a secret of the tests, 32 bytes or more";

/// Holds an RSA key named `rsa` and an EC key named `ec`.
pub struct Issuer {
    rsa: RsaKeyPair,
    ec: EcdsaKeyPair,
    random: SystemRandom,
}

impl Issuer {
    /// An issuer with a new EC key; all issuers share the RSA key.
    pub fn new() -> Issuer {
        let random = rand::SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let ec = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("an EC key");
        Issuer {
            rsa: RsaKeyPair::from_pkcs8(RSA).expect("the tests' RSA key"),
            ec: EcdsaKeyPair::from_pkcs8(algorithm, ec.as_ref(), &random).expect("the key back"),
            random,
        }
    }

    /// The RSA key's public half, as a JSON Web Key.
    pub fn rsa_jwk(&self) -> Value {
        let public = RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public());
        json!({ "kty": "RSA", "kid": "rsa", "use": "sig", "alg": "RS256",
                "n": encode(&public.n), "e": encode(&public.e) })
    }

    /// The EC key's public half, as a JSON Web Key.
    pub fn ec_jwk(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        json!({ "kty": "EC", "kid": "ec", "crv": "P-256",
                "x": encode(&point[1..33]), "y": encode(&point[33..]) })
    }

    /// Both public halves, as a JSON Web Key Set.
    pub fn jwks(&self) -> String {
        json!({ "keys": [self.rsa_jwk(), self.ec_jwk()] }).to_string()
    }

    /// The RSA key's public half as the bytes that an attacker would use as a secret (PKCS#1).
    pub fn rsa_public_der(&self) -> Vec<u8> {
        self.rsa.public_key().as_ref().to_vec()
    }

    /// A token signed with the RSA key.
    pub fn rs256(&self, claims: &Value) -> String {
        self.with_header(
            &json!({ "alg": "RS256", "typ": "JWT", "kid": "rsa" }),
            claims,
        )
    }

    /// A token with this header, always signed with the RSA key.
    pub fn with_header(&self, header: &Value, claims: &Value) -> String {
        let message = message(header, claims);
        let mut signature = vec![0; self.rsa.public().modulus_len()];
        self.rsa
            .sign(
                &RSA_PKCS1_SHA256,
                &self.random,
                message.as_bytes(),
                &mut signature,
            )
            .expect("a signature");
        format!("{message}.{}", encode(&signature))
    }

    /// A token signed with the EC key.
    pub fn es256(&self, claims: &Value) -> String {
        let message = message(&json!({ "alg": "ES256", "kid": "ec" }), claims);
        let signature = self
            .ec
            .sign(&self.random, message.as_bytes())
            .expect("a signature");
        format!("{message}.{}", encode(signature.as_ref()))
    }
}

/// A token with this header and a SHA-256 HMAC under `secret`.
pub fn hs256(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let message = message(header, claims);
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    format!(
        "{message}.{}",
        encode(hmac::sign(&key, message.as_bytes()).as_ref())
    )
}

/// A token's first two parts.
pub fn message(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| encode(value.to_string().as_bytes());
    format!("{}.{}", part(header), part(claims))
}

/// Seconds since 1970, `offset` from now.
pub fn now(offset: i64) -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("the clock is right")
        .as_secs();
    i64::try_from(now).expect("this century") + offset
}

/// Claims that are good for ten minutes.
pub fn claims() -> Value {
    json!({ "iss": "https://issuer.example", "aud": "tbd", "sub": "tester", "exp": now(600) })
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
