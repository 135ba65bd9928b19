//! Security of connections to Kafka: five variables that must fit together.

use std::fs::File;
use std::path::PathBuf;

use super::Secret;
use super::reader::{Reader, choice, optional, text, untrimmed_text};

/// Security of the connections to Kafka.
#[derive(Clone, Debug, Default)]
pub struct KafkaSecurity {
    /// Encryption; `None`: plain text.
    pub tls: Option<KafkaTls>,
    /// The login; `None`: anonymous.
    pub sasl: Option<KafkaSasl>,
}

/// The trusted certificates.
#[derive(Clone, Debug)]
pub struct KafkaTls {
    /// PEM file of the CA certificates; `None`: the operating system's.
    pub ca_file: Option<PathBuf>,
}

/// A login.
#[derive(Clone, Debug)]
pub struct KafkaSasl {
    /// The SASL mechanism.
    pub mechanism: SaslMechanism,
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// A SASL mechanism, under its registered name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaslMechanism {
    /// PLAIN.
    Plain,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-512.
    ScramSha512,
}

const PROTOCOL: &str = "KAFKA_SECURITY_PROTOCOL";
const MECHANISM: &str = "KAFKA_SASL_MECHANISM";
const USERNAME: &str = "KAFKA_SASL_USERNAME";
const PASSWORD: &str = "KAFKA_SASL_PASSWORD";
const CA_FILE: &str = "KAFKA_SSL_CA_FILE";

pub(super) fn kafka_security(reader: &mut Reader<'_>) -> KafkaSecurity {
    let (encrypts, logs_in) = reader.get(
        PROTOCOL,
        choice(&[
            ("PLAINTEXT", (false, false)),
            ("SSL", (true, false)),
            ("SASL_PLAINTEXT", (false, true)),
            ("SASL_SSL", (true, true)),
        ]),
    );
    let mechanism = reader.get(
        MECHANISM,
        optional(choice(&[
            ("PLAIN", SaslMechanism::Plain),
            ("SCRAM-SHA-256", SaslMechanism::ScramSha256),
            ("SCRAM-SHA-512", SaslMechanism::ScramSha512),
        ])),
    );
    let username = reader.get(USERNAME, optional(text(255)));
    let password = reader.get(PASSWORD, optional(untrimmed_text(usize::MAX)));
    let ca_file = reader.get(CA_FILE, optional(readable_file));

    for name in [MECHANISM, USERNAME, PASSWORD] {
        match (logs_in, reader.is_given(name)) {
            (true, false) => {
                reader.refuse_combination(name, format!("given: {PROTOCOL} asks for a login"));
            }
            // Somebody who sets a login without SASL has forgotten the protocol.
            (false, true) => {
                let allowed = format!("SASL_PLAINTEXT or SASL_SSL, as {name} is given");
                reader.refuse_combination(PROTOCOL, allowed);
                break;
            }
            _ => {}
        }
    }
    if !encrypts && reader.is_given(CA_FILE) {
        let allowed = format!("SSL or SASL_SSL, as {CA_FILE} is given");
        reader.refuse_combination(PROTOCOL, allowed);
    }
    let sasl = match (mechanism, username, password) {
        (Some(mechanism), Some(username), Some(password)) if logs_in => Some(KafkaSasl {
            mechanism,
            username,
            password: Secret::new(password),
        }),
        _ => None,
    };
    KafkaSecurity {
        tls: encrypts.then_some(KafkaTls { ca_file }),
        sasl,
    }
}

fn readable_file(text: &str) -> Option<PathBuf> {
    let path = PathBuf::from(text.trim());
    let is_file = File::open(&path)
        .and_then(|file| file.metadata())
        .is_ok_and(|metadata| metadata.is_file());
    is_file.then_some(path)
}
