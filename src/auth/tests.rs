use serde_json::{Value, json};

use super::*;

use tbd_testkit::token::{Issuer, SECRET, claims, hs256, message, now};

/// A check with both keys of the issuer, its name, and our audience.
fn check_of(issuer: &Issuer) -> TokenCheck {
    let jwks = issuer.jwks();
    let strict = (Some("https://issuer.example"), Some("tbd"));
    TokenCheck::new(KeySource::Jwks(&jwks), strict.0, strict.1).unwrap()
}

fn check_of_secret() -> TokenCheck {
    let strict = (Some("https://issuer.example"), Some("tbd"));
    TokenCheck::new(KeySource::Secret(SECRET.as_bytes()), strict.0, strict.1).unwrap()
}

fn identify(check: &TokenCheck, token: &str) -> Result<Identity, Refusal> {
    check.check([format!("Bearer {token}").as_str()].into_iter())
}

fn ask(check: &TokenCheck, token: &str) -> Result<(), Refusal> {
    identify(check, token).map(|_| ())
}

/// The valid claims with one of them changed or removed.
fn claims_with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    let fields = claims.as_object_mut().unwrap();
    match value {
        Value::Null => fields.remove(name),
        value => fields.insert(name.to_owned(), value),
    };
    claims
}

fn hs(claims: &Value) -> String {
    hs256(&json!({ "alg": "HS256" }), claims, SECRET.as_bytes())
}

#[test]
fn a_token_of_each_key_passes() {
    let issuer = Issuer::new();
    let check = check_of(&issuer);
    assert_eq!(check.keys(), 2);
    assert_eq!(ask(&check, &issuer.rs256(&claims())), Ok(()));
    assert_eq!(ask(&check, &issuer.es256(&claims())), Ok(()));
    assert_eq!(ask(&check_of_secret(), &hs(&claims())), Ok(()));
}

#[test]
fn without_a_bearer_token_nobody_passes() {
    let check = check_of_secret();
    let good = hs(&claims());
    for value in ["", "Bearer", "Bearer ", "Basic dGJkOnRiZA==", &good] {
        assert_eq!(
            check.check([value].into_iter()),
            Err(Refusal::Missing),
            "{value}"
        );
    }
    assert_eq!(check.check([].into_iter()), Err(Refusal::Missing));
    let lower = format!("bearer   {good}");
    assert!(check.check([lower.as_str()].into_iter()).is_ok());
    let twice = [lower.as_str(), lower.as_str()];
    assert_eq!(check.check(twice.into_iter()), Err(Refusal::Malformed));
}

#[test]
fn a_token_without_a_signature_never_passes() {
    let issuer = Issuer::new();
    for check in [check_of(&issuer), check_of_secret()] {
        for alg in ["none", "None", "NONE", ""] {
            let unsigned = message(&json!({ "alg": alg, "kid": "rsa" }), &claims());
            for token in [format!("{unsigned}."), unsigned.clone()] {
                assert!(ask(&check, &token).is_err(), "{alg}");
            }
        }
        for alg in ["RS256", "HS256", "ES256"] {
            let unsigned = message(&json!({ "alg": alg, "kid": "rsa" }), &claims());
            assert!(ask(&check, &format!("{unsigned}.")).is_err(), "{alg}");
        }
    }
}

#[test]
fn a_public_key_is_no_secret() {
    let issuer = Issuer::new();
    let check = check_of(&issuer);
    let modulus = issuer.rsa_jwk()["n"].as_str().unwrap().to_owned();
    for alg in ["HS256", "RS256"] {
        for secret in [issuer.rsa_public_der(), modulus.clone().into_bytes()] {
            for kid in ["rsa", "ec"] {
                let forged = hs256(&json!({ "alg": alg, "kid": kid }), &claims(), &secret);
                assert_eq!(
                    ask(&check, &forged),
                    Err(Refusal::Unverified),
                    "{alg} {kid}"
                );
            }
        }
    }
    // And the other way round: a secret is not a public key.
    let signed = issuer.rs256(&claims());
    assert_eq!(ask(&check_of_secret(), &signed), Err(Refusal::Unverified));
}

