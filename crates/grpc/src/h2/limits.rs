//! What a peer may ask of us: one number for each way to exhaust a program.

use std::time::Instant;

/// The limits of one connection. The defaults suit a server that strangers reach.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams that the peer may have open at a time (SETTINGS_MAX_CONCURRENT_STREAMS); more are refused with
    /// REFUSED_STREAM. Default: 128.
    pub concurrent_streams_max: u32,
    /// Octets of a header list, as RFC 9113, section 6.5.2, counts them; a larger one ends its stream with
    /// ENHANCE_YOUR_CALM. A block that is more than twice as long before decompression ends the connection.
    /// Default: 16 KiB.
    pub header_list_bytes_max: usize,
    /// CONTINUATION frames of a header block; more end the connection with ENHANCE_YOUR_CALM. Default: 16.
    pub continuation_frames_max: u32,
    /// Octets of the HPACK table that the peer may fill here (SETTINGS_HEADER_TABLE_SIZE). Default: 4096.
    pub header_table_bytes_max: usize,
    /// Octets that the peer may send on a stream before they are consumed: at least 65,535, which every stream has before
    /// the first SETTINGS frame arrives. Default: 65,535.
    pub stream_window_bytes: u32,
    /// Octets that the peer may send on the connection before we have seen them. Default: 1 MiB.
    pub connection_window_bytes: u32,
    /// Frames that cost work and carry nothing (PING, SETTINGS, PRIORITY, WINDOW_UPDATE, unknown types, empty DATA,
    /// frames for closed streams) that may come at once; more end the connection with ENHANCE_YOUR_CALM. Each frame with
    /// a request or with data earns ten more, in either direction. Default: 1000.
    pub control_frames_burst: u32,
    /// How many of them may come each second for any length of time. Default: 100.
    pub control_frames_per_second: u32,
    /// Streams that the peer may open and reset at once ("rapid reset"); more end the connection with
    /// ENHANCE_YOUR_CALM. Default: 500.
    pub resets_burst: u32,
    /// How many of them it may reset each second for any length of time. Default: 100.
    pub resets_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrent_streams_max: 128,
            header_list_bytes_max: 16 * 1024,
            continuation_frames_max: 16,
            header_table_bytes_max: 4096,
            stream_window_bytes: 65_535,
            connection_window_bytes: 1024 * 1024,
            control_frames_burst: 1000,
            control_frames_per_second: 100,
            resets_burst: 500,
            resets_per_second: 100,
        }
    }
}

/// A token bucket: so many at once, so many each second.
#[derive(Debug)]
pub(super) struct Allowance {
    left: f64,
    burst: f64,
    per_second: f64,
    filled_at: Option<Instant>,
}

impl Allowance {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        let burst = f64::from(burst);
        Self {
            left: burst,
            burst,
            per_second: f64::from(per_second),
            filled_at: None,
        }
    }

    /// Adds what has come since the last time.
    pub(super) fn refill(&mut self, now: Instant) {
        let before = self.filled_at.replace(now).unwrap_or(now);
        let seconds = now.saturating_duration_since(before).as_secs_f64();
        self.left = (self.left + seconds * self.per_second).min(self.burst);
    }

    /// Takes one; false when none is left.
    pub(super) fn take(&mut self) -> bool {
        let is_left = self.left >= 1.0;
        if is_left {
            self.left -= 1.0;
        }
        is_left
    }

    pub(super) fn earn(&mut self, count: u32) {
        self.left = (self.left + f64::from(count)).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn an_allowance_is_used_up_and_comes_back() {
        let start = Instant::now();
        let mut allowance = Allowance::new(2, 10);
        allowance.refill(start);
        assert!(allowance.take() && allowance.take());
        assert!(!allowance.take());
        allowance.refill(start + Duration::from_millis(110));
        assert!(allowance.take());
        assert!(!allowance.take());
        allowance.earn(1);
        assert!(allowance.take());
    }
}
