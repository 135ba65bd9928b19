//! Explanations of failed TLS sessions, for the person who has to act.

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

/// The reason of `error`, from the view of the side that dialled `host`. "It" is the server.
pub fn explain(error: &Error, host: &str) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no trusted CA has signed its certificate; trust the CA that did, \
             if this is the right server"
                .to_owned()
        }
        Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            presented, ..
        }) => format!(
            "its certificate is for {}, not for {host}; dial it by a name of its certificate, \
             or give it a certificate for this name",
            match presented.is_empty() {
                true => "no name (subjectAltName)".to_owned(),
                false => presented.join(", "),
            },
        ),
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "its certificate has expired".to_owned(),
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "its certificate is not valid yet; compare the clocks of both machines".to_owned(),
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "it does not speak TLS here".to_owned()
        }
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "it refuses our certificate, which has expired".to_owned()
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => {
            "it refuses our certificate: it does not trust its CA".to_owned()
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            "it requires a certificate of ours".to_owned()
        }
        Error::AlertReceived(
            alert @ (AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::AccessDenied),
        ) => format!("it refuses our certificate ({alert:?})"),
        other => other.to_string(),
    }
}
