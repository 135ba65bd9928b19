//! TLS and SASL logins against a real Kafka that requires them, and the errors when they fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::{BrokerId, FetchRequest, MetadataRequest, TopicName};
use kafka_protocol::protocol::StrBytes;
use serde_json::json;
use tbd_deadline::Deadline;
use tbd_kafka::admin::TopicSpec;
use tbd_kafka::consumer::{Consumer, ConsumerConfig};
use tbd_kafka::internals::Connection;
use tbd_kafka::producer::{Certainty, Compression, Record};
use tbd_kafka::{
    Admin, ClientConfig, Cluster, Error, Producer, ProducerConfig, Sasl, SaslMechanism, Security,
    Tls,
};

use crate::support::certificates::{Authority, Files, Validity};
use crate::support::http::get;
use crate::support::program::{Stack, id};
use crate::support::token::{Issuer, claims, now};
use crate::support::{OwnServer, eventually, free_port, postgres, unique};

const USER: &str = "tbd";
const PASSWORD: &str = "correct-horse";
const WRONG: &str = "battery-staple";

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// A Kafka with a listener for each security protocol, all on 127.0.0.1. Its own CA signs the
/// certificates.
struct Broker {
    server: OwnServer,
    ssl: String,
    /// A listener whose certificate is for another host.
    misnamed: String,
    sasl_plaintext: String,
    sasl_ssl: String,
    /// A listener that requires a certificate and a token.
    both: String,
    authority: Authority,
    /// Signs the tokens.
    issuer: Issuer,
}

/// Started by the first test that needs it, and stopped with the other servers of the run.
fn broker() -> &'static Broker {
    static BROKER: OnceLock<Broker> = OnceLock::new();
    BROKER.get_or_init(Broker::start)
}

