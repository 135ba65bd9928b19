//! Settings of `tbd-participant`. Some defaults depend on which participant it is.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::database::{database_settings, pool_limits};
use super::files::{readable_folder, server_files};
use super::reader::{Reader, boolean, choice, is_network_host, list, optional};
use super::telemetry::{log_config, telemetry_settings};
use super::{
    AuthSettings, DatabaseSettings, GrpcConfig, HttpConfig, LogConfig, TelemetrySettings,
    auth_settings, grpc_port, server_config,
};
use crate::participants::domain::Participant;

/// Settings of `tbd-participant`.
#[derive(Clone, Debug)]
pub struct ParticipantConfig {
    /// Which participant it is.
    pub participant: Participant,
    /// Logging.
    pub log: LogConfig,
    /// The HTTP server for probes, metrics and audits.
    pub http: HttpConfig,
    /// The gRPC server for commands.
    pub grpc: GrpcConfig,
    /// The names of which a client certificate must have one.
    pub allowed_clients: Vec<String>,
    /// PostgreSQL.
    pub database: DatabaseSettings,
    /// Traces.
    pub telemetry: TelemetrySettings,
    /// Whether migrations run at start.
    pub auto_migrate: bool,
    /// Folder of migrations, instead of those in the binary.
    pub migrations_dir: Option<PathBuf>,
    /// The check of bearer tokens; `None`: no check.
    pub auth: Option<AuthSettings>,
    /// The stock to begin with (inventory).
    pub initial_stock: i64,
    /// How long each call waits before its work.
    pub latency: Duration,
    /// Share of calls that fail, 0 to 1.
    pub failure_rate: f64,
}

impl ParticipantConfig {
    /// Acceptors of the HTTP server, which serves scrapers, probers and audits.
    const HTTP_ACCEPTORS: usize = 1;

    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let participant = participant(reader);
        let pool = pool_limits(reader);
        let http = server_config(
            reader,
            "PARTICIPANT_HOST",
            "HTTP_PORT",
            Self::HTTP_ACCEPTORS,
        );
        let grpc_port = grpc_port(reader, "GRPC_PORT", ("HTTP_PORT", http.port));
        let tls_files = [
            "GRPC_TLS_CERT_FILE",
            "GRPC_TLS_KEY_FILE",
            "GRPC_TLS_CLIENT_CA_FILE",
        ];
        let allowed_clients = reader.get("ALLOWED_CLIENTS", list(client_name));
        // Without this file nobody's certificate is asked for, and the list would admit everybody.
        reader.require_with("GRPC_TLS_CLIENT_CA_FILE", "ALLOWED_CLIENTS");
        Self {
            participant,
            log: log_config(reader),
            grpc: GrpcConfig {
                address: SocketAddr::new(http.host, grpc_port),
                tls: server_files(reader, tls_files),
            },
            http,
            allowed_clients,
            database: database_settings(reader, pool),
            telemetry: telemetry_settings(reader),
            auto_migrate: reader.get("AUTO_MIGRATE", boolean),
            migrations_dir: reader.get("MIGRATIONS_DIR", optional(readable_folder)),
            auth: auth_settings(reader),
            initial_stock: reader.number("INVENTORY_STOCK"),
            latency: reader.duration("PARTICIPANT_LATENCY"),
            failure_rate: reader.number("PARTICIPANT_FAILURE_RATE"),
        }
    }
}

/// Reads PARTICIPANT, and sets the defaults that depend on it.
fn participant(reader: &mut Reader<'_>) -> Participant {
    const NAME: &str = "PARTICIPANT";
    let participants = [Participant::Inventory, Participant::Payments];
    let choices = participants.map(|participant| (participant.name(), participant));
    let given = reader.get(NAME, optional(choice(&choices)));
    if given.is_none() && !reader.is_given(NAME) {
        reader.refuse_combination(NAME, "inventory or payments");
    }
    let participant = given.unwrap_or(Participant::Inventory);
    let [grpc, http, service] = match participant {
        Participant::Inventory => ["50052", "9092", "tbd-inventory"],
        Participant::Payments => ["50053", "9093", "tbd-payments"],
    };
    reader.set_default("DB_NAME", participant.name());
    reader.set_default("GRPC_PORT", grpc);
    reader.set_default("HTTP_PORT", http);
    reader.set_default("OTEL_SERVICE_NAME", service);
    participant
}

fn client_name(text: &str) -> Option<String> {
    let text = text.trim();
    is_network_host(text).then(|| text.to_owned())
}
