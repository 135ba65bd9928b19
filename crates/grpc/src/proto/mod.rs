//! Messages that gRPC itself uses, generated from `proto/`; a test holds them against it.

/// Google's common packages.
pub mod google {
    /// The status with details, and the usual details (`google.rpc`).
    #[allow(missing_docs, clippy::all)]
    pub mod rpc {
        include!("google.rpc.rs");
    }
}

/// The services that gRPC defines.
pub mod grpc {
    /// The health of services (`grpc.health.v1`).
    #[allow(missing_docs, clippy::all)]
    pub mod health {
        include!("grpc.health.v1.rs");
    }

    /// Descriptors of services (`grpc.reflection.v1`).
    #[allow(missing_docs, clippy::all)]
    pub mod reflection {
        include!("grpc.reflection.v1.rs");
    }
}

/// The descriptors of both services, and of reflection's older name `grpc.reflection.v1alpha`.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");
