//! The fuzz targets: each has a name and a function over bytes. A target may refuse bytes. It may not
//! panic, hang, or take memory that the bytes do not justify.
//!
//! Shared by the fuzzer (`fuzz/`, for any length of time: `make fuzz`) and by `tests/fuzz` (each test
//! run).

use bytes::Bytes;
use tbd::orders::adapters::http::{cursor, parse_list_query, parse_new_order};
use tbd::orders::adapters::kafka::created_order;
use tbd::orders::ports::IdempotencyKey;
use tbd_grpc::h2::{Connection, Event, Limits, Role};
use tbd_grpc::hpack::{Decoder, Encoder, Header, ListSize};
use tbd_kafka::internals::{self, Subscription, decode_assignment};
use tbd_kafka::internals::{next_batch, whole_batches};
use tbd_telemetry::tracing::{deserialize, extract, serialize};

/// The function over the bytes.
pub type Target = fn(&[u8]);

/// The target of that name.
pub fn find(name: &str) -> Option<Target> {
    ALL.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
}

/// Every target, by name: one for each answer that the Kafka client decodes and for each part of one
/// that it decodes itself, one for each input from an HTTP client, and one for events.
pub const ALL: &[(&str, Target)] = &[
    ("http_new_order", http_new_order),
    ("http_list_query", http_list_query),
    ("http_idempotency_key", http_idempotency_key),
    ("traceparent", traceparent),
    ("hpack", hpack),
    ("http2_server", http2_server),
    ("http2_client", http2_client),
    ("order_event", order_event),
    ("kafka_batches", kafka_batches),
    ("kafka_subscription", kafka_subscription),
    ("kafka_commit_metadata", kafka_commit_metadata),
    ("kafka_scram", kafka_scram),
    ("kafka_produce", answer::<0>),
    ("kafka_fetch", answer::<1>),
    ("kafka_list_offsets", answer::<2>),
    ("kafka_metadata", answer::<3>),
    ("kafka_offset_commit", answer::<8>),
    ("kafka_offset_fetch", answer::<9>),
    ("kafka_find_coordinator", answer::<10>),
    ("kafka_join_group", answer::<11>),
    ("kafka_heartbeat", answer::<12>),
    ("kafka_leave_group", answer::<13>),
    ("kafka_sync_group", answer::<14>),
    ("kafka_sasl_handshake", answer::<17>),
    ("kafka_api_versions", answer::<18>),
    ("kafka_create_topics", answer::<19>),
    ("kafka_delete_topics", answer::<20>),
    ("kafka_consumer_group_heartbeat", answer::<68>),
    ("kafka_create_partitions", answer::<37>),
    ("kafka_delete_records", answer::<21>),
    ("kafka_describe_configs", answer::<32>),
    ("kafka_incremental_alter_configs", answer::<44>),
    ("kafka_list_groups", answer::<16>),
    ("kafka_describe_groups", answer::<15>),
    ("kafka_consumer_group_describe", answer::<69>),
    ("kafka_delete_groups", answer::<42>),
    ("kafka_offset_delete", answer::<47>),
    ("kafka_init_producer_id", answer::<22>),
    ("kafka_add_partitions_to_txn", answer::<24>),
    ("kafka_add_offsets_to_txn", answer::<25>),
    ("kafka_end_txn", answer::<26>),
    ("kafka_txn_offset_commit", answer::<28>),
    ("kafka_sasl_authenticate", answer::<36>),
];

/// A byte that names the version, then an answer's frame.
fn answer<const API: i16>(bytes: &[u8]) {
    let Some((&version, frame)) = bytes.split_first() else {
        return;
    };
    let (api, oldest, newest) = internals::request(API).expect("a request that we send");
    // Every byte names a supported version, so that no input is wasted.
    let version = oldest + i16::from(version) % (newest - oldest + 1);
    let _ = internals::try_decode(api, version, Bytes::copy_from_slice(frame));
}

/// A header block. Decoded headers survive encoding and decoding, and never exceed the limit.
fn hpack(bytes: &[u8]) {
    const LIST_BYTES_MAX: usize = 4096;
    let (mut decoder, mut encoder, mut peer) =
        (Decoder::new(4096), Encoder::new(), Decoder::new(4096));
    for block in [bytes, bytes] {
        let mut headers = Vec::new();
        if decoder.decode(block, LIST_BYTES_MAX, &mut headers).is_err() {
            return;
        }
        assert!(headers.iter().map(Header::size).sum::<usize>() <= LIST_BYTES_MAX);
        let (mut again, mut written) = (Vec::new(), Vec::new());
        encoder.encode(&headers, &mut written);
        let size = peer.decode(&written, LIST_BYTES_MAX, &mut again);
        assert_eq!(size, Ok(ListSize::Within));
        assert_eq!(again, headers);
    }
}

/// A client's bytes to a server that answers every request.
fn http2_server(bytes: &[u8]) {
    http2(Connection::new(Role::Server, Limits::default()), bytes);
}

/// A server's bytes to a client that waits for three responses.
fn http2_client(bytes: &[u8]) {
    let mut client = Connection::new(Role::Client, Limits::default());
    let request = [(":method", "POST"), (":scheme", "http"), (":path", "/")];
    let request = request.map(|(name, value)| Header::new(name, value));
    for _ in 0..3 {
        client.open(&request, false).expect("the first streams");
    }
    http2(client, bytes);
}

