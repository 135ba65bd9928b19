//! The orders context: domain, use cases, ports and adapters.
//!
//! Dependencies point inward. `domain` depends on nothing, `app` on `domain` and `ports`, and each
//! adapter on these three and one infrastructure library. A test (`tests/it/architecture.rs`)
//! enforces this.

pub mod adapters;
pub mod app;
pub mod domain;
pub mod ports;
