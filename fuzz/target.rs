//! One program for every target; its name says which.
#![no_main]

#[path = "../tests/fuzz/targets.rs"]
mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<targets::Target> =
    LazyLock::new(|| targets::find(env!("CARGO_BIN_NAME")).expect("a target of this name"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET(bytes));
