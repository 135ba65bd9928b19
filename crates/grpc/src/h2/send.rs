//! The way of data out: streams take turns, and windows are kept (RFC 9113, section 5.2).

use super::connection::{Connection, Role};
use super::error::ErrorCode;
use super::frame::{self, PAYLOAD_BYTES_MAX, kind};
use super::stream::{Outgoing, Stream};

/// How much data a stream should have waiting: a caller with more waits for
/// [`Connection::next_drained`].
pub const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// How many octets of output are made ahead of the socket. Data beyond stays in the streams' queues, where a reset
/// forgets it and where control frames overtake it.
const OUTPUT_BYTES: usize = 64 * 1024;

impl Connection {
    /// The octets to send, control frames and as much data as the windows allow. What was sent is taken off by
    /// [`Connection::sent`].
    pub fn output(&mut self) -> &[u8] {
        while self.output.len() < OUTPUT_BYTES {
            let Some(id) = self.scheduled.pop_front() else {
                break;
            };
            self.take_turn(id);
        }
        &self.output
    }

    /// Takes the output, to send it while others use the connection. [`Connection::put_back`] has to follow.
    pub fn take_output(&mut self) -> Vec<u8> {
        let _ = self.output();
        std::mem::take(&mut self.output)
    }

    /// Returns what was not sent of the output that was taken.
    pub fn put_back(&mut self, mut unsent: Vec<u8>) {
        unsent.append(&mut self.output);
        self.output = unsent;
    }

    /// Octets of output that are made and not sent.
    pub fn unsent_bytes(&self) -> usize {
        self.output.len()
    }

    /// A stream on which less than [`SEND_BUFFER_BYTES`] wait again.
    pub fn next_drained(&mut self) -> Option<u32> {
        self.drained.pop_front()
    }

    /// Takes the first `bytes` octets off the output.
    pub fn sent(&mut self, bytes: usize) {
        self.output.drain(..bytes.min(self.output.len()));
    }

    /// Lets the stream have its turn, once.
    pub(super) fn schedule(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.is_scheduled
            && stream.can_send()
        {
            stream.is_scheduled = true;
            self.scheduled.push_back(id);
        }
    }

    /// The connection's window has opened.
    pub(super) fn unblock(&mut self) {
        self.scheduled.append(&mut self.blocked);
    }

    /// One frame of the stream.
    fn take_turn(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let is_data = matches!(stream.outgoing.front(), Some(Outgoing::Data(_)));
        if is_data && self.send_window <= 0 {
            self.blocked.push_back(id); // and stays marked as scheduled
            return;
        }
        stream.is_scheduled = false;
        if !stream.can_send() {
            return;
        }
        if let Some(Outgoing::Trailers(_)) = stream.outgoing.front() {
            if let Some(Outgoing::Trailers(headers)) = stream.outgoing.pop_front() {
                self.put_headers(id, &headers, true);
            }
            return self.end_sent(id);
        }
        let was_full = stream.outgoing_bytes >= SEND_BUFFER_BYTES;
        let room = self.send_window.min(stream.send_window);
        let room = usize::try_from(room).unwrap_or(0).min(PAYLOAD_BYTES_MAX);
        let sent = put_data(stream, id, room, &mut self.output);
        self.send_window -= sent as i64;
        self.queued_bytes_total -= sent;
        self.control_frames.earn(10);
        if was_full && stream.outgoing_bytes < SEND_BUFFER_BYTES {
            self.drained.push_back(id);
        }
        if stream.is_end_queued && stream.outgoing.is_empty() {
            return self.end_sent(id);
        }
        self.schedule(id);
    }

    /// Our half has ended. A server that has said all wants no more of the request (RFC 9113, section 8.1).
    pub(super) fn end_sent(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.is_end_sent = true;
        stream.is_end_queued = true;
        if self.role == Role::Server && stream.is_receiving {
            self.put_reset(id, ErrorCode::NO_ERROR);
            self.remove(id);
        } else if stream.is_closed() {
            self.remove(id);
        }
    }
}

/// Appends one DATA frame of at most `room` octets, from as many pieces as fit. Returns its length.
fn put_data(stream: &mut Stream, id: u32, room: usize, output: &mut Vec<u8>) -> usize {
    let at = output.len();
    frame::put_header(output, 0, kind::DATA, 0, id);
    let mut length = 0;
    while let Some(Outgoing::Data(data)) = stream.outgoing.front_mut() {
        let part = data.split_to(data.len().min(room - length));
        length += part.len();
        output.extend_from_slice(&part);
        if !data.is_empty() {
            break;
        }
        stream.outgoing.pop_front();
    }
    stream.outgoing_bytes -= length;
    stream.send_window -= length as i64;
    let is_end = stream.is_end_queued && stream.outgoing.is_empty();
    // The header was put before the length was known.
    let [_, a, b, c] = (length as u32).to_be_bytes();
    output[at..at + 3].copy_from_slice(&[a, b, c]);
    output[at + 4] = u8::from(is_end);
    length
}
