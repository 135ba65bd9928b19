//! The generated code and descriptors of `src/proto` are what the files in `proto/` say.
//!
//! After a change of a .proto file: `UPDATE_GENERATED=1 cargo test --test it generated`.

use std::fs;
use std::path::{Path, PathBuf};

const FILES: [&str; 3] = [
    "tbd/orders/v1/orders.proto",
    "tbd/inventory/v1/inventory.proto",
    "tbd/payments/v1/payments.proto",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Holds `generated` against the file that is checked in.
fn check(checked_in: &str, generated: &[u8]) {
    let path = root().join("src/proto").join(checked_in);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&path, generated).unwrap();
    }
    assert!(
        fs::read(&path).unwrap_or_default() == generated,
        "{} is not what the .proto files say",
        path.display()
    );
}

#[test]
fn the_generated_code_is_what_the_proto_files_say() {
    let out =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("generated-{}", std::process::id()));
    fs::create_dir_all(&out).unwrap();
    let options = tbd_grpc_build::Options::default();
    tbd_grpc_build::compile(&FILES, &[root().join("proto")], &out, options).unwrap();
    for package in ["orders", "inventory", "payments"] {
        let name = format!("tbd.{package}.v1.rs");
        check(&name, &fs::read(out.join(&name)).unwrap());
    }
    fs::remove_dir_all(&out).unwrap();
}

#[test]
fn the_descriptors_are_what_the_proto_files_say() {
    let descriptors = tbd_grpc_build::descriptors(&FILES, &[root().join("proto")]).unwrap();
    check("descriptors.bin", &descriptors);
}
