//! The server side of `tbd.orders.v1` for tonic. The messages are tbd's own, and no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (folder, file) = ("../../proto", "tbd/orders/v1/orders.proto");
    println!("cargo::rerun-if-changed={folder}/{file}");
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .extern_path(".tbd.orders.v1", "::tbd::proto::orders")
        .compile_fds(protox::compile([file], [folder])?)?;
    Ok(())
}
