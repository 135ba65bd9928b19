//! The state machine, driven by octets: what h2spec does not ask (limits, both roles, flow control in both directions).

mod flow;
mod limits;
mod streams;

use std::time::Instant;

use proptest::prelude::*;

use super::frame::{self, flag, kind};
use super::*;
use crate::hpack::{Encoder, Header};

fn request_headers() -> Vec<Header> {
    let pairs = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a"),
        (":authority", "b"),
    ];
    pairs.map(|(name, value)| Header::new(name, value)).to_vec()
}

fn response_headers() -> Vec<Header> {
    vec![Header::new(":status", "200")]
}

/// Takes all output of a connection.
fn take_output(connection: &mut Connection) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let output = connection.output().to_vec();
        if output.is_empty() {
            return all;
        }
        connection.sent(output.len());
        all.extend_from_slice(&output);
    }
}

fn take_events(connection: &mut Connection) -> Vec<Event> {
    std::iter::from_fn(|| connection.next_event()).collect()
}

/// Two ends of a connection, whose octets are handed over until both are quiet.
struct Pair {
    client: Connection,
    server: Connection,
}

impl Pair {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        let client = Connection::new(Role::Client, Limits::default());
        let mut pair = Self {
            client,
            server: Connection::new(Role::Server, limits),
        };
        pair.exchange();
        take_events(&mut pair.client);
        take_events(&mut pair.server);
        pair
    }

    fn exchange(&mut self) {
        let now = Instant::now();
        loop {
            let (to_server, to_client) =
                (take_output(&mut self.client), take_output(&mut self.server));
            if to_server.is_empty() && to_client.is_empty() {
                return;
            }
            self.server.receive(&to_server, now).unwrap();
            self.client.receive(&to_client, now).unwrap();
        }
    }

    fn open(&mut self) -> u32 {
        let id = self.client.open(&request_headers(), false).unwrap();
        self.exchange();
        take_events(&mut self.server);
        id
    }
}

/// A server past its handshake, for frames that no client of ours would send.
struct Peer {
    server: Connection,
    encoder: Encoder,
    now: Instant,
}

impl Peer {
    fn new(limits: Limits) -> Self {
        let mut peer = Self {
            server: Connection::new(Role::Server, limits),
            encoder: Encoder::new(),
            now: Instant::now(),
        };
        peer.server.receive(frame::PREFACE, peer.now).unwrap();
        peer.send(kind::SETTINGS, 0, 0, &[]).unwrap();
        take_output(&mut peer.server);
        take_events(&mut peer.server);
        peer
    }

    fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Result<(), ConnectionError> {
        let mut octets = Vec::new();
        frame::put(&mut octets, kind, flags, stream, payload);
        self.server.receive(&octets, self.now)
    }

    fn open(&mut self, stream: u32) -> Result<(), ConnectionError> {
        self.send_headers(stream, &request_headers(), flag::END_HEADERS)
    }

    fn send_headers(
        &mut self,
        stream: u32,
        headers: &[Header],
        flags: u8,
    ) -> Result<(), ConnectionError> {
        let mut block = Vec::new();
        self.encoder.encode(headers, &mut block);
        self.send(kind::HEADERS, flags, stream, &block)
    }

    /// The error codes of the RST_STREAM frames in the output, each with its stream.
    fn resets(&mut self) -> Vec<(u32, ErrorCode)> {
        let frames = frames(&take_output(&mut self.server));
        let resets = frames
            .into_iter()
            .filter(|(kind, _, _)| *kind == kind::RST_STREAM);
        resets
            .map(|(_, stream, payload)| {
                (
                    stream,
                    ErrorCode(u32::from_be_bytes(payload.try_into().unwrap())),
                )
            })
            .collect()
    }
}

/// The frames of an output: type, stream, payload.
fn frames(mut octets: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut all = Vec::new();
    while let Some((frame, rest)) = frame::Frame::decode(octets).unwrap() {
        all.push((frame.kind, frame.stream, frame.payload.to_vec()));
        octets = rest;
    }
    all
}

/// A conversation, as a server receives it.
fn conversation() -> Vec<u8> {
    let mut client = Connection::new(Role::Client, Limits::default());
    for _ in 0..3 {
        let id = client.open(&request_headers(), false).unwrap();
        client
            .send_data(id, bytes::Bytes::from(vec![7; 20_000]), false)
            .unwrap();
        client
            .send_trailers(id, vec![Header::new("a", "b")])
            .unwrap();
        client.ping(*b"12345678");
    }
    take_output(&mut client)
}

fn events_of(pieces: &[&[u8]]) -> Result<Vec<String>, ConnectionError> {
    let mut server = Connection::new(Role::Server, Limits::default());
    let now = Instant::now();
    for piece in pieces {
        server.receive(piece, now)?;
    }
    Ok(take_events(&mut server)
        .iter()
        .map(|event| format!("{event:?}"))
        .collect())
}

#[test]
fn octets_mean_the_same_however_they_are_cut() {
    let octets = conversation();
    let whole = events_of(&[&octets]).unwrap();
    assert!(whole.len() > 9, "{whole:?}");
    for size in [1, 2, 9, 10, 1000, 16_384] {
        let pieces: Vec<&[u8]> = octets.chunks(size).collect();
        assert_eq!(events_of(&pieces).unwrap(), whole, "{size}");
    }
}

#[test]
fn another_protocol_is_refused_at_its_first_octets() {
    for octets in [
        &b"GET / HTTP/1.1\r\n"[..],
        &[0x16, 3, 1, 0, 200],
        b"PRI * HTTP/2.0\r\n\r\nXX",
    ] {
        let error = Connection::new(Role::Server, Limits::default())
            .receive(octets, Instant::now())
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::PROTOCOL_ERROR);
    }
}

proptest! {
    #[test]
    fn damaged_octets_never_panic_nor_make_much_output(
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut octets = conversation();
        for (at, value) in damage {
            let at = at.index(octets.len());
            octets[at] = value;
        }
        let mut server = Connection::new(Role::Server, Limits::default());
        let result = server.receive(&octets, Instant::now());
        take_events(&mut server);
        prop_assert!(take_output(&mut server).len() < 10_000);
        prop_assert_eq!(result.is_err(), server.error().is_some());
        // After an error nothing more is taken.
        prop_assert_eq!(server.receive(&[], Instant::now()).is_err(), result.is_err());
    }
}
