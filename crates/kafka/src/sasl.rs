//! SASL mechanisms PLAIN, SCRAM and OAUTHBEARER: their messages, and the broker's proof that it
//! knows the password. Does no I/O.

#[cfg(feature = "scram")]
use std::num::NonZeroU32;
#[cfg(feature = "scram")]
use std::ops::RangeInclusive;

#[cfg(feature = "scram")]
use base64::Engine;
#[cfg(feature = "scram")]
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
#[cfg(feature = "scram")]
use ring::{digest, hmac, pbkdf2};

use super::security::{Sasl, SaslMechanism};

/// The iteration counts that a broker may request: at least RFC 7677's minimum, at most some tens
/// of milliseconds of hashing. Kafka itself allows 4096 to 16384.
#[cfg(feature = "scram")]
const ROUNDS: RangeInclusive<u32> = 4096..=100_000;

/// Random bytes in a nonce.
#[cfg(feature = "scram")]
const NONCE_BYTES: usize = 24;

/// A failed login: `E` when an exchange with the broker failed, or the reason not to trust the
/// broker.
#[derive(Debug)]
pub(super) enum Failure<E> {
    Asking(E),
    Distrust(String),
}

/// Logs in. `ask` sends the next message to the broker and returns its answer, or an error when the
/// broker refuses.
///
/// # Errors
/// An error of `ask`, or a broker that does not know the password.
pub(super) fn log_in<E>(
    sasl: &Sasl,
    mut ask: impl FnMut(Vec<u8>) -> Result<Bytes, E>,
) -> Result<(), Failure<E>> {
    let (mechanism, login) = match sasl {
        #[cfg(feature = "tls")]
        Sasl::Token(token) => return bearer(&token.get(), ask),
        Sasl::Password {
            mechanism,
            username,
            password,
        } => (mechanism, Login { username, password }),
    };
    match mechanism {
        SaslMechanism::Plain => {
            let message = format!("\0{}\0{}", login.username, login.password);
            ask(message.into_bytes()).map_err(Failure::Asking)?;
            Ok(())
        }
        #[cfg(feature = "scram")]
        SaslMechanism::ScramSha256 => scram(login, &SHA_256, &nonce()?, ask),
        #[cfg(feature = "scram")]
        SaslMechanism::ScramSha512 => scram(login, &SHA_512, &nonce()?, ask),
        #[cfg(not(feature = "scram"))]
        SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512 => Err(Failure::Distrust(
            "this build of tbd-kafka has no SCRAM; turn on the feature scram".to_owned(),
        )),
    }
}

/// OAUTHBEARER (RFC 7628). A broker that refuses the token says so in a message, and the refusal
/// itself follows an empty one (section 3.2.3).
#[cfg(feature = "tls")]
fn bearer<E>(
    token: &str,
    mut ask: impl FnMut(Vec<u8>) -> Result<Bytes, E>,
) -> Result<(), Failure<E>> {
    let message = format!("n,,\x01auth=Bearer {token}\x01\x01");
    let answer = ask(message.into_bytes()).map_err(Failure::Asking)?;
    if answer.is_empty() {
        return Ok(());
    }
    ask(vec![1]).map_err(Failure::Asking)?;
    Err(Failure::Distrust(
        "it refused the token and went on".to_owned(),
    ))
}

/// A name and its password.
#[derive(Clone, Copy)]
struct Login<'a> {
    username: &'a str,
    password: &'a str,
}

/// The hash function of a SCRAM mechanism.
#[cfg(feature = "scram")]
struct Hash {
    hmac: hmac::Algorithm,
    pbkdf2: pbkdf2::Algorithm,
}

#[cfg(feature = "scram")]
static SHA_256: Hash = Hash {
    hmac: hmac::HMAC_SHA256,
    pbkdf2: pbkdf2::PBKDF2_HMAC_SHA256,
};

#[cfg(feature = "scram")]
static SHA_512: Hash = Hash {
    hmac: hmac::HMAC_SHA512,
    pbkdf2: pbkdf2::PBKDF2_HMAC_SHA512,
};

#[cfg(feature = "scram")]
impl Hash {
    fn key(&self, key: impl AsRef<[u8]>) -> hmac::Key {
        hmac::Key::new(self.hmac, key.as_ref())
    }

