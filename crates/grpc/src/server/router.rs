//! Router: the handlers of a server by their methods.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::call::Call;
use super::reflection::service_of;
use crate::metadata::Metadata;
use crate::method::{Method, MethodKind};
use crate::status::Status;

/// What a handler leaves to be sent with the trailers.
pub(super) type Outcome = Result<Option<Bytes>, Status>;

pub(super) type Handler = dyn Fn(&Call) -> Outcome + Send + Sync;

/// Runs around every handler. It calls `next` once, or answers in its place.
type Interceptor = dyn Fn(&Call, Next<'_>) -> Result<(), Status> + Send + Sync;

/// Hears of calls that were answered without a handler.
type RefusalHook = dyn Fn(&str, &Status) + Send + Sync;

/// Completes the status of a call that failed, from the request's metadata.
type ErrorMap = dyn Fn(&Metadata, Status) -> Status + Send + Sync;

/// The rest of a call, for an interceptor.
pub struct Next<'a>(&'a mut dyn FnMut() -> Result<(), Status>);

impl Next<'_> {
    /// Runs the handler, and the interceptors that were added later. Returns how the call ends.
    pub fn run(self) -> Result<(), Status> {
        (self.0)()
    }
}

/// A method's handler.
#[derive(Clone)]
pub(super) struct Route {
    pub(super) kind: MethodKind,
    pub(super) handler: Arc<Handler>,
    /// Whether it belongs to health or reflection: outside of interceptors and executor.
    pub(super) is_own: bool,
}

/// The methods that a server answers. Any other is UNIMPLEMENTED.
#[derive(Default)]
pub struct Router {
    routes: HashMap<String, Route>,
    interceptors: Vec<Arc<Interceptor>>,
    refusal_hook: Option<Arc<RefusalHook>>,
    error_map: Option<Arc<ErrorMap>>,
}

