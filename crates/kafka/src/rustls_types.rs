//! The types of rustls that the client names. In a build without the feature `tls` they have no
//! values, so that the code around them is the same.

#[cfg(feature = "tls")]
pub(crate) use rustls::{ClientConnection, Error as TlsError};

#[cfg(not(feature = "tls"))]
pub(crate) use without_tls::{ClientConnection, TlsError};

#[cfg(not(feature = "tls"))]
mod without_tls {
    use std::io::{self, Read, Write};

    /// As `rustls::ClientConnection`.
    #[derive(Debug)]
    pub(crate) enum ClientConnection {}

    impl ClientConnection {
        pub(crate) fn reader(&mut self) -> io::Empty {
            match *self {}
        }

        pub(crate) fn writer(&mut self) -> io::Sink {
            match *self {}
        }

        pub(crate) fn read_tls(&mut self, _: &mut impl Read) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn write_tls(&mut self, _: &mut impl Write) -> io::Result<usize> {
            match *self {}
        }

        pub(crate) fn wants_write(&self) -> bool {
            match *self {}
        }

        pub(crate) fn process_new_packets(&mut self) -> Result<(), TlsError> {
            match *self {}
        }
    }

    /// As `rustls::Error`.
    #[derive(Debug, thiserror::Error)]
    #[error("no TLS")]
    pub(crate) enum TlsError {}
}