impl Broker {
    fn start() -> Broker {
        let folder = std::env::var("TBD_TEST_SERVERS").expect("scripts/with-servers sets it");
        let (authority, issuer) = (Authority::new("tests"), Issuer::new());
        let jwks = format!("{folder}/jwks.json");
        fs::write(&jwks, issuer.jwks()).expect("write the keys of tokens");
        let names = ["SSL", "MISNAMED", "SASL_PLAINTEXT", "SASL_SSL", "BOTH"];
        let addresses = names.map(|_| format!("127.0.0.1:{}", free_port()));
        let server = OwnServer::kafka_with(|port| {
            let controller = free_port();
            let listeners: String = names
                .iter()
                .zip(&addresses)
                .map(|(name, address)| format!(",{name}://{address}"))
                .collect();
            let module = "org.apache.kafka.common.security";
            let scram = format!("{module}.scram.ScramLoginModule required;");
            let plain = format!("{module}.plain.PlainLoginModule required");
            let oauth = "listener.name.both.oauthbearer.sasl";
            let mut settings = vec![
                format!("controller.quorum.voters=1@127.0.0.1:{controller}"),
                format!("--add-scram=SCRAM-SHA-256=[name={USER},password={PASSWORD}]"),
                format!("--add-scram=SCRAM-SHA-512=[name={USER},password={PASSWORD}]"),
                format!(
                    "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}{listeners}"
                ),
                format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port}{listeners}"),
                "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,\
                 MISNAMED:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL,BOTH:SASL_SSL"
                    .to_owned(),
                "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned(),
                format!(
                    "listener.name.sasl_plaintext.connections.max.reauth.ms={}",
                    SESSION.as_millis()
                ),
                "listener.name.both.ssl.client.auth=required".to_owned(),
                "listener.name.both.ssl.truststore.type=PEM".to_owned(),
                format!(
                    "listener.name.both.ssl.truststore.location={}",
                    authority.ca_file().display()
                ),
                "listener.name.both.sasl.enabled.mechanisms=OAUTHBEARER".to_owned(),
                format!(
                    "{oauth}.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required;"
                ),
                format!(
                    "{oauth}.server.callback.handler.class={module}.oauthbearer.OAuthBearerValidatorCallbackHandler"
                ),
                // Without it, Kafka 4.1 checks no signature.
                format!(
                    "sasl.oauthbearer.jwt.validator.class={module}.oauthbearer.BrokerJwtValidator"
                ),
                format!("sasl.oauthbearer.jwks.endpoint.url=file://{jwks}"),
                "sasl.oauthbearer.expected.audience=tbd".to_owned(),
                // Kafka 4.4 does not start without it.
                format!(
                    "sasl.oauthbearer.expected.issuer={}",
                    claims()["iss"].as_str().expect("text")
                ),
                format!(
                    "listener.name.both.connections.max.reauth.ms={}",
                    SESSION.as_millis()
                ),
            ];
            for (name, host) in [
                ("ssl", "127.0.0.1"),
                ("sasl_ssl", "127.0.0.1"),
                ("both", "127.0.0.1"),
                ("misnamed", "kafka.example"),
            ] {
                let keystore = format!("listener.name.{name}.ssl.keystore");
                let store = authority.issue(host, Validity::Now).keystore();
                settings.push(format!("{keystore}.type=PEM"));
                settings.push(format!("{keystore}.location={}", store.display()));
            }
            for name in ["sasl_plaintext", "sasl_ssl"] {
                let login = format!("listener.name.{name}");
                settings.extend([
                    format!("{login}.plain.sasl.jaas.config={plain} user_{USER}=\"{PASSWORD}\";"),
                    format!("{login}.scram-sha-256.sasl.jaas.config={scram}"),
                    format!("{login}.scram-sha-512.sasl.jaas.config={scram}"),
                ]);
            }
            settings
        });
        let [ssl, misnamed, sasl_plaintext, sasl_ssl, both] = addresses;
        Broker {
            server,
            ssl,
            misnamed,
            sasl_plaintext,
            sasl_ssl,
            both,
            authority,
            issuer,
        }
    }

    /// A file with a token that is valid for so many seconds, below the authority's folder.
    fn token_file(&self, seconds: i64) -> PathBuf {
        let path = self.authority.folder().join(unique("token"));
        self.write_token(&path, seconds);
        path
    }

    fn write_token(&self, path: &Path, seconds: i64) {
        let mut claims = claims();
        claims["iat"] = json!(now(-600));
        claims["exp"] = json!(now(seconds));
        let new = path.with_extension("new");
        fs::write(&new, self.issuer.rs256(&claims)).expect("write a token");
        fs::rename(&new, path).expect("replace the token");
    }

    /// Trusts our CA, and shows this certificate.
    fn mutual_tls(&self, files: &Files) -> Option<Tls> {
        let identity = Some((&*files.certificate, &*files.key));
        Some(Tls::from_files(Some(&self.authority.ca_file()), identity).expect("our files"))
    }

    fn plaintext(&self) -> String {
        self.server.address()
    }

    fn tls(&self) -> Option<Tls> {
        Some(Tls::with_ca_file(&self.authority.ca_file()).expect("our CA"))
    }
}

/// How long a login lasts on the listener SASL_PLAINTEXT (KIP-368).
const SESSION: Duration = Duration::from_secs(2);

/// Seconds for a token that has expired, beyond the 30 s that the broker allows for clocks.
const EXPIRED: i64 = -120;

fn login(mechanism: SaslMechanism, password: &str) -> Option<Sasl> {
    Some(Sasl::Password {
        mechanism,
        username: USER.to_owned(),
        password: password.to_owned(),
    })
}

fn config(address: &str, tls: Option<Tls>, sasl: Option<Sasl>) -> ClientConfig {
    let mut config = ClientConfig::new([address]);
    config.security = Security { tls, sasl };
    config.connect_timeout = Duration::from_secs(15);
    config
}

/// Why a request, or the connection for it, fails.
fn failure(address: &str, tls: Option<Tls>, sasl: Option<Sasl>) -> Error {
    Connection::open(address, &config(address, tls, sasl), soon())
        .and_then(|mut connection| connection.call(&MetadataRequest::default(), soon()))
        .expect_err("no way in")
}