impl Router {
    /// No methods.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds code that runs around every handler: the first one added is the outermost.
    pub fn intercept(
        &mut self,
        interceptor: impl Fn(&Call, Next<'_>) -> Result<(), Status> + Send + Sync + 'static,
    ) -> &mut Self {
        self.interceptors.push(Arc::new(interceptor));
        self
    }

    /// Tells `hook` the path and the status of each call that ends without a handler: unknown methods, requests that are
    /// too large or too slow, calls for which the executor has no place or that were cancelled there. Interceptors do not
    /// see them. The hook must not block: it may run on a connection's reading thread.
    pub fn on_refused(
        &mut self,
        hook: impl Fn(&str, &Status) + Send + Sync + 'static,
    ) -> &mut Self {
        self.refusal_hook = Some(Arc::new(hook));
        self
    }

    pub(super) fn refused(&self, path: &str, status: &Status) {
        if let Some(hook) = &self.refusal_hook {
            contained("on_refused", || hook(path, status));
        }
    }

    /// Passes every error status through `map` before it is sent: those of handlers and interceptors, and those that the
    /// server itself makes. `map` gets the request's metadata, and may add details or metadata. It must not block, nor use
    /// a call, a channel or the server: it may run under a connection's lock.
    pub fn map_errors(
        &mut self,
        map: impl Fn(&Metadata, Status) -> Status + Send + Sync + 'static,
    ) -> &mut Self {
        self.error_map = Some(Arc::new(map));
        self
    }

    pub(super) fn map_error(&self, metadata: &Metadata, status: Status) -> Status {
        match &self.error_map {
            Some(map) => {
                contained("map_errors", || map(metadata, status.clone())).unwrap_or(status)
            }
            None => status,
        }
    }

    /// Answers `method`, which takes one message and returns one. The handler runs once the request is whole.
    pub fn unary<Req: Message + Default + 'static, Res: Message + 'static>(
        &mut self,
        method: Method<Req, Res>,
        handler: impl Fn(&Call, Req) -> Result<Res, Status> + Send + Sync + 'static,
    ) -> &mut Self {
        self.add(method.path(), MethodKind::Unary, move |call| {
            let response = handler(call, call.receive_only()?)?;
            call.encode(&response).map(Some)
        })
    }

    /// Answers `method`, which takes one message and returns many. The handler runs once the request is whole.
    pub fn server_streaming<Req: Message + Default + 'static, Res: Message + 'static>(
        &mut self,
        method: Method<Req, Res>,
        handler: impl Fn(&Call, Req, Responses<'_, Res>) -> Result<(), Status> + Send + Sync + 'static,
    ) -> &mut Self {
        self.add(method.path(), MethodKind::ServerStreaming, move |call| {
            handler(call, call.receive_only()?, Responses::new(call)).map(|()| None)
        })
    }

    /// Answers `method`, which takes many messages and returns one. The handler runs from the first octet on.
    pub fn client_streaming<Req: Message + Default + 'static, Res: Message + 'static>(
        &mut self,
        method: Method<Req, Res>,
        handler: impl Fn(&Call, Requests<'_, Req>) -> Result<Res, Status> + Send + Sync + 'static,
    ) -> &mut Self {
        self.add(method.path(), MethodKind::ClientStreaming, move |call| {
            let response = handler(call, Requests::new(call))?;
            call.encode(&response).map(Some)
        })
    }

    /// Answers `method`, which takes and returns many messages. The handler runs from the first octet on.
    pub fn bidirectional<Req: Message + Default + 'static, Res: Message + 'static>(
        &mut self,
        method: Method<Req, Res>,
        handler: impl Fn(&Call, Requests<'_, Req>, Responses<'_, Res>) -> Result<(), Status>
        + Send
        + Sync
        + 'static,
    ) -> &mut Self {
        self.add(method.path(), MethodKind::Bidirectional, move |call| {
            handler(call, Requests::new(call), Responses::new(call)).map(|()| None)
        })
    }

    fn add(
        &mut self,
        path: &str,
        kind: MethodKind,
        handler: impl Fn(&Call) -> Outcome + Send + Sync + 'static,
    ) -> &mut Self {
        let route = Route {
            kind,
            handler: Arc::new(handler),
            is_own: false,
        };
        self.routes.insert(path.to_owned(), route);
        self
    }

    /// Takes the method out of interceptors and executor, for health and reflection. A unary handler must not block then.
    pub(super) fn mark_own(&mut self, path: &str) {
        if let Some(route) = self.routes.get_mut(path) {
            route.is_own = true;
        }
    }

    /// The full names of all services, in order.
    pub(super) fn services(&self) -> BTreeSet<String> {
        let services = self.routes.keys().filter_map(|path| service_of(path));
        services.map(str::to_owned).collect()
    }

    pub(super) fn find(&self, path: &[u8]) -> Option<&Route> {
        self.routes.get(std::str::from_utf8(path).ok()?)
    }

    /// Whether some method of the path's service is known.
    pub(super) fn has_service_of(&self, path: &str) -> bool {
        service_of(path).is_some_and(|service| self.services().contains(service))
    }

    /// Runs the handler of `call` inside the interceptors.
    pub(super) fn run(&self, call: &Call, route: &Route) -> Outcome {
        if route.is_own {
            return (route.handler)(call);
        }
        let mut last = None;
        intercepted(&self.interceptors, call, &mut || {
            last = (route.handler)(call)?;
            Ok(())
        })?;
        Ok(last)
    }
}

/// Runs a hook. Its panic must not end the thread, which serves other calls as well.
fn contained<T>(name: &str, hook: impl FnOnce() -> T) -> Option<T> {
    let ran = catch_unwind(AssertUnwindSafe(hook));
    if ran.is_err() {
        log::error!("the hook of {name} panicked");
    }
    ran.ok()
}

fn intercepted(
    interceptors: &[Arc<Interceptor>],
    call: &Call,
    handler: &mut dyn FnMut() -> Result<(), Status>,
) -> Result<(), Status> {
    match interceptors.split_first() {
        Some((outermost, rest)) => outermost(call, Next(&mut || intercepted(rest, call, handler))),
        None => handler(),
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}

/// The messages of a streaming request.
#[derive(Debug)]
pub struct Requests<'a, Req> {
    call: &'a Call,
    message: PhantomData<Req>,
}

impl<'a, Req: Message + Default> Requests<'a, Req> {
    fn new(call: &'a Call) -> Self {
        Self {
            call,
            message: PhantomData,
        }
    }

    /// The next message; None when the client has sent all. Blocks until the call's deadline.
    ///
    /// # Errors
    /// The status with which the call is over: a handler returns it.
    pub fn next_message(&mut self) -> Result<Option<Req>, Status> {
        self.call.receive()
    }

    /// As [`Requests::next_message`]; says whether the message came compressed.
    ///
    /// # Errors
    /// As [`Requests::next_message`].
    pub fn next_with_flag(&mut self) -> Result<Option<(Req, bool)>, Status> {
        self.call.receive_with_flag()
    }
}

impl<Req: Message + Default> Iterator for Requests<'_, Req> {
    type Item = Result<Req, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_message().transpose()
    }
}

/// Where a streaming response goes.
#[derive(Debug)]
pub struct Responses<'a, Res> {
    call: &'a Call,
    message: PhantomData<Res>,
}

impl<'a, Res: Message> Responses<'a, Res> {
    fn new(call: &'a Call) -> Self {
        Self {
            call,
            message: PhantomData,
        }
    }

    /// Sends a message. Blocks while the client takes nothing, until the call's deadline.
    ///
    /// # Errors
    /// The status with which the call is over: a handler returns it.
    pub fn send(&mut self, message: &Res) -> Result<(), Status> {
        self.call.send(message)
    }
}
