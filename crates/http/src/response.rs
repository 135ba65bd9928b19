//! A response and its bytes on the wire.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A handler's answer. The server adds the length, date, connection and request-id headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code, 200 to 599.
    pub status: u16,
    /// Headers in the order of sending.
    pub headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
    /// The whole body. It is not sent in answer to HEAD, nor with 204 and 304.
    pub body: Vec<u8>,
}

/// What happens to the connection after a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// HTTP/1.1 and staying open: no header needed.
    Implicit,
    /// HTTP/1.0 and staying open because the client asked for it.
    KeepAlive,
    /// Closed after this response.
    Close,
}

impl Response {
    /// A response without headers and body.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// `application/json`.
    pub fn json(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status)
            .header("Content-Type", "application/json")
            .body(body)
    }

    /// `text/plain; charset=utf-8`.
    pub fn text(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self::new(status)
            .header("Content-Type", "text/plain; charset=utf-8")
            .body(body)
    }

    /// Adds a header. Names and values are constants of the program or were validated. Even so, a
    /// control character in one does not reach the wire.
    pub fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Replaces the body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The whole message in one buffer, so that it leaves in one write.
    pub(super) fn to_bytes(
        &self,
        head_only: bool,
        persistence: Persistence,
        request_id: &str,
    ) -> Vec<u8> {
        let bodiless = self.status == 204 || self.status == 304;
        let body: &[u8] = if head_only || bodiless {
            &[]
        } else {
            &self.body
        };
        let mut out = Vec::with_capacity(320 + body.len());
        // Writing into a Vec cannot fail.
        let _ = write!(out, "HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        out.extend_from_slice(b"Date: ");
        push_date(&mut out);
        out.extend_from_slice(b"\r\n");
        for (name, value) in &self.headers {
            push_header(&mut out, name, value);
        }
        push_header(&mut out, "X-Request-Id", request_id);
        if !bodiless {
            let _ = write!(out, "Content-Length: {}\r\n", self.body.len());
        }
        match persistence {
            Persistence::Implicit => {}
            Persistence::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            Persistence::Close => out.extend_from_slice(b"Connection: close\r\n"),
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
        out
    }
}

fn push_header(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    // A line break in a value would start a header of its own.
    out.extend(
        value
            .bytes()
            .map(|byte| if byte.is_ascii_control() { b' ' } else { byte }),
    );
    out.extend_from_slice(b"\r\n");
}

/// Appends the date, formatted once a second for each thread.
fn push_date(out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    let now = SystemTime::now();
    let second = now
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    LAST.with_borrow_mut(|(last, text)| {
        if *last != second || text.is_empty() {
            *last = second;
            *text = httpdate::fmt_http_date(UNIX_EPOCH + std::time::Duration::from_secs(second));
        }
        out.extend_from_slice(text.as_bytes());
    });
}

fn reason(status: u16) -> &'static str {
    tiny_http::StatusCode(status).default_reason_phrase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(response: &Response, head_only: bool, persistence: Persistence) -> String {
        let bytes = response.to_bytes(head_only, persistence, "id-1");
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_response_carries_length_date_and_request_id() {
        let text = text(&Response::json(200, "{}"), false, Persistence::Implicit);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\nDate: "));
        assert!(text.contains(" GMT\r\nContent-Type: application/json\r\nX-Request-Id: id-1\r\n"));
        assert!(text.ends_with("Content-Length: 2\r\n\r\n{}"));
    }

    #[test]
    fn head_gets_the_headers_of_get() {
        let response = Response::json(200, "{}");
        let get = text(&response, false, Persistence::Close);
        let head = text(&response, true, Persistence::Close);
        assert_eq!(format!("{head}{{}}"), get);
    }

    #[test]
    fn not_modified_has_neither_body_nor_length() {
        let text = text(&Response::json(304, "{}"), false, Persistence::Implicit);
        assert!(!text.contains("Content-Length"));
        assert!(text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_line_break_in_a_value_starts_no_header() {
        let response = Response::new(200).header("Location", "/a\r\nSet-Cookie: b");
        let text = text(&response, false, Persistence::Implicit);
        assert!(text.contains("Location: /a  Set-Cookie: b\r\n"));
    }
}