    fn digest(&self, message: impl AsRef<[u8]>) -> digest::Digest {
        digest::digest(self.hmac.digest_algorithm(), message.as_ref())
    }
}

#[cfg(feature = "scram")]
fn nonce<E>() -> Result<String, Failure<E>> {
    let mut bytes = [0; NONCE_BYTES];
    // With a predictable nonce an attacker could prepare an answer, so the login fails instead.
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::Distrust(format!("no random numbers for a nonce: {error}")))?;
    Ok(BASE64.encode(bytes))
}

/// SCRAM without channel binding (RFC 5802). Like Kafka's own client, it uses the UTF-8 bytes of
/// names and passwords, without SASLprep.
#[cfg(feature = "scram")]
fn scram<E>(
    login: Login<'_>,
    hash: &Hash,
    nonce: &str,
    mut ask: impl FnMut(Vec<u8>) -> Result<Bytes, E>,
) -> Result<(), Failure<E>> {
    let distrust = |reason: &str| Failure::Distrust(format!("invalid SCRAM message: {reason}"));
    let username = login.username.replace('=', "=3D").replace(',', "=2C");
    let first = format!("n={username},r={nonce}");
    let answer = ask(format!("n,,{first}").into_bytes()).map_err(Failure::Asking)?;
    let answer = std::str::from_utf8(&answer).map_err(|_| distrust("no text"))?;

    let field = |name| field(answer, name).ok_or_else(|| distrust("a field is missing"));
    let (whole_nonce, salt, rounds) = (field("r=")?, field("s=")?, field("i=")?);
    if whole_nonce.len() <= nonce.len() || !whole_nonce.starts_with(nonce) {
        return Err(distrust("the nonce does not extend the client's"));
    }
    let salt = BASE64
        .decode(salt)
        .map_err(|_| distrust("the salt is not base64"))?;
    let rounds = rounds
        .parse()
        .ok()
        .filter(|rounds| ROUNDS.contains(rounds))
        .and_then(NonZeroU32::new)
        .ok_or_else(|| distrust("too few or too many rounds"))?;

    let mut salted = vec![0; hash.hmac.digest_algorithm().output_len()];
    pbkdf2::derive(
        hash.pbkdf2,
        rounds,
        &salt,
        login.password.as_bytes(),
        &mut salted,
    );
    let salted = hash.key(salted);
    // "biws" is "n,,": no channel binding, as announced.
    let last = format!("c=biws,r={whole_nonce}");
    let signed = format!("{first},{answer},{last}");
    let client_key = hmac::sign(&salted, b"Client Key");
    let stored_key = hash.key(hash.digest(client_key));
    let signature = hmac::sign(&stored_key, signed.as_bytes());
    let proof: Vec<u8> = client_key
        .as_ref()
        .iter()
        .zip(signature.as_ref())
        .map(|(key, signature)| key ^ signature)
        .collect();
    let last = format!("{last},p={}", BASE64.encode(proof));
    let answer = ask(last.into_bytes()).map_err(Failure::Asking)?;

    let server_key = hash.key(hmac::sign(&salted, b"Server Key"));
    let is_proven = std::str::from_utf8(&answer)
        .ok()
        .and_then(|answer| self::field(answer, "v="))
        .and_then(|proof| BASE64.decode(proof).ok())
        // Compares in constant time.
        .is_some_and(|proof| hmac::verify(&server_key, signed.as_bytes(), &proof).is_ok());
    match is_proven {
        true => Ok(()),
        false => Err(Failure::Distrust(
            "it could not prove that it knows the password: it may be an impostor".to_owned(),
        )),
    }
}

/// Logs in by SCRAM-SHA-256 as `user` with the password `pencil` and the nonce `n`, at a broker that
/// gives these two answers. For fuzzing.
///
/// # Errors
/// Why the client does not believe them.
#[cfg(feature = "scram")]
pub fn try_scram(answers: [Bytes; 2]) -> Result<(), String> {
    let login = Login {
        username: "user",
        password: "pencil",
    };
    let mut answers = answers.into_iter();
    let outcome = scram(login, &SHA_256, "n", |_| answers.next().ok_or(()));
    outcome.map_err(|failure| format!("{failure:?}"))
}

