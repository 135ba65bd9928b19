//! The bounded context: what an order is, what can be done with it, and how it
//! meets the outside.
//!
//! Arrows point inward. `domain` knows nobody; `app` knows `domain` and `ports`;
//! `adapters` know `app`, `ports` and one infrastructure folder each. A test
//! (`tests/it/architecture.rs`) holds the arrows in place.

pub mod adapters;
pub mod app;
pub mod domain;
pub mod ports;
