//! The reflection service (`grpc.reflection.v1`, and `v1alpha` with the same messages).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
};

use super::router::Router;
use crate::code::Code;
use crate::method::Method;
use crate::proto::grpc::reflection::server_reflection_request::MessageRequest as Question;
use crate::proto::grpc::reflection::server_reflection_response::MessageResponse as Answer;
use crate::proto::grpc::reflection::{
    self as proto, ServerReflectionRequest, ServerReflectionResponse, server_reflection,
};

/// The name from before the service was stable, which older tools ask for.
const V1ALPHA: Method<ServerReflectionRequest, ServerReflectionResponse> =
    Method::new("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");

/// Adds reflection to `router`. It names the services that `router` has at this time, so it is to be added last.
///
/// `descriptor_sets` are encoded `google.protobuf.FileDescriptorSet`s with all imports, as
/// `tbd_grpc_build::descriptors` makes them; those of health and reflection are known. Interceptors do not see the calls.
/// Each occupies a thread, as a `Watch` of [`Health`](super::Health) does.
///
/// # Errors
/// A descriptor set is damaged.
pub fn add_reflection(
    router: &mut Router,
    descriptor_sets: &[&[u8]],
) -> Result<(), prost::DecodeError> {
    let mut files = Files::default();
    for set in descriptor_sets.iter().chain([&crate::proto::DESCRIPTORS]) {
        for file in RawFileSet::decode(*set)?.files {
            files.add(file)?;
        }
    }
    let own = [server_reflection::SERVER_REFLECTION_INFO, V1ALPHA];
    let own_services = own.iter().filter_map(|method| service_of(method.path()));
    files.services = router.services();
    files.services.extend(own_services.map(str::to_owned));
    let files = Arc::new(files);
    for method in own {
        let files = Arc::clone(&files);
        router
            .bidirectional(method, move |_, requests, mut responses| {
                for request in requests {
                    responses.send(&files.answer(request?))?;
                }
                Ok(())
            })
            .mark_own(method.path());
    }
    Ok(())
}

/// `package.Service` of `/package.Service/Method`.
pub(super) fn service_of(path: &str) -> Option<&str> {
    path.strip_prefix('/')?
        .rsplit_once('/')
        .map(|(name, _)| name)
}

/// A descriptor set whose files stay encoded: decoding would lose the options of options.
#[derive(Clone, PartialEq, Message)]
struct RawFileSet {
    #[prost(bytes = "vec", repeated, tag = "1")]
    files: Vec<Vec<u8>>,
}

/// What can be asked for.
#[derive(Default)]
struct Files {
    services: BTreeSet<String>,
    /// Each file with the names of those it imports.
    encoded: HashMap<String, (Vec<u8>, Vec<String>)>,
    /// The file of each full name.
    symbols: HashMap<String, String>,
    /// The file of each extension, by message and field number.
    extensions: BTreeMap<(String, i32), String>,
}

impl Files {
    fn add(&mut self, encoded: Vec<u8>) -> Result<(), prost::DecodeError> {
        let file = FileDescriptorProto::decode(&encoded[..])?;
        let (name, scope) = (file.name(), file.package());
        for message in &file.message_type {
            self.add_message(name, scope, message);
        }
        for kind in &file.enum_type {
            self.add_enum(name, scope, kind);
        }
        for extension in &file.extension {
            self.add_extension(name, scope, extension);
        }
        for service in &file.service {
            let service_name = self.add_symbol(name, scope, service.name());
            for method in &service.method {
                self.add_symbol(name, &service_name, method.name());
            }
        }
        let name = name.to_owned();
        self.encoded.insert(name, (encoded, file.dependency));
        Ok(())
    }

    fn add_message(&mut self, file: &str, scope: &str, message: &DescriptorProto) {
        let scope = &self.add_symbol(file, scope, message.name());
        for field in &message.field {
            self.add_symbol(file, scope, field.name());
        }
        for oneof in &message.oneof_decl {
            self.add_symbol(file, scope, oneof.name());
        }
        for nested in &message.nested_type {
            self.add_message(file, scope, nested);
        }
        for kind in &message.enum_type {
            self.add_enum(file, scope, kind);
        }
        for extension in &message.extension {
            self.add_extension(file, scope, extension);
        }
    }

    /// The values of an enum belong to the scope around it.
    fn add_enum(&mut self, file: &str, scope: &str, kind: &EnumDescriptorProto) {
        self.add_symbol(file, scope, kind.name());
        for value in &kind.value {
            self.add_symbol(file, scope, value.name());
        }
    }

    fn add_extension(&mut self, file: &str, scope: &str, extension: &FieldDescriptorProto) {
        self.add_symbol(file, scope, extension.name());
        let message = extension.extendee().trim_start_matches('.').to_owned();
        self.extensions
            .insert((message, extension.number()), file.to_owned());
    }

    /// Returns the full name.
    fn add_symbol(&mut self, file: &str, scope: &str, name: &str) -> String {
        let full_name = match scope {
            "" => name.to_owned(),
            scope => format!("{scope}.{name}"),
        };
        self.symbols.insert(full_name.clone(), file.to_owned());
        full_name
    }

    fn answer(&self, request: ServerReflectionRequest) -> ServerReflectionResponse {
        let answer = match &request.message_request {
            Some(Question::ListServices(_)) => Some(self.list_services()),
            Some(Question::FileByFilename(name)) => self.file(Some(name)),
            Some(Question::FileContainingSymbol(name)) => self.file(self.symbols.get(name)),
            Some(Question::FileContainingExtension(wanted)) => {
                let key = (wanted.containing_type.clone(), wanted.extension_number);
                self.file(self.extensions.get(&key))
            }
            Some(Question::AllExtensionNumbersOfType(message)) => self.extension_numbers(message),
            None => Some(error(Code::InvalidArgument, "the request asks for nothing")),
        };
        ServerReflectionResponse {
            valid_host: request.host.clone(),
            original_request: Some(request),
            message_response: Some(answer.unwrap_or_else(|| error(Code::NotFound, "not found"))),
        }
    }

    fn list_services(&self) -> Answer {
        let service = self
            .services
            .iter()
            .map(|name| proto::ServiceResponse { name: name.clone() });
        Answer::ListServicesResponse(proto::ListServiceResponse {
            service: service.collect(),
        })
    }

    /// The file and everything it imports, each once.
    fn file(&self, name: Option<&String>) -> Option<Answer> {
        let mut names: Vec<&String> = vec![name?];
        let mut encoded = Vec::new();
        let mut next = 0;
        while let Some(name) = names.get(next) {
            let (file, imports) = self.encoded.get(*name)?;
            encoded.push(file.clone());
            for import in imports {
                if !names.contains(&import) {
                    names.push(import);
                }
            }
            next += 1;
        }
        Some(Answer::FileDescriptorResponse(
            proto::FileDescriptorResponse {
                file_descriptor_proto: encoded,
            },
        ))
    }

    fn extension_numbers(&self, message: &str) -> Option<Answer> {
        self.symbols.get(message)?;
        let numbers = self
            .extensions
            .keys()
            .filter(|(extended, _)| extended == message)
            .map(|(_, number)| *number);
        Some(Answer::AllExtensionNumbersResponse(
            proto::ExtensionNumberResponse {
                base_type_name: message.to_owned(),
                extension_number: numbers.collect(),
            },
        ))
    }
}

fn error(code: Code, message: &str) -> Answer {
    Answer::ErrorResponse(proto::ErrorResponse {
        error_code: code.number().into(),
        error_message: message.to_owned(),
    })
}
