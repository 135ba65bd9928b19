//! Routing table: methods and paths to handlers.

use std::ops::Range;

use super::problem::Problem;
use super::request::Request;
use super::response::Response;

/// The handler of a route. It runs on one of the pool's threads (or a probe thread), may block
/// within [`Request::deadline`], and may panic. After a panic the request gets a 500 and the thread
/// continues.
pub type Handler = Box<dyn Fn(&mut Request) -> Result<Response, Problem> + Send + Sync>;

/// Admits a request to its handler and identifies the sender, or answers instead of the handler.
/// Runs on the handler's thread, and must not block.
pub type Guard = Box<dyn Fn(&Request) -> Result<Identity, Problem> + Send + Sync>;

/// The sender of a request, as identified by the guard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The party that vouches for the subject.
    pub issuer: Option<String>,
    /// The sender's name, unique at the issuer.
    pub subject: Option<String>,
}

/// The table of routes. Templates have literal segments and `{name}` segments; the first template
/// that matches wins. Paths are compared byte by byte, after decoding unreserved characters only. A
/// trailing slash makes a different path.
///
/// ```
/// use tbd_http::{Response, Router};
///
/// let router = Router::new()
///     .get("/things/{id}", |request| {
///         let id = request.param("id").unwrap_or_default().to_owned();
///         Ok(Response::text(200, id))
///     })
///     .probe_get("/healthz", |_| Ok(Response::json(200, "{}")));
/// # let _ = router;
/// ```
#[derive(Default)]
pub struct Router {
    routes: Vec<Route>,
    /// Runs before the handlers of every template with this prefix.
    guard: Option<(&'static str, Guard)>,
}

/// One template with its methods and handlers.
pub(super) struct Route {
    template: &'static str,
    segments: Vec<Segment>,
    methods: Vec<(&'static str, Handler)>,
    probe: bool,
    allow: String,
}

enum Segment {
    Literal(&'static str),
    Parameter(&'static str),
}

/// The result of a look-up.
pub(super) enum Match {
    /// Route `route` answers with its handler number `handler`.
    Found {
        route: usize,
        handler: usize,
        params: Params,
    },
    /// The path is known, but the method is not.
    WrongMethod { route: usize },
    /// No template matches.
    Unmatched,
}

impl Match {
    pub(super) fn route(&self) -> Option<usize> {
        match self {
            Match::Found { route, .. } | Match::WrongMethod { route } => Some(*route),
            Match::Unmatched => None,
        }
    }
}

/// The parameters' names, with the ranges of their values in the path.
pub(super) type Params = Vec<(&'static str, Range<usize>)>;

impl Router {
    /// A table without routes: everything is 404.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET on `template`, and HEAD without the body.
    pub fn get<F>(self, template: &'static str, handler: F) -> Self
    where
        F: Fn(&mut Request) -> Result<Response, Problem> + Send + Sync + 'static,
    {
        self.add("GET", template, Box::new(handler), false)
    }

    /// Answers POST on `template`.
    pub fn post<F>(self, template: &'static str, handler: F) -> Self
    where
        F: Fn(&mut Request) -> Result<Response, Problem> + Send + Sync + 'static,
    {
        self.add("POST", template, Box::new(handler), false)
    }

    /// Answers GET (and HEAD) on `template` from threads outside the pool, so that it answers while
    /// every thread of the pool is stuck. `template` has no parameters; the handler must never
    /// block.
    pub fn probe_get<F>(self, template: &'static str, handler: F) -> Self
    where
        F: Fn(&mut Request) -> Result<Response, Problem> + Send + Sync + 'static,
    {
        self.add("GET", template, Box::new(handler), true)
    }

    /// Puts `guard` before every handler on a template that starts with `prefix`. It runs once path
    /// and method are known to be valid. It replaces an earlier guard.
    pub fn guard<F>(mut self, prefix: &'static str, guard: F) -> Self
    where
        F: Fn(&Request) -> Result<Identity, Problem> + Send + Sync + 'static,
    {
        self.guard = Some((prefix, Box::new(guard)));
        self
    }

    fn add(
        mut self,
        method: &'static str,
        template: &'static str,
        handler: Handler,
        probe: bool,
    ) -> Self {
        let known = self.routes.iter().position(|r| r.template == template);
        let index = known.unwrap_or_else(|| {
            self.routes.push(Route::new(template));
            self.routes.len() - 1
        });
        let route = &mut self.routes[index];
        route.methods.push((method, handler));
        route.probe |= probe;
        route.allow = route
            .methods
            .iter()
            .map(|(method, _)| {
                if *method == "GET" {
                    "GET, HEAD"
                } else {
                    method
                }
            })
            .collect::<Vec<_>>()
            .join(", ");
        self
    }

    /// Finds the handler of `method` on `path` (without the query).
    pub(super) fn find(&self, method: &str, path: &str) -> Match {
        let wanted = if method == "HEAD" { "GET" } else { method };
        for (index, route) in self.routes.iter().enumerate() {
            let Some(params) = route.matches(path) else {
                continue;
            };
            return match route.methods.iter().position(|(m, _)| *m == wanted) {
                Some(handler) => Match::Found {
                    route: index,
                    handler,
                    params,
                },
                None => Match::WrongMethod { route: index },
            };
        }
        Match::Unmatched
    }

    pub(super) fn template(&self, route: usize) -> &'static str {
        self.routes[route].template
    }

    /// Whether the probe threads answer `path`.
    pub(super) fn is_probe(&self, path: &str) -> bool {
        self.routes.iter().any(|r| r.probe && r.template == path)
    }

    pub(super) fn allow(&self, route: usize) -> &str {
        &self.routes[route].allow
    }

    /// Asks the guard, if `route` has one; otherwise `None`.
    pub(super) fn admit(
        &self,
        route: usize,
        request: &Request,
    ) -> Result<Option<Identity>, Problem> {
        match &self.guard {
            Some((prefix, guard)) if self.template(route).starts_with(prefix) => {
                guard(request).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub(super) fn handler(&self, route: usize, handler: usize) -> &Handler {
        &self.routes[route].methods[handler].1
    }
}

impl Route {
    fn new(template: &'static str) -> Self {
        let segments = template
            .split('/')
            .map(|segment| {
                match segment
                    .strip_prefix('{')
                    .and_then(|rest| rest.strip_suffix('}'))
                {
                    Some(name) => Segment::Parameter(name),
                    None => Segment::Literal(segment),
                }
            })
            .collect();
        Self {
            template,
            segments,
            methods: Vec::new(),
            probe: false,
            allow: String::new(),
        }
    }

    /// The parameters' ranges if `path` matches. Allocates only for a template that has parameters.
    fn matches(&self, path: &str) -> Option<Params> {
        let mut params = Params::new();
        let mut start = 0;
        let mut segments = self.segments.iter();
        for part in path.split('/') {
            let end = start + part.len();
            match segments.next()? {
                Segment::Literal(literal) if *literal == part => {}
                Segment::Parameter(name) if !part.is_empty() => params.push((*name, start..end)),
                _ => return None,
            }
            start = end + 1;
        }
        segments.next().is_none().then_some(params)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router() -> Router {
        Router::new()
            .get("/v1/orders", |_| Ok(Response::text(200, "list")))
            .post("/v1/orders", |_| Ok(Response::text(200, "create")))
            .get("/v1/orders/{id}", |_| Ok(Response::text(200, "one")))
            .probe_get("/healthz", |_| Ok(Response::text(200, "ok")))
    }

    fn describe(method: &str, path: &str) -> String {
        let router = router();
        match router.find(method, path) {
            Match::Found { route, params, .. } => {
                let values: Vec<_> = params
                    .iter()
                    .map(|(name, place)| format!("{name}={}", &path[place.clone()]))
                    .collect();
                format!("{} {}", router.template(route), values.join(" "))
            }
            Match::WrongMethod { route } => format!("allow {}", router.allow(route)),
            Match::Unmatched => "unmatched".to_owned(),
        }
    }

    #[test]
    fn a_parameter_takes_one_whole_segment() {
        assert_eq!(describe("GET", "/v1/orders/7"), "/v1/orders/{id} id=7");
        assert_eq!(describe("GET", "/v1/orders/"), "unmatched");
        assert_eq!(describe("GET", "/v1/orders/7/8"), "unmatched");
        assert_eq!(describe("GET", "v1/orders"), "unmatched");
    }

    #[test]
    fn head_is_answered_where_get_is() {
        assert_eq!(describe("HEAD", "/v1/orders"), "/v1/orders ");
        assert_eq!(describe("HEAD", "/healthz"), "/healthz ");
    }

    #[test]
    fn another_method_on_a_known_path_names_those_allowed() {
        assert_eq!(describe("PUT", "/v1/orders"), "allow GET, HEAD, POST");
        assert_eq!(describe("DELETE", "/v1/orders/7"), "allow GET, HEAD");
        assert_eq!(describe("PUT", "/v2/orders"), "unmatched");
    }
}