/// The value of the field that begins with `name`.
#[cfg(feature = "scram")]
fn field<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    message
        .split(',')
        .find_map(|field| field.strip_prefix(name))
}

#[cfg(all(test, feature = "scram", feature = "tls"))]
mod tests {
    use super::*;

    const LOGIN: Login<'_> = Login {
        username: "user",
        password: "pencil",
    };

    fn sasl(mechanism: SaslMechanism, login: Login<'_>) -> Sasl {
        Sasl::Password {
            mechanism,
            username: login.username.to_owned(),
            password: login.password.to_owned(),
        }
    }

    type Outcome = Result<(), Failure<()>>;

    /// The example of RFC 7677 section 3, with these two server messages.
    fn converse(answers: [&str; 2]) -> (Vec<String>, Outcome) {
        let mut said = Vec::new();
        let outcome = scram(LOGIN, &SHA_256, "rOprNGfwEbeRWgbNEkqO", |message| {
            said.push(String::from_utf8(message).unwrap());
            Ok(Bytes::from(answers[said.len() - 1].to_owned()))
        });
        (said, outcome)
    }

    const FIRST: &str = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const LAST: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    #[test]
    fn the_conversation_is_the_one_of_rfc_7677() {
        let (said, outcome) = converse([FIRST, LAST]);
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(
            said,
            [
                "n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
                "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                 p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
            ]
        );
    }

    #[test]
    fn a_server_that_does_not_know_the_password_is_not_trusted() {
        for last in [
            "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G5=",
            "v=",
            "v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
            "e=other-error",
            "",
        ] {
            let (_, outcome) = converse([FIRST, last]);
            let Err(Failure::Distrust(reason)) = outcome else {
                panic!("{last}");
            };
            assert!(reason.contains("prove") && !reason.contains("pencil"));
        }
    }

    #[test]
    fn an_invalid_first_message_gets_no_proof() {
        let nonce = "r=rOprNGfwEbeRWgbNEkqO";
        for first in [
            // Another nonce, and the client's nonce with nothing added.
            "r=somebodyelse,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096".to_owned(),
            format!("{nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
            // With 1 round the password could be guessed; 2 billion would block the client.
            format!("{nonce}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=1"),
            format!("{nonce}x,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=2000000000"),
            format!("{nonce}x,s=*,i=4096"),
            format!("{nonce}x,i=4096"),
            String::new(),
        ] {
            let (said, outcome) = converse([&first, LAST]);
            assert!(matches!(outcome, Err(Failure::Distrust(_))), "{first}");
            assert_eq!(said.len(), 1, "{first}");
        }
    }

    #[test]
    fn plain_is_the_message_of_rfc_4616() {
        let mut said = Vec::new();
        let outcome: Outcome = log_in(&sasl(SaslMechanism::Plain, LOGIN), |message| {
            said = message;
            Ok(Bytes::new())
        });
        assert!(outcome.is_ok());
        assert_eq!(said, b"\0user\0pencil");
    }

    #[test]
    fn a_name_with_commas_does_not_break_the_message() {
        let username = "a=b,c";
        let sasl = sasl(SaslMechanism::ScramSha512, Login { username, ..LOGIN });
        let mut said = String::new();
        let outcome = log_in(&sasl, |message| {
            said = String::from_utf8(message).unwrap();
            Err(())
        });
        assert!(matches!(outcome, Err(Failure::Asking(()))));
        assert!(said.starts_with("n,,n=a=3Db=2Cc,r="), "{said}");
    }

    #[test]
    fn a_token_is_the_message_of_rfc_7628_and_its_refusal_is_asked_for() {
        let mut said = Vec::new();
        let outcome = bearer("a.b.c", |message| {
            said.push(message);
            match said.len() {
                1 => Ok(Bytes::from_static(b"{\"status\":\"invalid_token\"}")),
                _ => Err(()),
            }
        });
        assert!(matches!(outcome, Err(Failure::Asking(()))));
        assert_eq!(said, [&b"n,,\x01auth=Bearer a.b.c\x01\x01"[..], b"\x01"]);
        let accepted: Outcome = bearer("a.b.c", |_| Ok(Bytes::new()));
        assert!(accepted.is_ok());
    }
}
