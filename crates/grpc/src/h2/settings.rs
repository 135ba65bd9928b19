//! The peer's settings, and what changes with them (RFC 9113, section 6.5).

use super::connection::{Connection, Handshake, Role};
use super::error::{ErrorCode, Violation, connection_error, protocol_error};
use super::frame::{Frame, PAYLOAD_BYTES_MAX, flag, frame_size_error, kind, number, setting};
use super::stream::{Event, WINDOW_MAX};

/// Entries of a SETTINGS frame: each may cost a look at every stream, and nobody needs more than one for each of the few
/// settings there are.
const ENTRIES_MAX: usize = 32;

impl Connection {
    pub(super) fn receive_settings(&mut self, frame: Frame<'_>) -> Result<(), Violation> {
        if frame.stream != 0 {
            return Err(protocol_error("SETTINGS on a stream"));
        }
        let length = frame.payload.len();
        if !length.is_multiple_of(6) || (frame.has(flag::ACK) && length > 0) {
            return Err(frame_size_error());
        }
        if frame.has(flag::ACK) {
            return Ok(());
        }
        if length > 6 * ENTRIES_MAX {
            let reason = "too many settings in one frame";
            return Err(connection_error(ErrorCode::ENHANCE_YOUR_CALM, reason));
        }
        for entry in frame.payload.chunks_exact(6) {
            let identifier = u16::from_be_bytes([entry[0], entry[1]]);
            self.apply_setting(identifier, number(&entry[2..])?)?;
        }
        self.put(kind::SETTINGS, flag::ACK, 0, &[]);
        if self.handshake == Handshake::Settings {
            self.handshake = Handshake::Done;
            self.events.push_back(Event::Ready);
        }
        Ok(())
    }

    fn apply_setting(&mut self, identifier: u16, value: u32) -> Result<(), Violation> {
        let size = usize::try_from(value).unwrap_or(usize::MAX);
        match identifier {
            setting::HEADER_TABLE_SIZE => self.encoder.set_table_bytes_max(size),
            setting::ENABLE_PUSH if value > 1 || (value == 1 && self.role == Role::Client) => {
                return Err(protocol_error("SETTINGS_ENABLE_PUSH has a wrong value"));
            }
            setting::MAX_CONCURRENT_STREAMS => {
                self.peer.concurrent_streams_max = value;
                self.events.push_back(Event::StreamsAvailable);
            }
            setting::INITIAL_WINDOW_SIZE => self.apply_initial_window(value)?,
            setting::MAX_FRAME_SIZE if !(PAYLOAD_BYTES_MAX..1 << 24).contains(&size) => {
                return Err(protocol_error("SETTINGS_MAX_FRAME_SIZE has a wrong value"));
            }
            setting::MAX_HEADER_LIST_SIZE => self.peer.header_list_bytes_max = size,
            _ => {}
        }
        Ok(())
    }

    /// Changes the windows of all streams (RFC 9113, section 6.9.2).
    fn apply_initial_window(&mut self, value: u32) -> Result<(), Violation> {
        let value = i64::from(value);
        let overflow = || connection_error(ErrorCode::FLOW_CONTROL_ERROR, "a window is too large");
        if value > WINDOW_MAX {
            return Err(overflow());
        }
        let by = value - std::mem::replace(&mut self.peer.initial_window, value);
        let ids: Vec<u32> = self.streams.keys().copied().collect();
        for id in ids {
            if let Some(stream) = self.streams.get_mut(&id)
                && !stream.widen_send_window(by)
            {
                return Err(overflow());
            }
            self.schedule(id);
        }
        Ok(())
    }
}
