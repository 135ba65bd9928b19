//! Entity tags and the conditions on them (RFC 9110, sections 8.8.3 and 13.1).

use crate::orders::domain::Order;

/// The entity tag of an order's representation, with its quotes. Every transition changes status
/// or time, so the tag changes with the representation.
pub fn etag(order: &Order) -> String {
    format!(
        "\"{:x}-{}\"",
        order.updated_at.as_microsecond(),
        order.status
    )
}

/// Whether `If-Match` holds: `*`, or one of the tags by strong comparison. Without the header
/// there is no condition.
pub fn if_match(header: Option<&str>, etag: &str) -> bool {
    header.is_none_or(|header| any(header, |tag| tag == etag))
}

/// Whether the client has this representation according to `If-None-Match`: `*`, or one of the
/// tags by weak comparison.
pub fn client_has(header: Option<&str>, etag: &str) -> bool {
    header.is_some_and(|header| any(header, |tag| tag.strip_prefix("W/").unwrap_or(tag) == etag))
}

fn any(header: &str, matches: impl Fn(&str) -> bool) -> bool {
    // Our tags contain no comma. A foreign tag with a comma is split here, and matches nothing.
    header.trim() == "*" || header.split(',').any(|tag| matches(tag.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"1-pending\"";

    #[test]
    fn if_match_compares_strongly() {
        for (header, holds) in [
            (None, true),
            (Some("*"), true),
            (Some(TAG), true),
            (Some("\"a,b\" , \"1-pending\""), true),
            (Some("W/\"1-pending\""), false),
            (Some("1-pending"), false),
            (Some("\"2-pending\""), false),
            (Some(""), false),
        ] {
            assert_eq!(if_match(header, TAG), holds, "{header:?}");
        }
    }

    #[test]
    fn if_none_match_compares_weakly() {
        for (header, has) in [
            (None, false),
            (Some("*"), true),
            (Some("\"x\", W/\"1-pending\""), true),
            (Some("\"2-pending\""), false),
        ] {
            assert_eq!(client_has(header, TAG), has, "{header:?}");
        }
    }
}
