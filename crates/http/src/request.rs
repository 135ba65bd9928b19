//! A request as a handler sees it.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::containment::framing::{BodyLength, Framing};
use super::containment::incoming::Incoming;
use super::containment::watch::Watch;
use super::problem::{self, Problem};
use super::router::{Identity, Match};
use tbd_deadline::Deadline;

/// One request: its head, and its body on demand.
pub struct Request {
    inner: Incoming,
    framing: Framing,
    pub(super) found: Match,
    pub(super) identity: Option<Identity>,
    /// The path's range in the target.
    path: Range<usize>,
    /// The path, if decoding changed it.
    normalized: Option<String>,
    deadline: Deadline,
    request_id: String,
    body_limit: usize,
    body: Body,
    watch: Arc<Watch>,
}

enum Body {
    Unread,
    Read(Vec<u8>),
    Failed(Problem),
}

impl Request {
    pub(super) fn new(
        inner: Incoming,
        framing: Framing,
        found: Match,
        deadline: Deadline,
        request_id: String,
        body_limit: usize,
        watch: Arc<Watch>,
    ) -> Self {
        let path = path_range(inner.url());
        let normalized = match normalized(&inner.url()[path.clone()]) {
            Cow::Owned(path) => Some(path),
            Cow::Borrowed(_) => None,
        };
        Self {
            inner,
            framing,
            found,
            identity: None,
            path,
            normalized,
            deadline,
            request_id,
            body_limit,
            body: Body::Unread,
            watch,
        }
    }

    /// The method as sent: `GET`.
    pub fn method(&self) -> &str {
        self.inner.method().as_str()
    }

    /// The path, without query. Only unreserved characters are decoded.
    pub fn path(&self) -> &str {
        match &self.normalized {
            Some(path) => path,
            None => &self.inner.url()[self.path.clone()],
        }
    }

    /// What follows the first `?`, as sent; `None` without one.
    pub fn query(&self) -> Option<&str> {
        self.inner.url()[self.path.end..].strip_prefix('?')
    }

    /// The value of the template's parameter `name`, as in [`path`](Self::path); `None` when the
    /// template has no such parameter.
    pub fn param(&self, name: &str) -> Option<&str> {
        let Match::Found { params, .. } = &self.found else {
            return None;
        };
        let (_, place) = params.iter().find(|(other, _)| *other == name)?;
        Some(&self.path()[place.clone()])
    }

    /// The first header `name` (in any case), without surrounding spaces.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.inner, name)
    }

    /// All headers `name` (in any case), in the order they were sent.
    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        headers(&self.inner, name)
    }

    /// When the response is due.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Who sent the request; `None` where no guard identified the sender.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The client's `X-Request-Id` if it is sane, else the trace id.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// The whole body; empty without one. The first call reads it and blocks until the client has
    /// sent it, at most until [`deadline`](Self::deadline). If the client expects `100 Continue`,
    /// that is sent first.
    ///
    /// # Errors
    /// 413 over the limit, 408 when the body does not arrive in time, 400 when
    /// it ends early or its chunks are malformed. The connection is closed
    /// after each of these, and after a response to an unread body.
    pub fn body(&mut self) -> Result<&[u8], Problem> {
        if matches!(self.body, Body::Unread) {
            self.body = match self.read_body() {
                Ok(bytes) => Body::Read(bytes),
                Err(problem) => Body::Failed(problem),
            };
        }
        match &self.body {
            Body::Read(bytes) => Ok(bytes),
            Body::Failed(problem) => Err(problem.clone()),
            Body::Unread => Ok(&[]),
        }
    }

    /// Whether bytes of the body are still to come, so that the start of the next request is
    /// unknown.
    pub(super) fn body_outstanding(&self) -> bool {
        match self.body {
            Body::Unread => !self.framing.prefetched,
            Body::Read(_) => false,
            Body::Failed(_) => true,
        }
    }

    /// What remains after the handler: the request and its id.
    pub(super) fn into_parts(self) -> (Incoming, String) {
        (self.inner, self.request_id)
    }

    fn read_body(&mut self) -> Result<Vec<u8>, Problem> {
        let limit = self.body_limit;
        let (length, capacity) = match self.framing.length {
            BodyLength::Known(0) => return Ok(Vec::new()),
            BodyLength::Known(length) => {
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                if length > limit {
                    return Err(problem::body_too_large(limit));
                }
                (Some(length), length)
            }
            BodyLength::Chunked => (None, 4096),
        };
        // From here on, a client that stalls is cut off at the deadline.
        let watched = (!self.framing.prefetched)
            .then(|| self.watch.until(self.inner.remote_addr(), self.deadline));
        let mut body = vec![0; capacity];
        let mut filled = 0;
        while length.is_none_or(|length| filled < length) {
            if filled == body.len() {
                // Only a chunked body has no length in advance; one byte over the limit shows that
                // the limit is exceeded.
                body.resize((body.len() * 2).min(limit + 1), 0);
            }
            let read = match self.inner.as_reader().read(&mut body[filled..]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.read_failed(&error)),
            };
            if read == 0 {
                if length.is_none() && !self.deadline.is_past() {
                    break;
                }
                return Err(self.read_failed(&io::ErrorKind::UnexpectedEof.into()));
            }
            filled += read;
            if filled > limit {
                return Err(problem::body_too_large(limit));
            }
            if self.deadline.is_past() && length != Some(filled) {
                return Err(problem::body_timeout());
            }
        }
        drop(watched);
        body.truncate(filled);
        Ok(body)
    }

    fn read_failed(&self, error: &io::Error) -> Problem {
        // The socket reports its read time-out as "would block".
        let timed_out = matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
        );
        if timed_out || self.deadline.is_past() {
            problem::body_timeout()
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            problem::malformed("The body ended before its length.")
        } else {
            problem::malformed("The body's chunks are malformed.")
        }
    }
}

