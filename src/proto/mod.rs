//! The messages and methods of the gRPC services, generated from `proto/`. A test holds them against it.

/// The orders API (`tbd.orders.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod orders {
    include!("tbd.orders.v1.rs");
}

/// The stock (`tbd.inventory.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod inventory {
    include!("tbd.inventory.v1.rs");
}

/// The payments (`tbd.payments.v1`).
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod payments {
    include!("tbd.payments.v1.rs");
}

/// The compiled `.proto` files with everything they import (`google.protobuf.FileDescriptorSet`), for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");
