//! The participants of the saga: inventory and payments, two services of one shape.
//!
//! Both follow try, confirm, cancel: a command holds something, a second one settles it, and the
//! compensation releases it. So the rules, the port and the adapters are shared. The words, the
//! tables and the stock differ.
//!
//! - [`domain`]: which effect a command has, and its answer;
//! - [`ports`]: the ledger that keeps them;
//! - [`adapters`]: gRPC for commands, HTTP for audits, PostgreSQL.

pub mod adapters;
pub mod domain;
pub mod ports;
