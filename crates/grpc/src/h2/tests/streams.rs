//! Streams from their beginning to their end, in both roles.

use super::*;

#[test]
fn a_call_goes_there_and_back() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client.send_data(id, "question".into(), true).unwrap();
    pair.exchange();
    assert!(matches!(
        take_events(&mut pair.server)[..],
        [Event::Data { is_end: true, .. }]
    ));
    pair.server.respond(id, &response_headers(), false).unwrap();
    pair.server.send_data(id, "answer".into(), false).unwrap();
    pair.server
        .send_trailers(id, vec![Header::new("grpc-status", "0")])
        .unwrap();
    pair.exchange();
    let events = take_events(&mut pair.client);
    assert!(
        matches!(
            events[..],
            [
                Event::Headers { .. },
                Event::Data { .. },
                Event::Trailers { .. }
            ]
        ),
        "{events:?}"
    );
    assert_eq!(
        (pair.client.open_streams(), pair.server.open_streams()),
        (0, 0)
    );
}

#[test]
fn a_client_opens_no_more_streams_than_the_server_allows() {
    let mut pair = Pair::with_limits(Limits {
        concurrent_streams_max: 1,
        ..Limits::default()
    });
    let id = pair.open();
    assert_eq!(
        pair.client.open(&request_headers(), false),
        Err(ActionError::TooManyStreams)
    );
    pair.server.respond(id, &response_headers(), true).unwrap();
    pair.exchange();
    let events = take_events(&mut pair.client);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::StreamsAvailable)),
        "{events:?}"
    );
    assert!(pair.client.can_open());
}

#[test]
fn a_client_that_has_used_its_last_stream_number_needs_another_connection() {
    let mut pair = Pair::new();
    pair.client.use_up_streams();
    assert!(!pair.client.is_going_away());
    pair.open();
    assert!(pair.client.is_going_away());
    assert_eq!(
        pair.client.open(&request_headers(), false),
        Err(ActionError::NoMoreStreams)
    );
}

#[test]
fn goaway_lets_open_streams_end_and_refuses_later_ones() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.server.announce_go_away();
    pair.exchange();
    assert_eq!(
        pair.client.open(&request_headers(), false),
        Err(ActionError::NoMoreStreams)
    );
    // One that was on its way is still taken, until the second GOAWAY.
    pair.server.go_away(ErrorCode::NO_ERROR, "");
    pair.server.respond(id, &response_headers(), true).unwrap();
    pair.exchange();
    let events = take_events(&mut pair.client);
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Headers { .. })),
        "{events:?}"
    );
}

#[test]
fn streams_that_the_server_has_not_seen_come_back_refused() {
    let mut pair = Pair::new();
    pair.server.go_away(ErrorCode::NO_ERROR, "");
    let id = pair.client.open(&request_headers(), true).unwrap();
    pair.exchange();
    let events = take_events(&mut pair.client);
    let refused = |event: &Event| matches!(event, Event::Reset { stream, code: ErrorCode::REFUSED_STREAM } if *stream == id);
    assert!(events.iter().any(refused), "{events:?}");
    assert_eq!(pair.client.open_streams(), 0);
}

#[test]
fn what_was_on_its_way_when_a_stream_was_reset_is_ignored() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client.send_data(id, "late".into(), false).unwrap();
    pair.client
        .send_trailers(id, vec![Header::new("also", "late")])
        .unwrap();
    pair.server.reset(id, ErrorCode::CANCEL);
    pair.exchange();
    assert!(matches!(take_events(&mut pair.server)[..], []));
    assert!(pair.server.error().is_none());
}

#[test]
fn a_client_may_reset_more_streams_than_it_remembers() {
    let mut pair = Pair::with_limits(Limits {
        concurrent_streams_max: 300,
        ..Limits::default()
    });
    let ids: Vec<u32> = (0..300).map(|_| pair.open()).collect();
    // The answers are on their way.
    for id in &ids {
        pair.server
            .respond(*id, &response_headers(), false)
            .unwrap();
        pair.server.send_data(*id, "a".into(), false).unwrap();
        pair.server.send_trailers(*id, Vec::new()).unwrap();
        pair.client.reset(*id, ErrorCode::CANCEL);
    }
    pair.exchange();
    assert_eq!(pair.client.error(), None);
    pair.open();
}

/// What a client makes of frames of a server that no server of ours would send.
fn client_receives(frames: &[(u8, u8, u32, &[u8])]) -> (Result<(), ConnectionError>, Vec<Event>) {
    let mut client = Connection::new(Role::Client, Limits::default());
    client.open(&request_headers(), true).unwrap();
    let mut octets = Vec::new();
    frame::put(&mut octets, kind::SETTINGS, 0, 0, &[]);
    for (kind, flags, stream, payload) in frames {
        frame::put(&mut octets, *kind, *flags, *stream, payload);
    }
    let result = client.receive(&octets, Instant::now());
    (result, take_events(&mut client))
}

#[test]
fn informational_responses_are_passed_over() {
    let informational = [0x08, 0x03, b'1', b'0', b'3']; // :status 103
    let (result, events) = client_receives(&[
        (kind::HEADERS, flag::END_HEADERS, 1, &informational),
        (
            kind::HEADERS,
            flag::END_HEADERS | flag::END_STREAM,
            1,
            &[0x88],
        ),
    ]);
    result.unwrap();
    assert!(
        matches!(
            events[..],
            [Event::Ready, Event::Headers { is_end: true, .. }]
        ),
        "{events:?}"
    );
    // One that claims to be all of the response is malformed.
    let flags = flag::END_HEADERS | flag::END_STREAM;
    let (_, events) = client_receives(&[(kind::HEADERS, flags, 1, &informational)]);
    assert!(
        matches!(
            events[..],
            [
                Event::Ready,
                Event::Reset {
                    code: ErrorCode::PROTOCOL_ERROR,
                    ..
                }
            ]
        ),
        "{events:?}"
    );
}

#[test]
fn a_server_pushes_nothing_and_answers_no_request_that_was_not_made() {
    for (kind, stream) in [
        (kind::PUSH_PROMISE, 1),
        (kind::HEADERS, 2),
        (kind::HEADERS, 3),
        (kind::DATA, 3),
    ] {
        let (result, _) =
            client_receives(&[(kind, flag::END_HEADERS, stream, &[0, 0, 0, 2, 0x88])]);
        assert_eq!(
            result.unwrap_err().code,
            ErrorCode::PROTOCOL_ERROR,
            "{kind} on {stream}"
        );
    }
}

#[test]
fn content_before_the_header_list_is_malformed() {
    let (_, events) = client_receives(&[(kind::DATA, 0, 1, b"early")]);
    assert!(
        matches!(
            events[..],
            [
                Event::Ready,
                Event::Reset {
                    code: ErrorCode::PROTOCOL_ERROR,
                    ..
                }
            ]
        ),
        "{events:?}"
    );
}

#[test]
fn a_stream_cannot_be_answered_twice() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.server.respond(id, &response_headers(), true).unwrap();
    assert_eq!(
        pair.server.respond(id, &response_headers(), true),
        Err(ActionError::StreamClosed)
    );
    assert_eq!(
        pair.server.send_data(id, "x".into(), true),
        Err(ActionError::StreamClosed)
    );
    assert_eq!(
        pair.server.send_trailers(id, Vec::new()),
        Err(ActionError::StreamClosed)
    );
}
