//! Rust code for `tbd-grpc` from `.proto` files, without protoc.
//!
//! [`compile`] writes one file for each package: prost's messages, and for each service a module with a
//! `tbd_grpc::Method` constant for each method. Server and client take these constants, so no path and no type is written
//! by hand. The crate is used by build scripts, and by tests that hold checked-in code against its `.proto` files.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(unreachable_pub, clippy::unwrap_used))]

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use prost_build::{Config, Method, Service, ServiceGenerator};

/// What [`compile`] writes besides messages and constants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// `prost::Name` for each message: the details of a `tbd_grpc::Status` need it.
    pub type_names: bool,
}

/// Compiles `files`, which are found below `includes`, into the folder `out`. Reads and writes files.
///
/// # Errors
/// A file cannot be read or written, or it is no valid `.proto` file: then the text says where.
pub fn compile(
    files: &[&str],
    includes: &[impl AsRef<Path>],
    out: &Path,
    options: Options,
) -> io::Result<()> {
    let descriptors = protox::compile(files, includes).map_err(invalid)?;
    let mut config = Config::new();
    if options.type_names {
        config
            .enable_type_names()
            .type_name_domain(["."], "type.googleapis.com");
    }
    config
        .out_dir(out)
        .format(true)
        .service_generator(Box::new(MethodConstants));
    config.compile_fds(descriptors)
}

/// Compiles `files`, which are found below `includes`, into an encoded `google.protobuf.FileDescriptorSet`: these files
/// and everything they import, without comments. A server's reflection answers from it. Reads files.
///
/// # Errors
/// As for [`compile`].
pub fn descriptors(files: &[&str], includes: &[impl AsRef<Path>]) -> io::Result<Vec<u8>> {
    let mut compiler = protox::Compiler::new(includes).map_err(invalid)?;
    compiler
        .include_imports(true)
        .open_files(files)
        .map_err(invalid)?;
    Ok(compiler.encode_file_descriptor_set())
}

fn invalid(error: protox::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{error:?}"))
}

/// Writes the constants of a service.
struct MethodConstants;

impl ServiceGenerator for MethodConstants {
    fn generate(&mut self, service: Service, code: &mut String) {
        let name = format!("{}.{}", service.package, service.proto_name);
        // Writing to a String cannot fail.
        let _ = writeln!(
            code,
            "/// The methods of `{name}`.\npub mod {} {{",
            snake_case(&service.name)
        );
        for method in &service.methods {
            let path = format!("/{name}/{}", method.proto_name);
            let types = format!(
                "{}, {}",
                outside(&method.input_type),
                outside(&method.output_type)
            );
            let _ = writeln!(
                code,
                "/// `{path}`, {}.\npub const {}: ::tbd_grpc::Method<{types}> = ::tbd_grpc::Method::new({path:?});",
                kind(method),
                method.name.to_uppercase(),
            );
        }
        code.push_str("}\n");
    }
}

fn kind(method: &Method) -> &'static str {
    match (method.client_streaming, method.server_streaming) {
        (false, false) => "unary",
        (false, true) => "server-streaming",
        (true, false) => "client-streaming",
        (true, true) => "bidirectional",
    }
}

/// A type's path, from within the service's module.
fn outside(path: &str) -> String {
    let is_absolute = path.starts_with("::") || path.starts_with('(');
    if is_absolute {
        path.to_owned()
    } else {
        format!("super::{path}")
    }
}

/// `GreetingService` as `greeting_service`.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::PathBuf;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("tbd-grpc-build-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn generate(name: &str, proto: &str, options: Options) -> io::Result<String> {
        let folder = folder(name);
        fs::write(folder.join("a.proto"), proto).unwrap();
        let result = compile(&["a.proto"], &[&folder], &folder, options);
        let generated = result.and_then(|()| fs::read_to_string(folder.join("a.v1.rs")));
        fs::remove_dir_all(&folder).unwrap();
        generated
    }

    #[test]
    fn each_method_is_a_constant_with_its_path_and_types() {
        let generated = generate(
            "constants",
            "syntax = \"proto3\"; package a.v1; import \"google/protobuf/empty.proto\"; message Word { string text = 1; }
             service WordService { rpc Say(Word) returns (stream Word); rpc Forget(Word) returns (google.protobuf.Empty); }",
            Options::default(),
        )
        .unwrap();
        let flat: String = generated.split_whitespace().collect();
        for expected in [
            "pubmodword_service{",
            "pubconstSAY:::tbd_grpc::Method<super::Word,super::Word>=::tbd_grpc::Method::new(\"/a.v1.WordService/Say\"",
            "pubconstFORGET:::tbd_grpc::Method<super::Word,()>=",
        ] {
            assert!(flat.contains(expected), "{expected} in {generated}");
        }
    }

    #[test]
    fn messages_have_type_names_only_on_demand() {
        let word = "syntax = \"proto3\"; package a.v1; message Word {}";
        for type_names in [false, true] {
            let generated = generate("names", word, Options { type_names }).unwrap();
            assert_eq!(generated.contains("::prost::Name"), type_names);
            let url = "type.googleapis.com/a.v1.Word";
            assert_eq!(generated.contains(url), type_names);
        }
    }

    #[test]
    fn a_file_that_is_no_proto_is_refused_by_its_name() {
        let damaged = "syntax = \"proto3\"; package a.v1; message {";
        let error = generate("damaged", damaged, Options::default()).unwrap_err();
        assert!(error.to_string().contains("a.proto"), "{error}");
    }
}