/// Drives a connection as a program would: answers, consumes, and sends pending bytes.
fn http2(mut connection: Connection, bytes: &[u8]) {
    let now = std::time::Instant::now();
    let mut output_bytes = 0;
    for piece in bytes.chunks(100) {
        let result = connection.receive(piece, now);
        while let Some(event) = connection.next_event() {
            match event {
                Event::Headers { stream, .. } => {
                    let _ = connection.respond(stream, &[Header::new(":status", "200")], false);
                    let _ = connection.send_data(stream, Bytes::from_static(&[0; 100]), false);
                    let _ = connection.send_trailers(stream, vec![Header::new("grpc-status", "0")]);
                }
                Event::Data { stream, data, .. } => connection.consume(stream, data.len()),
                _ => {}
            }
        }
        let length = connection.output().len();
        connection.sent(length);
        output_bytes += length;
        assert_eq!(result.is_err(), connection.error().is_some());
    }
    // A frame has at least nine octets, and causes at most one response.
    assert!(output_bytes <= 1000 + bytes.len() * 30, "{output_bytes}");
}

/// Record batches, as in an answer to Fetch. The checksums are corrected wherever one fits, because
/// otherwise the fuzzer would get no further.
fn kafka_batches(bytes: &[u8]) {
    let mut sealed = bytes.to_vec();
    seal(&mut sealed);
    for bytes in [bytes.to_vec(), sealed] {
        let whole = whole_batches(&bytes).map_or(-1, |whole| whole.next_offset);
        let mut input = Bytes::from(bytes);
        let mut end = -1;
        let is_walked = loop {
            let batch = match next_batch(&mut input) {
                Ok(Some(batch)) => batch,
                Ok(None) => break true,
                Err(_) => break false,
            };
            let Ok(records) = batch.records() else {
                break false;
            };
            assert!(
                records
                    .iter()
                    .all(|record| record.offset < batch.next_offset())
            );
            assert!(batch.next_offset() > end || batch.base_offset <= end);
            end = batch.next_offset();
        };
        // The consumer's next fetch offset, before it has decoded the records.
        assert!(!is_walked || end == whole, "{end} after {whole}");
    }
}

/// Corrects the checksum of each batch (Kafka protocol guide, "Record Batch").
fn seal(bytes: &mut [u8]) {
    let mut rest = bytes;
    while rest.len() >= 61 {
        let length = i32::from_be_bytes([rest[8], rest[9], rest[10], rest[11]]);
        let total = usize::try_from(length).map_or(usize::MAX, |length| length.saturating_add(12));
        if !(61..=rest.len()).contains(&total) {
            return;
        }
        let (batch, next) = rest.split_at_mut(total);
        let checksum = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&checksum.to_be_bytes());
        rest = next;
    }
}

/// Data from other members of a group: their subscription, and their leader's assignment.
fn kafka_subscription(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok(subscription) = Subscription::decode(bytes.clone()) {
        let again = Subscription::decode(subscription.encode()).expect("what we wrote ourselves");
        assert_eq!(again.topics, subscription.topics);
    }
    let _ = decode_assignment(bytes);
}

/// Metadata that any client may have stored with an offset. An accepted id is one that we write.
fn kafka_commit_metadata(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(id) = internals::from_commit_metadata(Some(&text)) {
        assert_eq!(internals::commit_metadata(Some(id)), text);
    }
}

/// A broker's two messages in a login by SCRAM, divided by a zero byte.
fn kafka_scram(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0);
    let (first, last) = bytes.split_at(end.unwrap_or(bytes.len()));
    let last = last.get(1..).unwrap_or_default();
    let _ = internals::try_scram([first, last].map(Bytes::copy_from_slice));
}

/// The body of a POST. An accepted order survives encoding and decoding.
fn http_new_order(bytes: &[u8]) {
    if let Ok((email, amount)) = parse_new_order(bytes) {
        let again =
            serde_json::json!({ "amount_cents": amount.get(), "customer_email": email.as_str() });
        assert_eq!(
            parse_new_order(again.to_string().as_bytes()),
            Ok((email, amount))
        );
    }
}

/// The query of a list, above all its cursor. An accepted cursor is one that the api can write.
fn http_list_query(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for query in [text.clone(), format!("cursor={text}").into()] {
        let Ok(list) = parse_list_query(&query) else {
            continue;
        };
        assert!((1..=100).contains(&list.page.limit));
        assert_eq!(list.number.is_none(), list.page.before.is_some());
        if let Some(before) = list.page.before {
            let again = parse_list_query(&format!("cursor={}", cursor(before)));
            assert_eq!(again.expect("our own cursor").page.before, Some(before));
        }
    }
}

/// An Idempotency-Key. An accepted key fits into its column, and is the same key in quotes.
fn http_idempotency_key(bytes: &[u8]) {
    if let Some(key) = IdempotencyKey::parse(&String::from_utf8_lossy(bytes)) {
        let text = key.as_str();
        assert!(
            (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        );
        let escaped = text.replace('\\', r"\\").replace('"', r#"\""#);
        let quoted = IdempotencyKey::parse(&format!("\"{escaped}\";a=1"));
        assert_eq!(quoted.as_ref(), Some(&key));
    }
}

/// A caller's `traceparent` on the first line, then its `tracestate` lines. Accepted values are passed
/// on as one trace.
fn traceparent(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (parent, state) = text.split_once('\n').unwrap_or((&text, ""));
    let context = extract([parent], state.lines());
    if let Some(passed_on) = serialize(&context) {
        assert_eq!(serialize(&deserialize(Some(&passed_on))), Some(passed_on));
    }
}

/// A record of order.created.
fn order_event(bytes: &[u8]) {
    let _ = created_order(Some(bytes), "order.created");
}
