//! Kafka settings: the variables that begin with `KAFKA_`, some of which must fit together.

use std::path::PathBuf;

use tbd_kafka::SaslMechanism;
use tbd_kafka::producer::Compression;
use tbd_tls::Identity;

use super::Secret;
use super::files::{identity, readable_file};
use super::reader::{Reader, brokers, choice, optional, text, topic, untrimmed_text};

/// Kafka.
#[derive(Clone, Debug)]
pub struct KafkaSettings {
    /// `host:port` of the bootstrap brokers.
    pub brokers: Vec<String>,
    /// Topic of created orders.
    pub topic_order_created: String,
    /// Topic of completed orders.
    pub topic_order_processed: String,
    /// Topic of failed orders.
    pub topic_order_failed: String,
    /// Dead-letter topic.
    pub topic_order_dlq: String,
    /// Partitions of a new topic.
    pub topic_partitions: i32,
    /// Replicas of a new topic.
    pub topic_replication: i16,
    /// Consumer group of the workers.
    pub consumer_group: String,
    /// Encryption and login.
    pub security: KafkaSecurity,
    /// How published records are compressed.
    pub compression: Compression,
}

/// Security of the connections to Kafka.
#[derive(Clone, Debug, Default)]
pub struct KafkaSecurity {
    /// Encryption; `None`: plain text.
    pub tls: Option<KafkaTls>,
    /// The login; `None`: anonymous.
    pub sasl: Option<KafkaSasl>,
}

/// The trusted certificates, and the program's own.
#[derive(Clone, Debug)]
pub struct KafkaTls {
    /// PEM file of the CA certificates; `None`: the operating system's.
    pub ca_file: Option<PathBuf>,
    /// The program's own certificate.
    pub identity: Option<Identity>,
}

/// A login.
#[derive(Clone, Debug)]
pub enum KafkaSasl {
    /// With a password.
    Password {
        /// How it is proven.
        mechanism: SaslMechanism,
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// With the token in this file (OAUTHBEARER).
    TokenFile(PathBuf),
}

pub(super) fn kafka_settings(reader: &mut Reader<'_>) -> KafkaSettings {
    let [created, processed, failed, dlq] = topics(reader);
    let codecs = [
        ("none", Compression::None),
        ("gzip", Compression::Gzip),
        ("snappy", Compression::Snappy),
        ("lz4", Compression::Lz4),
        ("zstd", Compression::Zstd),
    ];
    KafkaSettings {
        brokers: reader.get("KAFKA_BROKERS", brokers),
        topic_order_created: created,
        topic_order_processed: processed,
        topic_order_failed: failed,
        topic_order_dlq: dlq,
        topic_partitions: reader.number("KAFKA_TOPIC_PARTITIONS"),
        topic_replication: reader.number("KAFKA_TOPIC_REPLICATION"),
        consumer_group: reader.get("KAFKA_CONSUMER_GROUP", text(255)),
        security: kafka_security(reader),
        compression: reader.choice("KAFKA_COMPRESSION", &codecs),
    }
}

/// Four different topics: if one were both consumed and published to, its events would loop for ever.
fn topics(reader: &mut Reader<'_>) -> [String; 4] {
    const NAMES: [&str; 4] = [
        "KAFKA_TOPIC_ORDER_CREATED",
        "KAFKA_TOPIC_ORDER_PROCESSED",
        "KAFKA_TOPIC_ORDER_FAILED",
        "KAFKA_TOPIC_ORDER_DLQ",
    ];
    let topics = NAMES.map(|name| reader.get(name, topic));
    for (index, name) in NAMES.into_iter().enumerate() {
        let mut earlier = NAMES.into_iter().zip(&topics[..index]);
        if let Some((other, _)) = earlier.find(|(_, topic)| **topic == topics[index]) {
            let (given, other) = match reader.is_given(name) {
                true => (name, other),
                false => (other, name),
            };
            reader.refuse_combination(given, format!("another topic than {other}'s"));
        }
    }
    topics
}

const PROTOCOL: &str = "KAFKA_SECURITY_PROTOCOL";
const MECHANISM: &str = "KAFKA_SASL_MECHANISM";
const USERNAME: &str = "KAFKA_SASL_USERNAME";
const PASSWORD: &str = "KAFKA_SASL_PASSWORD";
const TOKEN_FILE: &str = "KAFKA_SASL_OAUTH_TOKEN_FILE";
const CA_FILE: &str = "KAFKA_SSL_CA_FILE";
const CERT_FILE: &str = "KAFKA_SSL_CERT_FILE";
const KEY_FILE: &str = "KAFKA_SSL_KEY_FILE";

fn kafka_security(reader: &mut Reader<'_>) -> KafkaSecurity {
    let protocols = [
        ("PLAINTEXT", (false, false)),
        ("SSL", (true, false)),
        ("SASL_PLAINTEXT", (false, true)),
        ("SASL_SSL", (true, true)),
    ];
    let (encrypts, logs_in) = reader.choice(PROTOCOL, &protocols);
    // `None` is OAUTHBEARER.
    let mechanism = reader.get(
        MECHANISM,
        optional(choice(&[
            ("PLAIN", Some(SaslMechanism::Plain)),
            ("SCRAM-SHA-256", Some(SaslMechanism::ScramSha256)),
            ("SCRAM-SHA-512", Some(SaslMechanism::ScramSha512)),
            ("OAUTHBEARER", None),
        ])),
    );
    let username = reader.get(USERNAME, optional(text(255)));
    let password = reader.get(PASSWORD, optional(untrimmed_text(usize::MAX)));
    let token_file = reader.get(TOKEN_FILE, optional(readable_file));
    let ca_file = reader.get(CA_FILE, optional(readable_file));
    let identity = identity(reader, CERT_FILE, KEY_FILE);

    let needed: &[&str] = match mechanism {
        Some(None) => &[MECHANISM, TOKEN_FILE],
        _ => &[MECHANISM, USERNAME, PASSWORD],
    };
    for name in [MECHANISM, USERNAME, PASSWORD, TOKEN_FILE] {
        match (logs_in, reader.is_given(name)) {
            (true, false) if needed.contains(&name) => {
                reader.refuse_combination(name, format!("given: {PROTOCOL} asks for a login"));
            }
            (true, true) if !needed.contains(&name) => {
                reader.refuse_combination(name, format!("unset with this {MECHANISM}"));
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
    let tls_file = [CA_FILE, CERT_FILE, KEY_FILE]
        .into_iter()
        .find(|name| reader.is_given(name));
    if let (false, Some(name)) = (encrypts, tls_file) {
        let allowed = format!("SSL or SASL_SSL, as {name} is given");
        reader.refuse_combination(PROTOCOL, allowed);
    }
    let sasl = match (mechanism, username, password, token_file) {
        (Some(Some(mechanism)), Some(username), Some(password), _) => Some(KafkaSasl::Password {
            mechanism,
            username,
            password: Secret::new(password),
        }),
        (Some(None), _, _, Some(file)) => Some(KafkaSasl::TokenFile(file)),
        _ => None,
    };
    KafkaSecurity {
        tls: encrypts.then_some(KafkaTls { ca_file, identity }),
        sasl: sasl.filter(|_| logs_in),
    }
}
