//! gRPC server setup of a participant: the admission of callers comes before its service.

use crate::config::ParticipantConfig;
use crate::metrics::Metrics;
use crate::participants::adapters::grpc::{MESSAGE_BYTES_MAX, Service, paths, routes};
use crate::participants::adapters::identity::Admission;
use tbd_grpc::Router;
use tbd_http::Pool;

use super::background::Background;
use super::grpc::{GrpcError, GrpcServer, serve};
use super::grpc_observer::GrpcService;
use super::probes::Checks;

/// Starts the gRPC server of `service` and the thread `grpc-health`. Calls run on `pool`. Only those that `admission` admits come to the service; health checks and
/// reflection are for everybody.
///
/// # Errors
/// [`GrpcError`]; nothing is left running.
pub fn commands_server(
    config: &ParticipantConfig,
    service: Service,
    admission: Admission,
    pool: Pool,
    checks: Checks,
    metrics: &Metrics,
    background: &mut Background,
) -> Result<GrpcServer, GrpcError> {
    let observed = GrpcService {
        name: service.participant.service(),
        paths: paths(service.participant),
        message_bytes_max: MESSAGE_BYTES_MAX,
    };
    let add = |router: &mut Router| {
        router.intercept(move |call, next| {
            admission.admit(call)?;
            next.run()
        });
        routes(router, service);
    };
    serve(
        &config.grpc,
        &observed,
        add,
        pool,
        checks,
        metrics,
        background,
    )
}
