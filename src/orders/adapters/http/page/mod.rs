//! The demo page, `GET /`: it posts orders and shows the state of the API.
//!
//! One document, so that two versions behind one load balancer never mix their parts. It is built
//! once from the three files next to this one. A strict content security policy allows its own
//! style and script by their hashes, and nothing else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::conditional::client_has;
use tbd_http::{Response, Router};

const HTML: &str = include_str!("page.html");
const CSS: &str = include_str!("page.css");
const JS: &str = include_str!("page.js");

/// Adds the page to `router`. Its trace ids link to the Jaeger at `jaeger_ui`; without one they
/// are plain text.
///
/// The probe threads serve it: the page must open when no thread of the pool is free.
pub fn page(router: Router, jaeger_ui: Option<&str>) -> Router {
    let html = HTML
        .replace("{{jaeger}}", &attribute(jaeger_ui.unwrap_or_default()))
        .replace("{{css}}", CSS)
        .replace("{{js}}", JS);
    let policy = format!(
        "default-src 'none'; style-src '{}'; script-src '{}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
        source(CSS),
        source(JS)
    );
    let etag = format!("\"{}\"", STANDARD.encode(Sha256::digest(&html)));
    router.probe_get("/", move |request| {
        let has = client_has(request.header("If-None-Match"), &etag);
        let response = match has {
            true => Response::new(304),
            false => Response::new(200)
                .header("Content-Type", "text/html; charset=utf-8")
                .body(html.clone()),
        };
        Ok(response
            .header("ETag", etag.clone())
            .header("Cache-Control", "no-cache")
            .header("Content-Security-Policy", policy.clone())
            .header("X-Content-Type-Options", "nosniff")
            .header("Referrer-Policy", "no-referrer")
            .header("Cross-Origin-Opener-Policy", "same-origin"))
    })
}

/// The policy's source expression for one inline text: its hash (CSP Level 3, section 2.3.1).
fn source(text: &str) -> String {
    format!("sha256-{}", STANDARD.encode(Sha256::digest(text)))
}

/// Escapes a text for an attribute value in double quotes.
fn attribute(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;")
}