#[test]
fn the_key_alone_says_which_algorithms_it_is_for() {
    let issuer = Issuer::new();
    let check = check_of(&issuer);
    // The key is for RS256. A token signed with it that names another algorithm or key fails.
    for (alg, kid) in [
        ("RS512", "rsa"),
        ("PS256", "rsa"),
        ("ES256", "rsa"),
        ("RS256", "ec"),
    ] {
        let token = issuer.with_header(&json!({ "alg": alg, "kid": kid }), &claims());
        assert_eq!(ask(&check, &token), Err(Refusal::Unverified), "{alg} {kid}");
    }
}

#[test]
fn the_token_cannot_choose_an_unknown_key() {
    let issuer = Issuer::new();
    let stranger = Issuer::new();
    let check = check_of(&issuer);
    assert_eq!(
        ask(&check, &stranger.es256(&claims())),
        Err(Refusal::Unverified)
    );
    for header in [
        json!({ "alg": "RS256", "kid": "other" }),
        json!({ "alg": "RS256" }),
        json!({ "alg": "RS256", "kid": "../../etc/passwd" }),
        json!({ "alg": "RS256", "kid": "other", "jwk": issuer.rsa_jwk() }),
        json!({ "alg": "RS256", "kid": "rsa", "crit": ["exp"] }),
    ] {
        let token = issuer.with_header(&header, &claims());
        assert_eq!(ask(&check, &token), Err(Refusal::Unverified), "{header}");
    }
    // A single key needs no `kid`.
    let jwks = json!({ "keys": [issuer.rsa_jwk()] }).to_string();
    let check = TokenCheck::new(KeySource::Jwks(&jwks), None, None).unwrap();
    let unnamed = issuer.with_header(&json!({ "alg": "RS256" }), &claims());
    assert_eq!(ask(&check, &unnamed), Ok(()));
}

#[test]
fn time_is_kept_with_a_small_leeway() {
    let check = check_of_secret();
    for (name, value, verdict) in [
        ("exp", json!(now(-20)), Ok(())),
        ("exp", json!(now(-40)), Err(Refusal::Expired)),
        ("exp", json!(0), Err(Refusal::Expired)),
        ("exp", Value::Null, Err(Refusal::Claims)),
        ("exp", json!("tomorrow"), Err(Refusal::Claims)),
        ("nbf", json!(now(20)), Ok(())),
        ("nbf", json!(now(50)), Err(Refusal::Early)),
        ("nbf", json!("yesterday"), Err(Refusal::Claims)),
    ] {
        let token = hs(&claims_with(name, value.clone()));
        assert_eq!(ask(&check, &token), verdict, "{name} {value}");
    }
}

#[test]
fn a_token_must_be_by_our_issuer_and_for_us() {
    let check = check_of_secret();
    for (name, value, verdict) in [
        ("aud", json!(["other", "tbd"]), Ok(())),
        ("aud", json!("other"), Err(Refusal::Claims)),
        ("aud", json!(["other"]), Err(Refusal::Claims)),
        ("aud", json!([]), Err(Refusal::Claims)),
        ("aud", json!("tbd2"), Err(Refusal::Claims)),
        ("aud", Value::Null, Err(Refusal::Claims)),
        (
            "iss",
            json!("https://issuer.example/"),
            Err(Refusal::Claims),
        ),
        ("iss", json!(7), Err(Refusal::Claims)),
        ("iss", Value::Null, Err(Refusal::Claims)),
    ] {
        let token = hs(&claims_with(name, value.clone()));
        assert_eq!(ask(&check, &token), verdict, "{name} {value}");
    }
    let open = TokenCheck::new(KeySource::Secret(SECRET.as_bytes()), None, None).unwrap();
    for name in ["aud", "iss"] {
        assert_eq!(ask(&open, &hs(&claims_with(name, json!("x")))), Ok(()));
        assert_eq!(ask(&open, &hs(&claims_with(name, Value::Null))), Ok(()));
    }
}

