//! HTTP/2 without I/O (RFC 9113): octets in, events out; actions in, octets out.
//!
//! [`Connection`] is the state machine of one connection in either role. It neither reads nor writes nor looks at a
//! clock: its driver hands in what was received and the time, and sends what [`Connection::output`] holds. The
//! module knows nothing of gRPC.
//!
//! # Guarantees
//!
//! - No octets make the connection panic, or take more memory than [`Limits`] allow.
//! - After an error there is a GOAWAY frame in the output, and nothing more is read.
//! - A frame that the RFC wants answered by an error is answered by that error. Server push is refused, priorities are
//!   ignored.

mod connection;
mod error;
mod fields;
mod frame;
mod heads;
mod limits;
mod receive;
mod send;
mod settings;
mod stream;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Role};
pub use error::{ActionError, ConnectionError, ErrorCode};
pub use fields::find;
pub(crate) use fields::is_value;
pub use limits::Limits;
pub use send::SEND_BUFFER_BYTES;
pub use stream::Event;
