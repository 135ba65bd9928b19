//! The suite's cases.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/interop-test-descriptions.md> says what each of them shows.

use std::error::Error;
use std::fmt::Debug;
use std::time::Duration;

use tbd_deadline::Deadline;
use tbd_grpc::{Channel, Code, Metadata, Method, Status};

use super::*;

/// What a case comes to.
pub type Outcome = Result<(), Box<dyn Error>>;
/// A case: calls, and what has to come back.
pub type Case = fn(&Channel) -> Outcome;

/// All cases, by name.
pub const CASES: [(&str, Case); 16] = [
    ("empty_unary", empty_unary),
    ("large_unary", large_unary),
    ("client_streaming", client_streaming),
    ("server_streaming", server_streaming),
    ("ping_pong", ping_pong),
    ("empty_stream", empty_stream),
    ("client_compressed_unary", client_compressed_unary),
    ("server_compressed_unary", server_compressed_unary),
    ("custom_metadata", custom_metadata),
    ("status_code_and_message", status_code_and_message),
    ("special_status_message", special_status_message),
    ("unimplemented_method", unimplemented_method),
    ("unimplemented_service", unimplemented_service),
    ("timeout_on_sleeping_server", timeout_on_sleeping_server),
    ("cancel_after_begin", cancel_after_begin),
    ("cancel_after_first_response", cancel_after_first_response),
];

fn expect<T: PartialEq + Debug>(what: &str, found: T, expected: T) -> Outcome {
    if found == expected {
        Ok(())
    } else {
        Err(format!("{what}: {found:?} instead of {expected:?}").into())
    }
}

fn expect_status<T>(result: Result<T, Status>, code: Code) -> Result<Status, Box<dyn Error>> {
    match result {
        Ok(_) => Err(format!("success instead of {code}").into()),
        Err(status) => {
            expect("status", status.code(), code)?;
            Ok(status)
        }
    }
}

fn length(payload: Option<&Payload>) -> usize {
    payload.map_or(0, |payload| payload.body.len())
}

/// A request of 271,828 bytes for a response of 314,159.
pub fn large_request() -> SimpleRequest {
    SimpleRequest {
        response_size: 314_159,
        payload: Some(payload(271_828)),
        ..SimpleRequest::default()
    }
}

fn output_request(sizes: &[i32], request_size: usize) -> StreamingOutputCallRequest {
    let parameters = sizes.iter().map(|size| ResponseParameters {
        size: *size,
        ..ResponseParameters::default()
    });
    StreamingOutputCallRequest {
        response_parameters: parameters.collect(),
        payload: Some(payload(request_size)),
        ..StreamingOutputCallRequest::default()
    }
}

fn empty_unary(channel: &Channel) -> Outcome {
    expect(
        "response",
        channel.call(EMPTY_CALL).send(&Empty {})?,
        Empty {},
    )
}

fn large_unary(channel: &Channel) -> Outcome {
    let response = channel.call(UNARY_CALL).send(&large_request())?;
    expect("size", length(response.payload.as_ref()), 314_159)
}

fn client_streaming(channel: &Channel) -> Outcome {
    let (mut sending, receiving) = channel.call(STREAMING_INPUT_CALL).open()?;
    for size in [27_182, 8, 1_828, 45_904] {
        sending.send(&StreamingInputCallRequest {
            payload: Some(payload(size)),
            expect_compressed: None,
        })?;
    }
    sending.finish();
    expect(
        "sum",
        receiving.only_message()?.aggregated_payload_size,
        74_922,
    )
}

const SIZES: [i32; 4] = [31_415, 9, 2_653, 58_979];

fn server_streaming(channel: &Channel) -> Outcome {
    let receiving = channel
        .call(STREAMING_OUTPUT_CALL)
        .send_for_stream(&output_request(&SIZES, 0))?;
    let mut sizes = Vec::new();
    for response in receiving {
        sizes.push(i32::try_from(length(response?.payload.as_ref()))?);
    }
    expect("sizes", sizes, SIZES.to_vec())
}

fn ping_pong(channel: &Channel) -> Outcome {
    let (mut sending, mut receiving) = channel.call(FULL_DUPLEX_CALL).open()?;
    for (request_size, size) in [27_182, 8, 1_828, 45_904].into_iter().zip(SIZES) {
        sending.send(&output_request(&[size], request_size))?;
        let response = receiving.next_message()?.ok_or("the response has ended")?;
        expect("size", length(response.payload.as_ref()), size.try_into()?)?;
    }
    sending.finish();
    expect("end", receiving.next_message()?, None)
}

fn empty_stream(channel: &Channel) -> Outcome {
    let (sending, mut receiving) = channel.call(FULL_DUPLEX_CALL).open()?;
    sending.finish();
    expect("end", receiving.next_message()?, None)
}

fn client_compressed_unary(channel: &Channel) -> Outcome {
    let request = |compressed| SimpleRequest {
        expect_compressed: Some(BoolValue { value: compressed }),
        ..large_request()
    };
    // The probe: a server that believes what is said, and does not look, cannot be tested.
    expect_status(
        channel.call(UNARY_CALL).send(&request(true)),
        Code::InvalidArgument,
    )?;
    for compressed in [true, false] {
        let mut call = channel.call(UNARY_CALL);
        if compressed {
            call = call.gzip();
        }
        expect(
            "size",
            length(call.send(&request(compressed))?.payload.as_ref()),
            314_159,
        )?;
    }
    Ok(())
}

