//! The generated code is what the .proto files say. No protoc is needed, neither here nor by a user.
//!
//! After a change of a .proto file: `UPDATE_GENERATED=1 cargo test -p tbd-grpc --test generated`.

use std::fs;
use std::path::{Path, PathBuf};

use tbd_grpc_build::Options;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Compiles `files` and holds the result for `package` against `checked_in`.
fn check(files: &[&str], package: &str, checked_in: &Path) {
    let out = folder(package);
    // The details of a status.
    let type_names = package == "google.rpc";
    let options = Options { type_names };
    tbd_grpc_build::compile(files, &[root().join("proto")], &out, options).unwrap();
    let generated = fs::read(out.join(format!("{package}.rs"))).unwrap();
    fs::remove_dir_all(&out).unwrap();
    compare(&generated, checked_in);
}

/// Holds `generated` against the file that is checked in.
fn compare(generated: &[u8], checked_in: &Path) {
    let path = root().join(checked_in);
    if std::env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(&path, generated).unwrap();
    }
    let current = fs::read(&path).unwrap_or_default();
    assert!(
        current == generated,
        "{} is not what the .proto files say",
        path.display()
    );
}

fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("generated-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn the_error_details_are_what_their_proto_files_say() {
    let files = ["google/rpc/status.proto", "google/rpc/error_details.proto"];
    check(&files, "google.rpc", Path::new("src/proto/google.rpc.rs"));
}

#[test]
fn the_messages_of_the_interoperability_suite_are_what_their_proto_file_says() {
    check(
        &["grpc/testing/test.proto"],
        "grpc.testing",
        Path::new("examples/interop/grpc.testing.rs"),
    );
}

#[test]
fn health_and_reflection_are_what_their_proto_files_say() {
    let health = "grpc/health/v1/health.proto";
    let reflection = "grpc/reflection/v1/reflection.proto";
    let older = "grpc/reflection/v1alpha/reflection.proto";
    check(
        &[health],
        "grpc.health.v1",
        Path::new("src/proto/grpc.health.v1.rs"),
    );
    check(
        &[reflection],
        "grpc.reflection.v1",
        Path::new("src/proto/grpc.reflection.v1.rs"),
    );
    let descriptors =
        tbd_grpc_build::descriptors(&[health, reflection, older], &[root().join("proto")]).unwrap();
    compare(&descriptors, Path::new("src/proto/descriptors.bin"));
}
