//! Error codes for logins.

use tbd_kafka::{ApiKey, ClientConfig, Cluster, Error, ErrorCode, Sasl, SaslMechanism};

use super::{At, Kfake, check_all};
use crate::client::soon;

/// These faults meet any client, so there is one at a time.
#[test]
fn every_code_of_a_login_is_a_refusal_that_names_it_and_the_next_login_succeeds() {
    let kfake = Kfake::with_login();
    let mut config = ClientConfig::new([&kfake.addresses[0]]);
    config.security.sasl = Some(Sasl::Password {
        mechanism: SaslMechanism::ScramSha256,
        username: "admin".to_owned(),
        password: "admin".to_owned(),
    });
    check_all(
        &[ApiKey::SaslHandshake, ApiKey::SaslAuthenticate],
        1,
        |case| {
            let cluster = Cluster::new(config.clone());
            let fault = case.install(&kfake, At::Any);
            let refused = cluster.refresh::<&str>(&[], soon()).unwrap_err();
            assert_eq!(fault.hits(), 1, "{case:?}");
            assert!(
                matches!(refused, Error::Authentication { .. }),
                "{case:?} {refused}"
            );
            let expected = match (case.api, case.code) {
                (ApiKey::SaslHandshake, ErrorCode::UnsupportedSaslMechanism) => "not SCRAM-SHA-256",
                (ApiKey::SaslHandshake, ErrorCode::IllegalSaslState) => "it takes no login here",
                (_, code) => &code.to_string(),
            };
            assert!(refused.to_string().contains(expected), "{case:?} {refused}");
            cluster.refresh::<&str>(&[], soon()).unwrap();
        },
    );
}
