//! Flow control in both directions, and whose turn it is to send.

use bytes::Bytes;

use super::*;

fn data_bytes(events: &[Event]) -> usize {
    let data = events.iter().filter_map(|event| match event {
        Event::Data { data, .. } => Some(data.len()),
        _ => None,
    });
    data.sum()
}

#[test]
fn a_sender_stops_at_the_window_and_goes_on_when_it_opens() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client
        .send_data(id, Bytes::from(vec![0; 100_000]), true)
        .unwrap();
    pair.exchange();
    let events = take_events(&mut pair.server);
    assert_eq!(data_bytes(&events), 65_535);
    assert_eq!(pair.client.queued_bytes(id), 100_000 - 65_535);
    // Only what was consumed may be sent again.
    pair.exchange();
    assert_eq!(data_bytes(&take_events(&mut pair.server)), 0);
    pair.server.consume(id, 65_535);
    pair.exchange();
    let events = take_events(&mut pair.server);
    assert_eq!(data_bytes(&events), 100_000 - 65_535);
    assert!(matches!(
        events.last(),
        Some(Event::Data { is_end: true, .. })
    ));
}

#[test]
fn trailers_wait_for_all_data_but_need_no_window() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.server.respond(id, &response_headers(), false).unwrap();
    pair.server
        .send_data(id, Bytes::from(vec![0; 65_536]), false)
        .unwrap();
    pair.server
        .send_trailers(id, vec![Header::new("a", "b")])
        .unwrap();
    pair.exchange();
    assert!(
        !take_events(&mut pair.client)
            .iter()
            .any(|event| matches!(event, Event::Trailers { .. }))
    );
    pair.client.consume(id, 65_535);
    pair.exchange();
    assert!(matches!(
        take_events(&mut pair.client)[..],
        [.., Event::Trailers { .. }, Event::Reset { .. }]
    ));
}

#[test]
fn the_connections_window_holds_all_streams_together() {
    let mut peer = Peer::new(Limits::default());
    peer.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])
        .unwrap(); // 65,536 for each stream
    for stream in [1, 3] {
        peer.open(stream).unwrap();
        peer.server
            .respond(stream, &response_headers(), false)
            .unwrap();
        peer.server
            .send_data(stream, Bytes::from(vec![0; 60_000]), true)
            .unwrap();
    }
    let sent = |output: &[u8]| -> usize {
        let frames = frames(output)
            .into_iter()
            .filter(|(kind, _, _)| *kind == kind::DATA);
        frames.map(|(_, _, payload)| payload.len()).sum()
    };
    assert_eq!(sent(&take_output(&mut peer.server)), 65_535);
    // A stream that has nothing but its end to send is not held up.
    peer.open(5).unwrap();
    peer.server.respond(5, &response_headers(), false).unwrap();
    peer.server
        .send_trailers(5, vec![Header::new("a", "b")])
        .unwrap();
    assert!(peer.resets().contains(&(5, ErrorCode::NO_ERROR)));
    peer.send(kind::WINDOW_UPDATE, 0, 0, &[0, 1, 0, 0]).unwrap();
    assert_eq!(sent(&take_output(&mut peer.server)), 120_000 - 65_535);
}

#[test]
fn streams_take_turns() {
    let mut peer = Peer::new(Limits::default());
    for stream in [1, 3] {
        peer.open(stream).unwrap();
        peer.server
            .respond(stream, &response_headers(), false)
            .unwrap();
        peer.server
            .send_data(stream, Bytes::from(vec![0; 30_000]), false)
            .unwrap();
    }
    let frames = frames(&take_output(&mut peer.server));
    let turns: Vec<u32> = frames
        .iter()
        .filter(|(kind, _, _)| *kind == kind::DATA)
        .map(|(_, stream, _)| *stream)
        .collect();
    assert_eq!(turns, [1, 3, 1, 3]);
}

#[test]
fn a_window_that_becomes_negative_is_waited_for() {
    let mut peer = Peer::new(Limits::default());
    peer.open(1).unwrap();
    peer.server.respond(1, &response_headers(), false).unwrap();
    peer.server
        .send_data(1, Bytes::from(vec![0; 10_000]), false)
        .unwrap();
    take_output(&mut peer.server);
    peer.send(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])
        .unwrap(); // none: 10,000 less than nothing
    peer.server
        .send_data(1, Bytes::from(vec![0; 10]), true)
        .unwrap();
    let data = |output: Vec<u8>| {
        frames(&output)
            .into_iter()
            .filter(|(kind, _, _)| *kind == kind::DATA)
            .count()
    };
    peer.send(kind::WINDOW_UPDATE, 0, 1, &10_000_u32.to_be_bytes())
        .unwrap();
    assert_eq!(data(take_output(&mut peer.server)), 0);
    peer.send(kind::WINDOW_UPDATE, 0, 1, &10_u32.to_be_bytes())
        .unwrap();
    assert_eq!(data(take_output(&mut peer.server)), 1);
}

#[test]
fn a_peer_that_sends_beyond_the_window_is_stopped() {
    let mut peer = Peer::new(Limits::default());
    peer.open(1).unwrap();
    for _ in 0..4 {
        peer.send(kind::DATA, 0, 1, &[0; 16_384]).unwrap();
    }
    assert_eq!(peer.resets(), [(1, ErrorCode::FLOW_CONTROL_ERROR)]);
}

#[test]
fn padding_counts_and_is_given_back() {
    let mut peer = Peer::new(Limits::default());
    peer.open(1).unwrap();
    // 200 of 201 octets are padding, far more often than the window has room.
    let mut payload = vec![0; 201];
    payload[0] = 199;
    for _ in 0..2000 {
        peer.send(kind::DATA, flag::PADDED, 1, &payload).unwrap();
    }
    assert_eq!(peer.resets(), []);
    assert_eq!(data_bytes(&take_events(&mut peer.server)), 2000);
}

#[test]
fn a_reset_forgets_what_waits() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client
        .send_data(id, Bytes::from(vec![0; 1_000_000]), false)
        .unwrap();
    pair.exchange();
    assert!(pair.client.queued_bytes_total() > 900_000);
    pair.client.reset(id, ErrorCode::CANCEL);
    assert_eq!(pair.client.queued_bytes_total(), 0);
    pair.exchange();
    assert!(matches!(
        take_events(&mut pair.server)[..],
        [
            ..,
            Event::Reset {
                code: ErrorCode::CANCEL,
                ..
            }
        ]
    ));
}

#[test]
fn a_drained_stream_is_reported() {
    let mut pair = Pair::new();
    let id = pair.open();
    pair.client
        .send_data(id, Bytes::from(vec![0; SEND_BUFFER_BYTES + 40_000]), false)
        .unwrap();
    pair.exchange();
    assert_eq!(pair.client.next_drained(), Some(id));
    assert_eq!(pair.client.next_drained(), None);
}