#[test]
fn a_token_names_its_caller_by_issuer_and_subject() {
    let open = TokenCheck::new(KeySource::Secret(SECRET.as_bytes()), None, None).unwrap();
    for name in ["iss", "sub"] {
        for (value, named) in [(json!("x"), Some("x")), (Value::Null, None)] {
            let identity = identify(&open, &hs(&claims_with(name, value))).unwrap();
            let claim = match name {
                "iss" => identity.issuer,
                _ => identity.subject,
            };
            assert_eq!(claim.as_deref(), named, "{name}");
        }
        for value in [json!(7), json!(["x"]), json!({}), json!(true)] {
            let token = hs(&claims_with(name, value.clone()));
            assert!(ask(&open, &token).is_err(), "{name}: {value}");
        }
    }
}

#[test]
fn what_was_changed_after_signing_does_not_pass() {
    let check = check_of_secret();
    let good = hs(&claims());
    let (head, signature) = good.rsplit_once('.').unwrap();
    let other = message(
        &json!({ "alg": "HS256" }),
        &claims_with("sub", json!("root")),
    );
    assert_eq!(
        ask(&check, &format!("{other}.{signature}")),
        Err(Refusal::Unverified)
    );
    assert!(ask(&check, &format!("{head}.{}", &signature[1..])).is_err());
    for garbage in [
        "a",
        "a.b",
        "a.b.c",
        "..",
        "a.b.c.d",
        "\u{1F512}.\u{1F512}.\u{1F512}",
        "%%%.%%%.%%%",
    ] {
        assert!(ask(&check, garbage).is_err(), "{garbage}");
    }
}

#[test]
fn an_oversized_token_is_refused_however_good_it_is() {
    let check = check_of_secret();
    let padded = |length: usize| hs(&claims_with("pad", json!("x".repeat(length))));
    assert_eq!(ask(&check, &padded(5_000)), Ok(()));
    let long = padded(6_200);
    assert!(long.len() > TOKEN_BYTES_MAX);
    assert_eq!(ask(&check, &long), Err(Refusal::Malformed));
}

#[test]
fn a_set_without_a_usable_key_is_refused() {
    let issuer = Issuer::new();
    let of = |jwks: &str| {
        TokenCheck::new(KeySource::Jwks(jwks), None, None)
            .err()
            .map(|e| e.to_string())
    };
    let set = |keys: Value| json!({ "keys": keys }).to_string();
    let with = |mut jwk: Value, name: &str, value: Value| {
        jwk[name] = value;
        jwk
    };
    let said = |jwks: &str, what: &str| assert!(of(jwks).unwrap().contains(what), "{jwks}");
    said("not json", "not a JSON Web Key Set");
    said(&set(json!([])), "no key");
    said(
        &set(json!([with(issuer.rsa_jwk(), "use", json!("enc"))])),
        "no key",
    );
    said(
        &set(json!([with(issuer.rsa_jwk(), "alg", json!("HS256"))])),
        "no key",
    );
    said(
        &set(json!([{ "kty": "oct", "k": "c2VjcmV0", "kid": "s" }, issuer.rsa_jwk()])),
        "secret",
    );
    said(
        &set(json!([
            issuer.rsa_jwk(),
            with(issuer.ec_jwk(), "kid", json!("rsa"))
        ])),
        "kid",
    );
    // Keys for other uses are ignored.
    let foreign = json!({ "kty": "XYZ", "kid": "new" });
    assert_eq!(
        of(&set(json!([foreign, issuer.rsa_jwk(), issuer.ec_jwk()]))),
        None
    );
    let short = TokenCheck::new(KeySource::Secret(b"short"), None, None);
    assert!(short.is_err());
}