/// The first header `name` of a request.
pub(super) fn header<'a>(request: &'a tiny_http::Request, name: &str) -> Option<&'a str> {
    request
        .headers()
        .iter()
        .find(|header| header.field.as_str().as_str().eq_ignore_ascii_case(name))
        .map(|header| header.value.as_str())
}

/// All headers `name` of a request.
pub(super) fn headers<'a>(
    request: &'a tiny_http::Request,
    name: &'a str,
) -> impl Iterator<Item = &'a str> {
    request
        .headers()
        .iter()
        .filter(move |header| header.field.as_str().as_str().eq_ignore_ascii_case(name))
        .map(|header| header.value.as_str())
}

/// The path's range in a request target. The target is normally a path and query; a proxy request
/// has the absolute form (RFC 9112, section 3.2).
pub(super) fn path_range(target: &str) -> Range<usize> {
    let start = if target.starts_with('/') {
        0
    } else {
        target
            .find("://")
            .and_then(|scheme| Some(scheme + 3 + target[scheme + 3..].find('/')?))
            .unwrap_or(0)
    };
    let end = target[start..]
        .find('?')
        .map_or(target.len(), |query| start + query);
    start..end
}

/// The path of a request target, normalized.
pub(super) fn path_of(target: &str) -> Cow<'_, str> {
    normalized(&target[path_range(target)])
}

/// `path` with its percent-encoded unreserved characters decoded, which leaves it equivalent (RFC
/// 3986, section 6.2.2.2). Everything else stays as it is.
fn normalized(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let mut parts = path.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..2).and_then(unreserved);
        decoded.push(byte.unwrap_or('%'));
        decoded.push_str(if byte.is_some() { &part[2..] } else { part });
    }
    decoded.into()
}

/// The unreserved character (RFC 3986, section 2.3) that two hexadecimal digits encode.
fn unreserved(digits: &str) -> Option<char> {
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
    let is_unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    is_unreserved.then_some(char::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_characters_of_a_path_are_decoded() {
        for (sent, normalized) in [
            ("/v1/%6frders", "/v1/orders"),
            ("/v1/%6Frders/%2d%2E%5f%7E%30%41?%61", "/v1/orders/-._~0A"),
            ("/%%36f%6", "/%6f%6"),
            ("/v1%2Forders", "/v1%2Forders"),
            ("/%3f%23%25%20%c3%bc%00", "/%3f%23%25%20%c3%bc%00"),
            ("/%zz%+f%", "/%zz%+f%"),
            ("/%256f", "/%256f"),
            ("http://host/%6frders", "/orders"),
        ] {
            assert_eq!(path_of(sent), normalized, "{sent}");
        }
    }

    fn path(target: &str) -> &str {
        &target[path_range(target)]
    }

    #[test]
    fn the_path_ends_at_the_query() {
        assert_eq!(path("/v1/orders?page=1?"), "/v1/orders");
        assert_eq!(path("/v1/orders"), "/v1/orders");
        assert_eq!(path("/?/"), "/");
    }

    #[test]
    fn an_absolute_target_has_a_path_too() {
        assert_eq!(path("http://host:80/v1/orders?a=b"), "/v1/orders");
        assert_eq!(path("*"), "*");
        assert_eq!(path("http://host"), "http://host");
        assert_eq!(path("?a"), "");
    }
}
