//! Messages that gRPC itself uses, generated from `proto/`; a test holds them against it.

/// Google's common packages.
pub mod google {
    /// The status with details, and the usual details (`google.rpc`).
    #[allow(missing_docs, clippy::all)]
    pub mod rpc {
        include!("google.rpc.rs");
    }
}
