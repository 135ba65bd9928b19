//! Admission of callers: by the name in a client certificate, by bearer token, or both.

use std::sync::Arc;

use tbd_grpc::{Call, Code, Status, tls};
use tbd_tls::Reloading;

use crate::auth::TokenCheck;

/// Who may send commands. Every check that is set has to succeed; without any, everybody may.
#[derive(Default)]
pub struct Admission {
    /// The names of which a client's certificate must have one, as a DNS name among its subject
    /// alternative names. The TLS handshake has verified the certificate itself.
    pub allowed_clients: Option<Vec<String>>,
    /// The check of tokens.
    pub token: Option<Arc<Reloading<TokenCheck>>>,
}

impl Admission {
    /// Admits `call`, or refuses it and logs why. Looks at the file of keys, and reads it if it has
    /// changed.
    ///
    /// # Errors
    /// PERMISSION_DENIED for a certificate with other names, UNAUTHENTICATED for the lack of a valid
    /// token.
    pub fn admit(&self, call: &Call) -> Result<(), Status> {
        if let Some(allowed) = &self.allowed_clients {
            let certificates = call.peer_certificates();
            let own = certificates.first().map_or(&[][..], |own| own);
            if !allowed.iter().any(|name| tls::is_certificate_of(own, name)) {
                log::warn!(
                    peer:% = call.peer();
                    "a client was refused: its certificate has none of the names in ALLOWED_CLIENTS ({})",
                    allowed.join(", ")
                );
                let message = "This client is not allowed here.";
                return Err(Status::new(Code::PermissionDenied, message));
            }
        }
        if let Some(check) = &self.token {
            let values = call.metadata().iter();
            let values = values.filter(|(key, _)| *key == "authorization");
            let values = values.map(|(_, value)| str::from_utf8(value).unwrap_or_default());
            if let Err(refusal) = check.get().check(values) {
                log::warn!(peer:% = call.peer(); "a client was refused: {refusal}");
                return Err(Status::new(Code::Unauthenticated, refusal.to_string()));
            }
        }
        Ok(())
    }
}
