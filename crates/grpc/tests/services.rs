//! Health and reflection, which every server can add.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use prost::Message as _;
use prost_types::FileDescriptorProto;
use tbd_grpc::proto::grpc::health::{HealthCheckRequest, HealthListRequest, health};
use tbd_grpc::proto::grpc::reflection::server_reflection::SERVER_REFLECTION_INFO;
use tbd_grpc::proto::grpc::reflection::server_reflection_request::MessageRequest as Question;
use tbd_grpc::proto::grpc::reflection::server_reflection_response::MessageResponse as Answer;
use tbd_grpc::proto::grpc::reflection::{
    ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse,
};
use tbd_grpc::server::{Health, Job, ServerConfig, ServingStatus, add_reflection};
use tbd_grpc::{Channel, Code, Method, Router, Status};

mod support;
use support::*;

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

fn check(channel: &Channel, service: &str) -> Result<ServingStatus, Code> {
    let call = channel.call(health::CHECK).deadline(soon());
    let answer = call.send(&named(service));
    answer
        .map(|response| response.status())
        .map_err(|status| status.code())
}

/// A server that has no place for any call and lets nobody through.
fn full(router: Router, own_threads_max: usize) -> tbd_grpc::Server {
    let mut router = router;
    router.intercept(|_, _| Err(Status::new(Code::Unauthenticated, "no token")));
    let limits = |config: &mut ServerConfig| {
        config.own_threads_max = own_threads_max;
        config.call_duration_max = Duration::from_millis(1);
    };
    builder_with(router, limits)
        .executor(Arc::new(|_job: Job| {}))
        .start(listener())
        .unwrap()
}

#[test]
fn watchers_see_each_change_and_the_end_even_of_a_server_without_capacity() {
    let (status, mut router) = (Health::new(), echo());
    status.add_to(&mut router);
    status.set("", ServingStatus::Serving);
    let server = full(router, 4);
    let channel = channel(&server);
    assert_eq!(check(&channel, ""), Ok(ServingStatus::Serving));
    assert_eq!(check(&channel, "a.v1.A"), Err(Code::NotFound));

    let watch = channel.call(health::WATCH);
    let mut changes = watch.send_for_stream(&named("a.v1.A")).unwrap();
    let mut next = || changes.next_message().unwrap().unwrap().status();
    assert_eq!(next(), ServingStatus::ServiceUnknown);
    status.set("a.v1.A", ServingStatus::Serving);
    assert_eq!(next(), ServingStatus::Serving);
    let listed = channel.call(health::LIST).send(&HealthListRequest {});
    assert_eq!(listed.unwrap().statuses.len(), 2);
    status.shut_down();
    assert_eq!(next(), ServingStatus::NotServing);
    status.set("a.v1.A", ServingStatus::Serving);
    assert_eq!(check(&channel, "a.v1.A"), Ok(ServingStatus::NotServing));

    // The watcher does not hold up the stop.
    assert!(server.stop(soon()));
    assert_eq!(
        changes.next_message().unwrap_err().code(),
        Code::Unavailable
    );
}

#[test]
fn a_stop_right_after_the_last_change_keeps_it_from_no_watcher() {
    const WATCHERS: usize = 32;
    let (status, mut router) = (Health::new(), echo());
    status.add_to(&mut router);
    status.set("", ServingStatus::Serving);
    let server = full(router, WATCHERS);
    let channel = channel(&server);
    let mut watches = Vec::new();
    for _ in 0..WATCHERS {
        let call = channel.call(health::WATCH);
        let mut watch = call.send_for_stream(&named("")).unwrap();
        let first = watch.next_message().unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving);
        watches.push(watch);
    }
    status.shut_down();
    assert!(server.stop(soon()));
    for mut watch in watches {
        let last = watch.next_message().unwrap().unwrap();
        assert_eq!(last.status(), ServingStatus::NotServing);
        let end = watch.next_message().unwrap_err();
        assert_eq!(end.code(), Code::Unavailable);
    }
}

#[test]
fn streams_of_health_are_limited_and_do_not_keep_a_check_from_its_answer() {
    let (status, mut router) = (Health::new(), Router::new());
    status.add_to(&mut router);
    status.set("", ServingStatus::Serving);
    let server = full(router, 2);
    let channel = channel(&server);
    let open = || {
        let mut watch = channel.call(health::WATCH).send_for_stream(&named(""))?;
        watch.next_message()?;
        Ok::<_, Status>(watch)
    };
    let (first, _second) = (open().unwrap(), open().unwrap());
    assert_eq!(open().unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(check(&channel, ""), Ok(ServingStatus::Serving));

    // A watcher that leaves makes room, without a change of the status.
    drop(first);
    let deadline = soon();
    while let Err(refused) = open() {
        assert!(!deadline.is_past(), "{refused:?}");
        thread::yield_now();
    }
}

fn ask(channel: &Channel, question: Question) -> Answer {
    const V1ALPHA: Method<ServerReflectionRequest, ServerReflectionResponse> =
        Method::new("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");
    let request = ServerReflectionRequest {
        host: "any".to_owned(),
        message_request: Some(question),
    };
    let mut answers = [SERVER_REFLECTION_INFO, V1ALPHA].map(|method| {
        let (mut requests, mut responses) = channel.call(method).open().unwrap();
        requests.send(&request).unwrap();
        let response = responses.next_message().unwrap().unwrap();
        assert_eq!(response.original_request.as_ref(), Some(&request));
        response.message_response
    });
    assert_eq!(answers[0], answers[1]);
    answers[0].take().unwrap()
}

#[test]
fn reflection_describes_every_service_with_the_files_it_needs() {
    let protos = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let set = tbd_grpc_build::descriptors(&["google/rpc/status.proto"], &[protos]).unwrap();
    let mut router = echo();
    Health::new().add_to(&mut router);
    add_reflection(&mut router, &[&set]).unwrap();
    let server = full(router, 4);
    let channel = channel(&server);

    let Answer::ListServicesResponse(list) = ask(&channel, Question::ListServices(String::new()))
    else {
        panic!("no list");
    };
    let names: Vec<_> = list.service.iter().map(|service| &*service.name).collect();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "test.v1.TestService",
    ];
    assert_eq!(names, expected);

    let files = |question| match ask(&channel, question) {
        Answer::FileDescriptorResponse(files) => files
            .file_descriptor_proto
            .iter()
            .map(|file| {
                FileDescriptorProto::decode(&file[..])
                    .unwrap()
                    .name()
                    .to_owned()
            })
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let status = ["google/rpc/status.proto", "google/protobuf/any.proto"];
    assert_eq!(
        files(Question::FileByFilename(status[0].to_owned())),
        status
    );
    for symbol in ["google.rpc.Status", "google.rpc.Status.details"] {
        assert_eq!(
            files(Question::FileContainingSymbol(symbol.to_owned())),
            status
        );
    }
    for symbol in [
        "grpc.health.v1.Health.Check",
        "grpc.health.v1.HealthCheckResponse.SERVING",
    ] {
        let found = files(Question::FileContainingSymbol(symbol.to_owned()));
        assert_eq!(found, ["grpc/health/v1/health.proto"]);
    }
    for unknown in [
        Question::FileByFilename("a.proto".to_owned()),
        Question::FileContainingSymbol("a.B".to_owned()),
        Question::AllExtensionNumbersOfType("a.B".to_owned()),
        Question::FileContainingExtension(ExtensionRequest::default()),
    ] {
        match ask(&channel, unknown) {
            Answer::ErrorResponse(error) => assert_eq!(error.error_code, 5),
            other => panic!("{other:?}"),
        }
    }
}