#[test]
fn records_go_and_come_by_every_protocol_and_mechanism() {
    let broker = broker();
    use SaslMechanism::{Plain, ScramSha256, ScramSha512};
    let ours = broker.authority.issue(USER, Validity::Now);
    let token = Sasl::with_token_file(&broker.token_file(600)).unwrap();
    let ways = [
        (&broker.ssl, broker.tls(), None),
        (&broker.both, broker.mutual_tls(&ours), Some(token)),
        (&broker.sasl_plaintext, None, login(Plain, PASSWORD)),
        (&broker.sasl_plaintext, None, login(ScramSha256, PASSWORD)),
        (&broker.sasl_ssl, broker.tls(), login(Plain, PASSWORD)),
        (&broker.sasl_ssl, broker.tls(), login(ScramSha512, PASSWORD)),
    ];
    for (address, tls, sasl) in ways {
        let client = config(address, tls, sasl);
        let protocol = client.security.protocol();
        let cluster = Cluster::new(client);
        let topic = unique("secure");
        let spec = TopicSpec::new(topic.clone(), 2, 1);
        Admin::new(cluster.clone())
            .create_topics(&[spec], soon())
            .and_then(tbd_kafka::admin::all)
            .unwrap();
        // Large enough for many TLS records in each direction.
        let value = "0123456789".repeat(30_000);
        let mut config = ProducerConfig::default();
        config.compression = Compression::None;
        let producer = Producer::start(cluster.clone(), config, Arc::new(())).unwrap();
        let records = (0..6).map(|number| {
            let key = Some(format!("{number}").into());
            Record::new(topic.as_str(), key, Some(value.clone().into()))
        });
        for outcome in producer.publish(records.collect(), soon()) {
            outcome.unwrap();
        }
        let group = ConsumerConfig::new(unique("secure"), [topic]);
        let mut consumer = Consumer::start(cluster, group, Box::new(())).unwrap();
        let mut seen = 0;
        let deadline = Deadline::after(Duration::from_secs(40));
        while seen < 6 {
            assert!(!deadline.is_past(), "{protocol}: {seen} of 6");
            for record in consumer.poll(soon()).unwrap() {
                assert_eq!(record.value.as_deref(), Some(value.as_bytes()));
                seen += 1;
            }
        }
        consumer.close(soon()).unwrap();
        producer.close(soon()).unwrap();
    }
}

#[test]
fn a_wrong_password_is_refused_for_good_and_never_shown() {
    let broker = broker();
    for mechanism in [
        SaslMechanism::Plain,
        SaslMechanism::ScramSha256,
        SaslMechanism::ScramSha512,
    ] {
        let error = failure(&broker.sasl_plaintext, None, login(mechanism, WRONG));
        assert!(matches!(error, Error::Authentication { .. }), "{error}");
        assert!(!error.is_transient());
        for shown in [error.to_string(), format!("{error:?}")] {
            assert!(!shown.contains(WRONG), "{shown}");
        }
    }
    // A producer fails at once instead of at the record's deadline.
    let sasl = login(SaslMechanism::ScramSha256, WRONG);
    let cluster = Cluster::new(config(&broker.sasl_plaintext, None, sasl));
    let producer = Producer::start(cluster, ProducerConfig::default(), Arc::new(())).unwrap();
    let deadline = Deadline::after(Duration::from_secs(60));
    let record = Record::new("t", None, Some("v".into()));
    let error = producer.publish(vec![record], deadline).remove(0);
    let error = error.unwrap_err();
    assert!(deadline.remaining() > Duration::from_secs(20));
    assert_eq!(error.certainty, Certainty::NotSent);
    assert!(
        matches!(error.cause, Error::Authentication { .. }),
        "{error}"
    );
    assert!(!error.is_fault_of_record());
}

