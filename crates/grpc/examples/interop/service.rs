//! The service's methods.

use std::thread;
use std::time::Duration;

use tbd_grpc::server::{Requests, Responses};
use tbd_grpc::{Call, Code, Router, Status};

use super::*;

/// The methods of the test service.
pub fn router() -> Router {
    let mut router = Router::new();
    router.unary(EMPTY_CALL, |_, request| Ok(request));
    router.unary(UNARY_CALL, unary_call);
    router.server_streaming(STREAMING_OUTPUT_CALL, |call, request, mut responses| {
        stream(call, &request, &mut responses)
    });
    router.client_streaming(STREAMING_INPUT_CALL, streaming_input_call);
    router.bidirectional(FULL_DUPLEX_CALL, full_duplex_call);
    router
}

fn unary_call(call: &Call, request: SimpleRequest) -> Result<SimpleResponse, Status> {
    echo_metadata(call)?;
    check_compression(call, request.expect_compressed.as_ref())?;
    call.compress(
        request
            .response_compressed
            .is_some_and(|compressed| compressed.value),
    );
    check_status(request.response_status.as_ref())?;
    Ok(SimpleResponse {
        payload: Some(payload(size(request.response_size)?)),
    })
}

/// The request says whether it came compressed.
fn check_compression(call: &Call, expected: Option<&BoolValue>) -> Result<(), Status> {
    match expected {
        Some(expected) if expected.value && !call.is_request_compressed() => Err(Status::new(
            Code::InvalidArgument,
            "the request is not compressed",
        )),
        _ => Ok(()),
    }
}

fn streaming_input_call(
    _: &Call,
    mut requests: Requests<'_, StreamingInputCallRequest>,
) -> Result<StreamingInputCallResponse, Status> {
    let mut sum = 0;
    while let Some((request, is_compressed)) = requests.next_with_flag()? {
        if request
            .expect_compressed
            .is_some_and(|expected| expected.value != is_compressed)
        {
            return Err(Status::new(
                Code::InvalidArgument,
                "a message is not compressed as it says",
            ));
        }
        sum += request.payload.map_or(0, |payload| payload.body.len());
    }
    Ok(StreamingInputCallResponse {
        aggregated_payload_size: i32::try_from(sum).unwrap_or(i32::MAX),
    })
}

fn full_duplex_call(
    call: &Call,
    requests: Requests<'_, StreamingOutputCallRequest>,
    mut responses: Responses<'_, StreamingOutputCallResponse>,
) -> Result<(), Status> {
    echo_metadata(call)?;
    for request in requests {
        let request = request?;
        check_status(request.response_status.as_ref())?;
        stream(call, &request, &mut responses)?;
    }
    Ok(())
}

fn stream(
    call: &Call,
    request: &StreamingOutputCallRequest,
    responses: &mut Responses<'_, StreamingOutputCallResponse>,
) -> Result<(), Status> {
    for parameters in &request.response_parameters {
        thread::sleep(Duration::from_micros(
            parameters.interval_us.try_into().unwrap_or(0),
        ));
        if let Some(compressed) = &parameters.compressed {
            call.compress(compressed.value);
        }
        responses.send(&StreamingOutputCallResponse {
            payload: Some(payload(size(parameters.size)?)),
        })?;
    }
    Ok(())
}

fn echo_metadata(call: &Call) -> Result<(), Status> {
    let invalid =
        |error: &dyn std::fmt::Display| Status::new(Code::InvalidArgument, error.to_string());
    let mut result = Ok(());
    if let Some(value) = call.metadata().text(INITIAL_KEY) {
        call.headers(|headers| result = headers.insert_text(INITIAL_KEY, value));
    }
    if let Some(value) = call.metadata().bytes(TRAILING_KEY) {
        call.trailers(|trailers| result = trailers.insert_bytes(TRAILING_KEY, value.to_vec()));
    }
    result.map_err(|error| invalid(&error))
}

fn check_status(status: Option<&EchoStatus>) -> Result<(), Status> {
    match status {
        Some(status) if status.code != 0 => Err(Status::new(
            Code::from_number(status.code.into()),
            &status.message,
        )),
        _ => Ok(()),
    }
}

fn size(size: i32) -> Result<usize, Status> {
    usize::try_from(size).map_err(|_| Status::new(Code::InvalidArgument, "a negative size"))
}
