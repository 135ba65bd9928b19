//! Certificates, keys and tokens in files, read again when they change.
//!
//! - [`Reloading`] holds a value made from files, and makes it again when one of them has changed;
//! - [`ClientFiles`] and [`ServerFiles`] make TLS settings for rustls from PEM files;
//! - [`explain()`] says why a TLS session failed, in words for the person who has to act.
//!
//! A new connection uses the files of that moment; an open one keeps what it began with.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

mod explain;
mod files;
mod reloading;
mod settings;
mod verifier;

pub use explain::explain;
pub use files::FileError;
pub use reloading::{Reloading, token_file};
pub use settings::{ClientFiles, Identity, Roots, ServerCheck, ServerFiles};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
