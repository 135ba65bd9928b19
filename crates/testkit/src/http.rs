//! HTTP/1.1 client over a plain socket: it sends exactly the test's bytes, and retries, follows and
//! pools nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer may take (30 s), so that a silent server fails a test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(40);

/// A request, sent on a connection of its own unless it is written to one.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// `GET target`
pub fn get(target: impl Into<String>) -> Request {
    Request::new("GET", target)
}

/// `POST target`, still without a body.
pub fn post(target: impl Into<String>) -> Request {
    Request::new("POST", target)
}

impl Request {
    /// Any method.
    pub fn new(method: &str, target: impl Into<String>) -> Request {
        Request {
            method: method.to_owned(),
            target: target.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// The same for another target.
    pub fn to(self, target: &str) -> Request {
        let target = target.to_owned();
        Request { target, ..self }
    }

    /// One more header line.
    pub fn header(mut self, name: &str, value: impl AsRef<str>) -> Request {
        self.headers
            .push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// A body; its length is announced.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Request {
        self.body = body.into();
        self
    }

    /// A body and its `Content-Type: application/json`.
    pub fn json(self, body: impl Into<Vec<u8>>) -> Request {
        self.header("Content-Type", "application/json").body(body)
    }

    /// The request's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: tbd\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let framed = self
            .headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("Transfer-Encoding"));
        if !framed && (!self.body.is_empty() || self.method == "POST") {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }

    /// Sends it to `address` on a connection of its own and waits for the answer.
    pub fn send(self, address: &str) -> Response {
        self.try_send(address)
            .unwrap_or_else(|error| panic!("no answer from {address}: {error}"))
    }

    /// As [`send`](Self::send), for a server that may be unreachable.
    pub fn try_send(mut self, address: &str) -> std::io::Result<Response> {
        let head_only = self.method == "HEAD";
        self = self.header("Connection", "close");
        let mut connection = Connection::try_open(address)?;
        connection.write(&self.to_bytes());
        connection.try_read(head_only)
    }
}

/// One connection, for tests of several requests on it.
pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Connection {
    /// A connection to `address`.
    pub fn open(address: &str) -> Connection {
        Connection::try_open(address)
            .unwrap_or_else(|error| panic!("connect to {address}: {error}"))
    }

    fn try_open(address: &str) -> std::io::Result<Connection> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection {
            stream,
            unread: Vec::new(),
        })
    }

    /// Sends bytes. A server may answer and close before it has read them all; then only the answer
    /// counts.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next response to a request that was not HEAD.
    pub fn read(&mut self) -> Response {
        self.try_read(false).expect("a response")
    }

    /// The head of the response to a HEAD request.
    pub fn read_head(&mut self) -> Response {
        self.try_read(true).expect("a response")
    }

    /// The next response, or `None` if the server closes the connection instead.
    pub fn try_next(&mut self) -> Option<Response> {
        self.try_read(false).ok()
    }

    /// The next response if it arrives in time; otherwise closes the connection.
    pub fn read_within(mut self, limit: Duration) -> Option<Response> {
        self.stream
            .set_read_timeout(Some(limit))
            .expect("set a time-out");
        self.try_read(false).ok()
    }

    /// Whether the server closes the connection without sending another byte.
    pub fn is_closed_by_server(&mut self) -> bool {
        let mut byte = [0];
        self.unread.is_empty()
            && match self.stream.read(&mut byte) {
                Ok(count) => count == 0,
                Err(error) => error.kind() == ErrorKind::ConnectionReset,
            }
    }

    fn try_read(&mut self, head_only: bool) -> std::io::Result<Response> {
        let head_end = loop {
            if let Some(at) = find(&self.unread, b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head: Vec<u8> = self.unread.drain(..head_end + 4).collect();
        let head = String::from_utf8(head).expect("the head is text");
        let mut response = Response::parse(head.trim_end());
        let bodiless = head_only || matches!(response.status, 100..=199 | 204 | 304);
        if !bodiless {
            let length = response.header("Content-Length").expect("a length");
            let length: usize = length.parse().expect("the length is a number");
            while self.unread.len() < length {
                self.fill()?;
            }
            response.body = self.unread.drain(..length).collect();
        }
        Ok(response)
    }

    fn fill(&mut self) -> std::io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => {
                self.unread.extend_from_slice(&buffer[..count]);
                Ok(())
            }
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// The body, decoded from chunks.
    pub body: Vec<u8>,
}

impl Response {
    fn parse(head: &str) -> Response {
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3))
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("a status line: {status_line:?}"));
        let headers = lines
            .map(|line| line.split_once(':').expect("a header line"))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        Response {
            status,
            headers,
            body: Vec::new(),
        }
    }

    /// A header's value; fails the test if it is there twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str());
        let value = values.next();
        assert_eq!(values.next(), None, "{name} twice");
        value
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("the body is UTF-8")
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Fails the test unless this is a complete problem document with this status and kind; the document.
    #[track_caller]
    pub fn problem(&self, status: u16, slug: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(
            self.header("Content-Type"),
            Some("application/problem+json")
        );
        let problem = self.json();
        assert_eq!(
            problem["type"],
            format!("urn:tbd:problem:{slug}"),
            "{problem}"
        );
        assert_eq!(problem["status"], status);
        for text in ["title", "detail"] {
            assert!(
                problem[text].as_str().is_some_and(|t| !t.is_empty()),
                "{text}: {problem}"
            );
        }
        for (name, length) in [("trace_id", 32), ("span_id", 16)] {
            let id = problem[name].as_str().unwrap_or_default();
            assert!(is_lower_hex(id, length), "{name}: {problem}");
        }
        problem
    }

    /// As [`problem`](Self::problem), for a document that lists faulty fields: their names, in order.
    #[track_caller]
    pub fn faulty_fields(&self) -> Vec<String> {
        let problem = self.problem(400, "validation-failed");
        let errors = problem["errors"].as_array().expect("a list of errors");
        for error in errors {
            assert!(
                error["message"].as_str().is_some_and(|m| !m.is_empty()),
                "{problem}"
            );
        }
        let field = |error: &Value| error["field"].as_str().expect("a field's name").to_owned();
        errors.iter().map(field).collect()
    }
}

/// Whether `text` is `length` lower-case hexadecimal digits.
pub fn is_lower_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
