//! One test for each limit: what is beyond it gets the error that the RFC asks for.

use std::time::Duration;

use super::*;

#[test]
fn a_stream_too_many_is_refused_and_the_others_go_on() {
    let mut peer = Peer::new(Limits {
        concurrent_streams_max: 2,
        ..Limits::default()
    });
    for stream in [1, 3, 5] {
        peer.open(stream).unwrap();
    }
    assert_eq!(peer.resets(), [(5, ErrorCode::REFUSED_STREAM)]);
    assert_eq!(peer.server.open_streams(), 2);
    peer.server.respond(1, &response_headers(), true).unwrap();
    peer.open(7).unwrap();
    assert_eq!(peer.resets(), [(1, ErrorCode::NO_ERROR)]);
}

#[test]
fn a_header_list_too_large_ends_its_stream_alone() {
    let mut peer = Peer::new(Limits {
        header_list_bytes_max: 1000,
        ..Limits::default()
    });
    let mut headers = request_headers();
    headers.push(Header::new("a", "x".repeat(1000)));
    peer.send_headers(1, &headers, flag::END_HEADERS).unwrap();
    assert_eq!(peer.resets(), [(1, ErrorCode::ENHANCE_YOUR_CALM)]);
    peer.open(3).unwrap();
    assert!(matches!(
        take_events(&mut peer.server)[..],
        [.., Event::Headers { stream: 3, .. }]
    ));
}

#[test]
fn a_header_block_without_end_ends_the_connection() {
    let mut peer = Peer::new(Limits {
        continuation_frames_max: 3,
        ..Limits::default()
    });
    peer.send_headers(1, &request_headers(), 0).unwrap();
    for _ in 0..3 {
        peer.send(kind::CONTINUATION, 0, 1, &[]).unwrap();
    }
    let error = peer.send(kind::CONTINUATION, 0, 1, &[]).unwrap_err();
    assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM);

    let mut peer = Peer::new(Limits {
        header_list_bytes_max: 1000,
        ..Limits::default()
    });
    let error = peer.send(kind::HEADERS, 0, 1, &[0x40; 2001]).unwrap_err();
    assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM);
}

#[test]
fn floods_of_frames_that_carry_nothing_end_the_connection() {
    let floods: [(&str, u8, u8, u32, &[u8]); 7] = [
        ("SETTINGS", kind::SETTINGS, 0, 0, &[]),
        ("PING", kind::PING, 0, 0, &[0; 8]),
        ("WINDOW_UPDATE", kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ("PRIORITY", kind::PRIORITY, 0, 1, &[0; 5]),
        ("empty DATA", kind::DATA, 0, 1, &[]),
        ("an unknown type", 0xfa, 0, 0, &[]),
        ("GOAWAY", kind::GOAWAY, 0, 0, &[0; 8]),
    ];
    for (name, kind, flags, stream, payload) in floods {
        let mut peer = Peer::new(Limits {
            control_frames_burst: 100,
            ..Limits::default()
        });
        peer.open(1).unwrap();
        let sent = (0..1000)
            .take_while(|_| peer.send(kind, flags, stream, payload).is_ok())
            .count();
        assert!((90..110).contains(&sent), "{sent} of {name}");
        assert_eq!(
            peer.server.error().unwrap().code,
            ErrorCode::ENHANCE_YOUR_CALM,
            "{name}"
        );
        assert!(take_output(&mut peer.server).len() < 5000, "{name}");
    }
}

#[test]
fn a_frame_of_many_settings_ends_the_connection() {
    let mut peer = Peer::new(Limits::default());
    // Each entry costs a look at every stream.
    let entries = [[0, 4, 0, 0, 0, 0], [0, 4, 0, 0, 0, 9]]
        .concat()
        .repeat(1365);
    let error = peer.send(kind::SETTINGS, 0, 0, &entries).unwrap_err();
    assert_eq!(error.code, ErrorCode::ENHANCE_YOUR_CALM);
}

#[test]
fn frames_in_proportion_to_data_are_no_flood() {
    let mut peer = Peer::new(Limits {
        control_frames_burst: 100,
        ..Limits::default()
    });
    peer.open(1).unwrap();
    for _ in 0..1000 {
        peer.send(kind::DATA, 0, 1, &[0; 10]).unwrap();
        peer.server.consume(1, 10);
        for _ in 0..5 {
            peer.send(kind::PING, 0, 0, &[0; 8]).unwrap();
        }
        take_output(&mut peer.server);
    }
}

#[test]
fn rapid_reset_ends_the_connection() {
    let mut peer = Peer::new(Limits {
        resets_burst: 50,
        ..Limits::default()
    });
    let opened = (0..1000).take_while(|number| {
        let stream = number * 2 + 1;
        peer.open(stream).is_ok()
            && peer
                .send(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])
                .is_ok()
    });
    assert_eq!(opened.count(), 50);
    assert_eq!(
        peer.server.error().unwrap().code,
        ErrorCode::ENHANCE_YOUR_CALM
    );
}

#[test]
fn a_client_that_makes_the_server_reset_its_streams_is_no_better() {
    let mut peer = Peer::new(Limits {
        resets_burst: 50,
        ..Limits::default()
    });
    let opened = (0..1000).take_while(|number| {
        let stream = number * 2 + 1;
        peer.open(stream).is_ok() && peer.send(kind::WINDOW_UPDATE, 0, stream, &[0; 4]).is_ok()
    });
    assert_eq!(opened.count(), 50);
    assert_eq!(
        peer.server.error().unwrap().code,
        ErrorCode::ENHANCE_YOUR_CALM
    );
}

#[test]
fn resets_of_streams_that_were_answered_are_a_clients_right() {
    let mut peer = Peer::new(Limits {
        resets_burst: 50,
        ..Limits::default()
    });
    for number in 0..1000 {
        let stream = number * 2 + 1;
        peer.open(stream).unwrap();
        peer.server
            .respond(stream, &response_headers(), true)
            .unwrap();
        take_output(&mut peer.server);
        peer.send(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])
            .unwrap();
    }
}

#[test]
fn slow_resets_are_a_clients_right() {
    let mut peer = Peer::new(Limits {
        resets_burst: 50,
        resets_per_second: 10,
        ..Limits::default()
    });
    for number in 0..200 {
        let stream = number * 2 + 1;
        peer.open(stream).unwrap();
        peer.send(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])
            .unwrap();
        peer.now += Duration::from_millis(110);
    }
}

#[test]
fn a_frame_too_large_is_refused_before_it_is_read() {
    let mut peer = Peer::new(Limits::default());
    let mut octets = Vec::new();
    frame::put_header(&mut octets, 16_385, kind::DATA, 0, 1);
    let error = peer.server.receive(&octets, peer.now).unwrap_err();
    assert_eq!(error.code, ErrorCode::FRAME_SIZE_ERROR);
}

#[test]
fn what_a_peer_says_about_header_lists_is_kept() {
    let mut peer = Peer::new(Limits::default());
    peer.send(kind::SETTINGS, 0, 0, &[0, 6, 0, 0, 0, 100])
        .unwrap();
    peer.open(1).unwrap();
    let long = [
        Header::new(":status", "200"),
        Header::new("a", "x".repeat(100)),
    ];
    assert_eq!(
        peer.server.respond(1, &long, false),
        Err(ActionError::HeadersTooLarge)
    );
    assert_eq!(peer.server.respond(1, &response_headers(), true), Ok(()));
}
