//! Message framing: the end of the body, the end of the connection, and the `Host` header.
//!
//! The fault: tiny_http looks at the first header of a name, prefers `Transfer-Encoding` to
//! `Content-Length`, and takes a length it cannot read for no body. Each lets two programs in a row
//! disagree about where the next request starts (request smuggling).
//!
//! Skip this file if this suffices: a head with contradictory or unreadable framing is refused, and
//! its connection is closed (RFC 9112, section 6.3).

use tiny_http::{HTTPVersion, Header};

/// tiny_http reads bodies up to this length, in bytes, before it hands the request over, unless the
/// client waits for `100 Continue`.
const PREFETCHED: u64 = 1024;

/// Where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyLength {
    /// After this many bytes; 0 without a body.
    Known(u64),
    /// With the last chunk.
    Chunked,
}

/// What a head says about its body and its connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Framing {
    pub(crate) length: BodyLength,
    /// The body was in memory before tiny_http handed the request over.
    pub(crate) prefetched: bool,
    /// tiny_http reads no further request from this connection.
    pub(crate) last: bool,
    pub(crate) http_1_0: bool,
}

impl Framing {
    /// Reads the head's length and connection headers.
    ///
    /// # Errors
    /// The contradiction, as a sentence for the client. The second value is the framing to use for
    /// discarding the request.
    pub(crate) fn of(
        version: &HTTPVersion,
        headers: &[Header],
    ) -> Result<Framing, (&'static str, Framing)> {
        let mut lengths = Lengths::default();
        let mut connection: Option<&str> = None;
        let mut expects_continue = false;
        let (mut hosts, mut is_host) = (0, true);
        for header in headers {
            let name = header.field.as_str().as_str();
            let value = header.value.as_str();
            // Only these lengths matter, so most names cost one comparison.
            match name.len() {
                14 if name.eq_ignore_ascii_case("content-length") => lengths.content_length(value),
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    lengths.transfer_encoding(value);
                }
                10 if name.eq_ignore_ascii_case("connection") && connection.is_none() => {
                    connection = Some(value);
                }
                6 if name.eq_ignore_ascii_case("expect") => expects_continue = true,
                4 if name.eq_ignore_ascii_case("host") => {
                    hosts += 1;
                    is_host &= is_host_and_port(value);
                }
                _ => {}
            }
        }
        let http_1_0 = *version == (1, 0) || *version == (0, 9);
        let has = |word| connection.is_some_and(|value| contains_ignore_case(value, word));
        let upgrade = has("upgrade");
        // tiny_http decides the same way: it reads only the first header.
        let last = has("close") || upgrade || (http_1_0 && !has("keep-alive"));
        let length = lengths.length();
        let framing = Framing {
            length,
            prefetched: match length {
                BodyLength::Known(0) => true,
                BodyLength::Known(n) => n <= PREFETCHED && !expects_continue && !upgrade,
                BodyLength::Chunked => false,
            },
            last,
            http_1_0,
        };
        match lengths.fault {
            Some(fault) => Err((fault, framing)),
            None if length == BodyLength::Chunked && (http_1_0 || upgrade) => {
                Err(("Transfer-Encoding is not possible here.", framing))
            }
            // RFC 9112, section 3.2.
            None if hosts > 1 || (hosts == 0 && !http_1_0) || !is_host => Err((
                "HTTP/1.1 asks for one Host header: host, or host:port.",
                framing,
            )),
            None => Ok(framing),
        }
    }
}

#[derive(Default)]
struct Lengths {
    content_length: Option<u64>,
    chunked: bool,
    fault: Option<&'static str>,
}

impl Lengths {
    fn content_length(&mut self, value: &str) {
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let length = value.parse().ok().filter(|_| digits);
        match (length, self.content_length) {
            (None, _) => self.fault = Some("Content-Length is not a number."),
            (Some(length), Some(other)) if length != other => {
                self.fault = Some("There are two different lengths.");
            }
            (Some(_), _) if self.chunked => self.fault = Some(TWO_WAYS),
            (Some(length), _) => self.content_length = Some(length),
        }
    }