/// Responses come compressed or not, as the request asks.
pub fn server_compressed_unary(channel: &Channel) -> Outcome {
    for compressed in [true, false] {
        let response_compressed = Some(BoolValue { value: compressed });
        let request = SimpleRequest {
            response_compressed,
            ..large_request()
        };
        let response = channel.call(UNARY_CALL).send_for_response(&request)?;
        expect("compression", response.is_compressed, compressed)?;
        expect("size", length(response.message.payload.as_ref()), 314_159)?;
    }
    Ok(())
}

fn custom_metadata(channel: &Channel) -> Outcome {
    let mut metadata = Metadata::new();
    metadata.insert_text(INITIAL_KEY, "test_initial_metadata_value")?;
    metadata.insert_bytes(TRAILING_KEY, vec![0xab; 3])?;
    let check = |headers: &Metadata, trailers: &Metadata| {
        expect(
            "header",
            headers.text(INITIAL_KEY),
            Some("test_initial_metadata_value"),
        )?;
        expect(
            "trailer",
            trailers.bytes(TRAILING_KEY),
            Some(&[0xab; 3][..]),
        )
    };
    let request = SimpleRequest {
        response_size: 314_159,
        payload: Some(payload(271_828)),
        ..Default::default()
    };
    let response = channel
        .call(UNARY_CALL)
        .metadata(metadata.clone())
        .send_for_response(&request)?;
    check(&response.headers, &response.trailers)?;
    let (mut sending, mut receiving) = channel.call(FULL_DUPLEX_CALL).metadata(metadata).open()?;
    sending.send(&output_request(&[314_159], 271_828))?;
    sending.finish();
    let headers = receiving.headers()?.clone();
    while receiving.next_message()?.is_some() {}
    check(&headers, receiving.trailers().ok_or("no trailers")?)
}

fn status_code_and_message(channel: &Channel) -> Outcome {
    let echo = || {
        Some(EchoStatus {
            code: 2,
            message: "test status message".to_owned(),
        })
    };
    let request = SimpleRequest {
        response_status: echo(),
        ..SimpleRequest::default()
    };
    let status = expect_status(channel.call(UNARY_CALL).send(&request), Code::Unknown)?;
    expect("message", status.message(), "test status message")?;
    let (mut sending, mut receiving) = channel.call(FULL_DUPLEX_CALL).open()?;
    sending.send(&StreamingOutputCallRequest {
        response_status: echo(),
        ..Default::default()
    })?;
    sending.finish();
    let status = expect_status(receiving.next_message(), Code::Unknown)?;
    expect("message", status.message(), "test status message")
}

fn special_status_message(channel: &Channel) -> Outcome {
    let text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
    let response_status = Some(EchoStatus {
        code: 2,
        message: text.to_owned(),
    });
    let request = SimpleRequest {
        response_status,
        ..SimpleRequest::default()
    };
    let status = expect_status(channel.call(UNARY_CALL).send(&request), Code::Unknown)?;
    expect("message", status.message(), text)
}

fn unimplemented_method(channel: &Channel) -> Outcome {
    expect_status(
        channel.call(UNIMPLEMENTED_CALL).send(&Empty {}),
        Code::Unimplemented,
    )
    .map(|_| ())
}

fn unimplemented_service(channel: &Channel) -> Outcome {
    const METHOD: Method<Empty, Empty> =
        Method::new("/grpc.testing.UnimplementedService/UnimplementedCall");
    expect_status(channel.call(METHOD).send(&Empty {}), Code::Unimplemented).map(|_| ())
}

fn timeout_on_sleeping_server(channel: &Channel) -> Outcome {
    let deadline = Deadline::after(Duration::from_millis(1));
    let opened = channel.call(FULL_DUPLEX_CALL).deadline(deadline).open();
    let result = opened.and_then(|(mut sending, mut receiving)| {
        // The deadline may be faster than the message, to which the server has no answer.
        let _ = sending.send(&output_request(&[], 27_182));
        receiving.next_message()
    });
    expect_status(result, Code::DeadlineExceeded).map(|_| ())
}

fn cancel_after_begin(channel: &Channel) -> Outcome {
    let (sending, receiving) = channel.call(STREAMING_INPUT_CALL).open()?;
    receiving.canceller().cancel();
    expect_status(receiving.only_message(), Code::Cancelled)?;
    drop(sending);
    Ok(())
}

fn cancel_after_first_response(channel: &Channel) -> Outcome {
    let (mut sending, mut receiving) = channel.call(FULL_DUPLEX_CALL).open()?;
    sending.send(&output_request(&[31_415], 27_182))?;
    let response = receiving.next_message()?.ok_or("the response has ended")?;
    expect("size", length(response.payload.as_ref()), 31_415)?;
    receiving.canceller().cancel();
    expect_status(receiving.next_message(), Code::Cancelled).map(|_| ())
}
