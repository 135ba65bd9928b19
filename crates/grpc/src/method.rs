//! A method's name and types.

use std::fmt;
use std::marker::PhantomData;

/// A method: its path, and the types of its messages. A constant for each method serves server and client.
///
/// ```
/// use tbd_grpc::Method;
///
/// const GET_GREETING: Method<String, String> = Method::new("/example.v1.GreetingService/GetGreeting");
/// assert_eq!(GET_GREETING.path(), "/example.v1.GreetingService/GetGreeting");
/// ```
pub struct Method<Req, Res> {
    path: &'static str,
    messages: PhantomData<fn(Req) -> Res>,
}

impl<Req, Res> Method<Req, Res> {
    /// The method of a path: `/package.Service/Method`.
    pub const fn new(path: &'static str) -> Self {
        Self {
            path,
            messages: PhantomData,
        }
    }

    /// The path.
    pub const fn path(&self) -> &'static str {
        self.path
    }
}

impl<Req, Res> Clone for Method<Req, Res> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Req, Res> Copy for Method<Req, Res> {}

impl<Req, Res> fmt::Debug for Method<Req, Res> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.path)
    }
}

/// How many messages go each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodKind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStreaming,
    /// Many requests, one response.
    ClientStreaming,
    /// Many of both.
    Bidirectional,
}

impl MethodKind {
    /// Whether a handler waits for the whole request.
    pub(crate) fn has_one_request(self) -> bool {
        matches!(self, Self::Unary | Self::ServerStreaming)
    }
}