    fn transfer_encoding(&mut self, value: &str) {
        if self.chunked || !value.eq_ignore_ascii_case("chunked") {
            self.fault = Some("Only the transfer encoding chunked is understood.");
        } else if self.content_length.is_some() {
            self.fault = Some(TWO_WAYS);
        }
        self.chunked = true;
    }

    fn length(&self) -> BodyLength {
        match (self.chunked, self.content_length) {
            (true, _) => BodyLength::Chunked,
            (false, length) => BodyLength::Known(length.unwrap_or(0)),
        }
    }
}

const TWO_WAYS: &str = "Content-Length and Transfer-Encoding exclude each other.";

/// Whether `value` has only characters of a host and port (RFC 3986, section 3.2).
fn is_host_and_port(value: &str) -> bool {
    let may_be = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:[]".contains(&byte);
    value.bytes().all(may_be)
}

fn contains_ignore_case(text: &str, word: &str) -> bool {
    text.as_bytes()
        .windows(word.len())
        .any(|window| window.eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(headers: &[&str]) -> Result<Framing, (&'static str, Framing)> {
        let headers = headers.iter().chain(&["Host: t"]);
        let headers: Vec<Header> = headers.map(|h| h.parse().unwrap()).collect();
        Framing::of(&HTTPVersion(1, 1), &headers)
    }

    #[test]
    fn equal_lengths_are_one_length() {
        let framing = framing(&["Content-Length: 5", "content-length: 5"]).unwrap();
        assert_eq!(framing.length, BodyLength::Known(5));
        assert!(framing.prefetched);
    }

    #[test]
    fn contradicting_or_unreadable_lengths_are_refused() {
        for headers in [
            &["Content-Length: 5", "Content-Length: 6"][..],
            &["Content-Length: 5", "Transfer-Encoding: chunked"],
            &["Transfer-Encoding: chunked", "Content-Length: 5"],
            &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
            &["Transfer-Encoding: gzip, chunked"],
            &["Transfer-Encoding: identity"],
            &["Content-Length: 5, 5"],
            &["Content-Length: +5"],
            &["Content-Length: -5"],
            &["Content-Length:"],
            &["Content-Length: 99999999999999999999999"],
            &["Connection: upgrade", "Transfer-Encoding: chunked"],
        ] {
            assert!(framing(headers).is_err(), "{headers:?}");
        }
    }

    #[test]
    fn http_1_1_asks_for_one_host() {
        let host = || "Host: t".parse::<Header>().unwrap();
        for (version, headers, is_fine) in [
            (HTTPVersion(1, 1), vec![], false),
            (HTTPVersion(1, 1), vec![host()], true),
            (HTTPVersion(1, 1), vec![host(), host()], false),
            (HTTPVersion(1, 1), vec!["Host:".parse().unwrap()], true),
            (
                HTTPVersion(1, 1),
                vec!["Host: [::1]:80".parse().unwrap()],
                true,
            ),
            (HTTPVersion(1, 1), vec!["Host: a b".parse().unwrap()], false),
            (HTTPVersion(1, 1), vec!["Host: a/b".parse().unwrap()], false),
            (HTTPVersion(1, 1), vec!["Host: u@h".parse().unwrap()], false),
            (HTTPVersion(1, 0), vec![], true),
            (HTTPVersion(1, 0), vec![host(), host()], false),
        ] {
            let framing = Framing::of(&version, &headers);
            assert_eq!(framing.is_ok(), is_fine, "{version} {headers:?}");
        }
    }

    #[test]
    fn a_body_the_client_holds_back_is_not_there_yet() {
        let framing = framing(&["Content-Length: 5", "Expect: 100-continue"]).unwrap();
        assert!(!framing.prefetched);
    }

    #[test]
    fn a_connection_ends_when_tiny_http_reads_no_further() {
        assert!(framing(&["Connection: Keep-Alive, Close"]).unwrap().last);
        assert!(framing(&["Connection: Upgrade"]).unwrap().last);
        assert!(!framing(&[]).unwrap().last);
        assert!(Framing::of(&HTTPVersion(1, 0), &[]).unwrap().last);
    }
}
