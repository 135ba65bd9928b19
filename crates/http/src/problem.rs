//! Errors as the client sees them: problem details (RFC 9457).

use std::borrow::Cow;

use serde::Serialize;

use super::response::Response;

/// The prefix of every problem type. The slug that follows is stable: clients distinguish problems
/// by it.
pub const TYPE_PREFIX: &str = "urn:tbd:problem:";

/// Media type of a problem.
pub const CONTENT_TYPE: &str = "application/problem+json";

/// An error response. The server adds `trace_id` and `span_id` when it renders it.
///
/// `detail` is for the client: no SQL statement, no stack trace, no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    status: u16,
    slug: &'static str,
    title: &'static str,
    detail: Cow<'static, str>,
    errors: Vec<FieldError>,
    headers: Vec<(Cow<'static, str>, Cow<'static, str>)>,
}

/// One invalid field of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// The field's name as the client knows it.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl FieldError {
    /// A faulty field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    trace_id: &'a str,
    span_id: &'a str,
}

impl Problem {
    /// A problem of type `urn:tbd:problem:{slug}`. The title is the same for every occurrence of
    /// the type; the detail describes this one.
    pub fn new(
        status: u16,
        slug: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            status,
            slug,
            title,
            detail: detail.into(),
            errors: Vec::new(),
            headers: Vec::new(),
        }
    }

    /// Adds the faulty fields.
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        self.errors = errors;
        self
    }

    /// Adds the number of seconds after which a retry makes sense.
    pub fn retry_after(self, seconds: u64) -> Self {
        self.header("Retry-After", seconds.to_string())
    }

    /// Adds a header to the response.
    pub fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The last part of the type.
    pub fn slug(&self) -> &'static str {
        self.slug
    }

    /// The description of this occurrence.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// The faulty fields.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// The problem's headers, without `Content-Type`.
    pub fn headers(&self) -> &[(Cow<'static, str>, Cow<'static, str>)] {
        &self.headers
    }

    /// The body (`application/problem+json`), with the ids of the request's span.
    pub fn body(&self, trace_id: &str, span_id: &str) -> Vec<u8> {
        let body = Body {
            kind: format!("{TYPE_PREFIX}{}", self.slug),
            title: self.title,
            status: self.status,
            detail: &self.detail,
            errors: &self.errors,
            trace_id,
            span_id,
        };
        // Strings and numbers always serialize.
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// The response, with the ids of the request's span.
    pub(super) fn into_response(self, trace_id: &str, span_id: &str) -> Response {
        let mut response = Response::new(self.status)
            .header("Content-Type", CONTENT_TYPE)
            .body(self.body(trace_id, span_id));
        response.headers.extend(self.headers);
        response
    }
}

/// No route has this path.
pub fn not_found() -> Problem {
    Problem::new(404, "not-found", "Not found", "Nothing is at this path.")
}

/// The path is known but the method is not; `allow` lists the valid ones.
pub fn method_not_allowed(allow: &str) -> Problem {
    Problem::new(
        405,
        "method-not-allowed",
        "Method not allowed",
        format!("This path answers {allow}."),
    )
    .header("Allow", allow.to_owned())
}

/// The request contradicts itself.
pub fn malformed(detail: &'static str) -> Problem {
    Problem::new(400, "malformed-request", "Malformed request", detail)
}

/// The body exceeds `limit` bytes.
pub fn body_too_large(limit: usize) -> Problem {
    Problem::new(
        413,
        "body-too-large",
        "Body too large",
        format!("The body may have {limit} bytes at most."),
    )
}

/// The body did not arrive within the request's deadline.
pub fn body_timeout() -> Problem {
    Problem::new(
        408,
        "request-timeout",
        "Request timed out",
        "The body did not arrive in time.",
    )
}

/// Refused, because too many requests wait already.
pub fn overloaded() -> Problem {
    Problem::new(
        503,
        "overloaded",
        "Overloaded",
        "More requests are waiting than can be answered in time.",
    )
    .retry_after(1)
}

/// The deadline passed before a thread took the request.
pub fn waited_too_long() -> Problem {
    Problem::new(
        503,
        "overloaded",
        "Overloaded",
        "The request's time was over before a thread was free.",
    )
    .retry_after(1)
}

/// An error of the server itself.
pub fn internal() -> Problem {
    Problem::new(
        500,
        "internal-error",
        "Internal error",
        "Something went wrong on our side.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_its_type_its_span_and_the_faulty_fields() {
        let response = Problem::new(400, "validation-failed", "Validation failed", "One field.")
            .with_errors(vec![FieldError::new("amount_cents", "is missing")])
            .into_response("t", "s");
        assert_eq!(
            String::from_utf8(response.body).unwrap(),
            r#"{"type":"urn:tbd:problem:validation-failed","title":"Validation failed","status":400,"detail":"One field.","errors":[{"field":"amount_cents","message":"is missing"}],"trace_id":"t","span_id":"s"}"#
        );
    }

    #[test]
    fn a_problem_without_faulty_fields_has_no_list_of_them() {
        let response = overloaded().into_response("t", "s");
        assert!(
            !String::from_utf8(response.body.clone())
                .unwrap()
                .contains("errors")
        );
        assert!(
            response
                .headers
                .contains(&("Retry-After".into(), "1".into()))
        );
    }
}
