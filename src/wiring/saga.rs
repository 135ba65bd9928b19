//! Saga setup of the worker: the participants, and their health checks.

use std::io;
use std::sync::Arc;

use super::background::Background;
use super::breaker;
use super::health::Monitor;
use crate::config::{ParticipantAddresses, ParticipantsAccess};
use crate::metrics::Metrics;
use crate::orders::adapters::{GrpcParticipants, Service, TokenSource, channel_config};
use crate::orders::domain::saga::Participant;
use tbd_grpc::Channel;
use tbd_grpc::tls::{ClientTls, FileError, Roots};
use tbd_tls::token_file;

/// The participants at these addresses. Connects to none of them yet. Reads the files of `access`.
///
/// # Errors
/// A file cannot be used.
pub fn participants(
    addresses: &ParticipantAddresses,
    access: &ParticipantsAccess,
    metrics: &Metrics,
) -> Result<Arc<GrpcParticipants>, FileError> {
    let roots = access.ca_file.clone().map(Roots::File);
    let tls = roots.map(|roots| ClientTls::from_files(roots, access.identity.clone()));
    let tls = tls.transpose()?;
    let token = access.token_file.as_deref().map(token_file).transpose()?;
    let token = token.map(|token| Arc::new(move || token.get().as_str().to_owned()) as TokenSource);
    let service = |participant: Participant, addresses: &str| {
        let mut channel = Channel::builder(addresses).config(channel_config());
        if let Some(tls) = &tls {
            channel = channel.tls(tls.clone());
        }
        let channel = channel.build();
        let name = participant.as_str();
        Service::new(channel, breaker(name, name, metrics), token.clone())
    };
    Ok(Arc::new(GrpcParticipants::new(
        service(Participant::Inventory, &addresses.inventory),
        service(Participant::Payments, &addresses.payments),
    )))
}

/// Starts the threads `inventory-health` and `payments-health`. Returns the monitors by the name of the
/// participant. A participant that is back after its
/// absence is probed at once: with the breaker's pause alone, its sagas would wait 30 s longer.
///
/// # Errors
/// A thread cannot be started.
pub fn monitor_participants(
    participants: &Arc<GrpcParticipants>,
    background: &mut Background,
) -> io::Result<Vec<(&'static str, Monitor)>> {
    let mut monitors = Vec::new();
    for it in Participant::ALL {
        let participants = Arc::clone(participants);
        let mut was_away = false;
        let check = move || {
            let health = participants.check(it);
            if health.is_ok() && was_away {
                participants.found(it);
            }
            was_away = health.is_err();
            health
        };
        let name = format!("{}-health", it.as_str());
        monitors.push((it.as_str(), background.monitor(&name, check)?));
    }
    Ok(monitors)
}