#[test]
fn a_certificate_is_trusted_only_from_a_known_ca_and_for_the_dialled_host() {
    let broker = broker();
    let stranger = Tls::with_ca_file(&Authority::new("strangers").ca_file()).unwrap();
    for (address, tls, hint) in [
        (&broker.ssl, Some(stranger), "no trusted CA"),
        (
            &broker.misnamed,
            broker.tls(),
            "is for DnsName(\"kafka.example\"), not for 127.0.0.1",
        ),
    ] {
        let error = failure(address, tls, None);
        assert!(matches!(error, Error::Tls { .. }), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
        assert!(!error.is_transient());
    }
}

#[test]
fn a_client_is_admitted_only_with_a_good_certificate_and_a_good_token() {
    let broker = broker();
    let strangers = Authority::new("strangers");
    let good = || Sasl::with_token_file(&broker.token_file(600)).unwrap();
    let ours = |validity| broker.mutual_tls(&broker.authority.issue(USER, validity));
    let expired = broker.token_file(EXPIRED);
    let secret = fs::read_to_string(&expired).unwrap();
    for (tls, sasl, hint) in [
        (broker.tls(), good(), "certificate"),
        (ours(Validity::Past), good(), "it refuses our certificate"),
        (ours(Validity::Future), good(), "it refuses our certificate"),
        (
            broker.mutual_tls(&strangers.issue(USER, Validity::Now)),
            good(),
            "it refuses our certificate",
        ),
        (
            ours(Validity::Now),
            Sasl::with_token_file(&expired).unwrap(),
            "invalid_token",
        ),
    ] {
        let error = failure(&broker.both, tls, Some(sasl));
        assert!(error.to_string().contains(hint), "{hint}: {error}");
        assert!(!format!("{error} {error:?}").contains(&secret));
    }
}

#[test]
fn a_listener_of_another_protocol_is_named_as_the_cause() {
    let broker = broker();
    let plain = || login(SaslMechanism::Plain, PASSWORD);
    // The client's own words, where the broker merely closes the connection.
    for (address, tls, sasl, hint) in [
        (broker.plaintext(), broker.tls(), None, "does not speak TLS"),
        (broker.ssl.clone(), None, None, "it speaks TLS here"),
        (broker.plaintext(), None, plain(), "takes no login here"),
        (
            broker.sasl_plaintext.clone(),
            None,
            None,
            "perhaps its listener is not for PLAINTEXT",
        ),
    ] {
        let error = failure(&address, tls, sasl);
        assert!(error.to_string().contains(hint), "{hint}: {error}");
    }
}

#[test]
fn a_session_is_renewed_on_the_same_connection_before_the_broker_ends_it() {
    let broker = broker();
    let sasl = login(SaslMechanism::ScramSha256, PASSWORD);
    let client = config(&broker.sasl_plaintext, None, sasl);
    let cluster = Cluster::new(client.clone());
    let topic = unique("renewed");
    let spec = TopicSpec::new(topic.clone(), 1, 1);
    Admin::new(cluster)
        .create_topics(&[spec], soon())
        .and_then(tbd_kafka::admin::all)
        .unwrap();
    let mut connection = Connection::open(&broker.sasl_plaintext, &client, soon()).unwrap();
    // Answered after a while, because the topic is empty.
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_session_epoch(-1)
        .with_max_wait_ms(400)
        .with_min_bytes(1)
        .with_max_bytes(1000)
        .with_topics(vec![
            FetchTopic::default()
                .with_topic(TopicName(StrBytes::from_string(topic)))
                .with_partitions(vec![
                    FetchPartition::default().with_partition_max_bytes(1000),
                ]),
        ]);
    let started = Instant::now();
    while started.elapsed() < SESSION * 2 {
        // Version 12 addresses topics by name.
        let sent = connection.send_at_most(&request, 12, soon()).unwrap();
        connection.receive(sent, soon()).unwrap();
    }
}

/// Programs on their own database that use the listener SASL_SSL.
fn stack(broker: &Broker, password: &str) -> Stack {
    let ca_file = broker.authority.ca_file();
    let ca_file = ca_file.to_str().expect("a UTF-8 path");
    Stack::on(postgres(), broker.sasl_ssl.clone())
        .set("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
        .set("KAFKA_SSL_CA_FILE", ca_file)
        .set("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512")
        .set("KAFKA_SASL_USERNAME", USER)
        .set("KAFKA_SASL_PASSWORD", password)
        .set("KAFKA_COMPRESSION", "zstd")
}

#[test]
fn an_order_is_processed_over_tls_with_a_login() {
    let stack = stack(broker(), PASSWORD);
    let api = stack.api();
    let _worker = stack.worker();
    let order = api.accepted_order();
    assert_eq!(order["status"], "pending");
    assert!(!id(&order).is_empty());
    stack.all_become("completed", 1, Duration::from_secs(60));
}

#[test]
fn with_a_wrong_password_readiness_says_so_and_an_order_waits_safely() {
    let stack = stack(broker(), WRONG);
    let (api, worker) = (stack.start_api(), stack.start_worker());
    for program in [&api, &worker] {
        let reason = eventually(Duration::from_secs(60), "the reason", || {
            let answer = get("/readyz").try_send(&program.address()).ok()?.text();
            (answer.contains("does not accept the login") && answer.contains(r#""database":"ok""#))
                .then_some(answer)
        });
        assert!(!reason.contains(WRONG));
    }
    let asked = Instant::now();
    assert_eq!(api.order("locked-out", 500).status, 503);
    assert!(asked.elapsed() < Duration::from_secs(8), "not at once");
    assert_eq!(stack.count("outbox"), 1);
    for program in [api, worker] {
        assert!(!program.log().join("\n").contains(WRONG));
    }
}

#[test]
fn a_token_is_replaced_under_load_and_a_bad_one_is_named_until_it_is_gone() {
    let broker = broker();
    let ours = broker.authority.issue(USER, Validity::Now);
    let token = broker.token_file(600);
    let text = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let stack = Stack::on(postgres(), broker.both.clone())
        .set("KAFKA_SECURITY_PROTOCOL", "SASL_SSL")
        .set("KAFKA_SSL_CA_FILE", &text(&broker.authority.ca_file()))
        .set("KAFKA_SSL_CERT_FILE", &text(&ours.certificate))
        .set("KAFKA_SSL_KEY_FILE", &text(&ours.key))
        .set("KAFKA_SASL_MECHANISM", "OAUTHBEARER")
        .set("KAFKA_SASL_OAUTH_TOKEN_FILE", &text(&token));
    let (mut api, worker) = (stack.api(), stack.worker());
    let mut accepted = 0;
    let mut order_for = |time: Duration| {
        let started = Instant::now();
        while started.elapsed() < time {
            api.accepted_order();
            accepted += 1;
        }
    };
    // Each session of the broker ends within this time, so each connection logs in again.
    order_for(SESSION);
    broker.write_token(&token, 500);
    ours.become_those_of(&broker.authority.issue(USER, Validity::Now));
    order_for(SESSION * 2);

    broker.write_token(&token, EXPIRED);
    let bad = fs::read_to_string(&token).unwrap();
    let unready = api.become_unready(Duration::from_secs(30)).text();
    assert!(unready.contains("does not accept the login"), "{unready}");
    // The producer's session may be the last one to end.
    let key = eventually(SESSION * 5, "an order to be refused", || {
        let key = unique("key");
        let status = api.order(&key, 500).status;
        assert!([202, 503].contains(&status), "{status}");
        accepted += i64::from(status == 202);
        (status == 503).then_some(key)
    });
    broker.write_token(&token, 600);
    api.become_ready(Duration::from_secs(60));
    let repeated = eventually(Duration::from_secs(60), "the order's repetition", || {
        Some(api.order(&key, 500)).filter(|answer| answer.status == 202)
    });
    assert_eq!(repeated.status, 202);
    stack.all_become("completed", accepted + 1, Duration::from_secs(60));
    for program in [api, worker] {
        let log = program.log().join("\n");
        assert!(!log.contains(&bad) && !log.contains("PRIVATE KEY"));
    }
}
