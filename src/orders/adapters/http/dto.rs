//! JSON bodies: strict parsing of requests, exact rendering of responses.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::orders::adapters::wire::{OrderJson, json};
use crate::orders::app::queries::Listed;
use crate::orders::domain::{AmountCents, AmountError, CustomerEmail, Order};
use tbd_http::FieldError;

/// The JSON of one order.
pub fn order_body(order: &Order) -> Vec<u8> {
    json(&OrderJson::from(order))
}

/// The JSON of a page of orders; `page` is null when a cursor was used.
pub fn list_body(listed: &Listed, page: Option<u32>, page_size: u32) -> Vec<u8> {
    #[derive(Serialize)]
    struct ListJson<'a> {
        orders: Vec<OrderJson<'a>>,
        page: Option<u32>,
        page_size: u32,
        has_more: bool,
        next_cursor: Option<String>,
    }
    let last = listed.orders.last().filter(|_| listed.has_more);
    json(&ListJson {
        orders: listed.orders.iter().map(OrderJson::from).collect(),
        page,
        page_size,
        has_more: listed.has_more,
        next_cursor: last.map(|order| super::query::cursor(order.id)),
    })
}

/// Why a body is not a new order.
#[derive(Debug, PartialEq)]
pub enum BodyError {
    /// Not JSON: where and why.
    Syntax(String),
    /// JSON, but not a new order: every fault.
    Fields(Vec<FieldError>),
}

/// Parses `{"customer_email", "amount_cents"}`: exactly these fields, each once.
///
/// Works on the raw text of each field. So it can distinguish `5.0` and `5e2` from an integer,
/// and it finds all faults at once.
///
/// # Errors
/// [`BodyError`].
pub fn parse_new_order(body: &[u8]) -> Result<(CustomerEmail, AmountCents), BodyError> {
    let syntax = |error: serde_json::Error| BodyError::Syntax(error.to_string());
    let value: &RawValue = serde_json::from_slice(body).map_err(syntax)?;
    if !value.get().starts_with('{') {
        return Err(BodyError::Fields(vec![fault("", "must be a JSON object")]));
    }
    let Fields(fields) = serde_json::from_str(value.get()).map_err(syntax)?;

    let mut faults = Vec::new();
    let mut seen = HashSet::new();
    let (mut email, mut amount) = (None, None);
    for (name, value) in &fields {
        if !seen.insert(name.as_str()) {
            faults.push(fault(name, "must not appear more than once"));
            continue;
        }
        match name.as_str() {
            "customer_email" => email = Some(parse_email(value)),
            "amount_cents" => amount = Some(parse_amount(value)),
            _ => faults.push(fault(name, "is not a known field")),
        }
    }
    let email = required("customer_email", email, &mut faults);
    let amount = required("amount_cents", amount, &mut faults);
    match (email, amount) {
        (Some(email), Some(amount)) if faults.is_empty() => Ok((email, amount)),
        _ => Err(BodyError::Fields(faults)),
    }
}

fn required<T>(
    name: &str,
    parsed: Option<Result<T, String>>,
    faults: &mut Vec<FieldError>,
) -> Option<T> {
    match parsed {
        Some(Ok(value)) => return Some(value),
        Some(Err(message)) => faults.push(fault(name, &message)),
        None => faults.push(fault(name, "is required")),
    }
    None
}

fn parse_email(value: &RawValue) -> Result<CustomerEmail, String> {
    let text: String =
        serde_json::from_str(value.get()).map_err(|_| "must be a string".to_owned())?;
    CustomerEmail::new(text).map_err(|error| error.to_string())
}

fn parse_amount(value: &RawValue) -> Result<AmountCents, String> {
    // The grammar of JSON allows integers, fractions and exponents. `i64` parses integers only;
    // `-0` becomes 0, which is out of range.
    let cents: i64 = value.get().parse().map_err(|_| AmountError.to_string())?;
    AmountCents::new(cents).map_err(|error| error.to_string())
}

fn fault(field: &str, message: &str) -> FieldError {
    // The response repeats names that the client invented, so their length is limited.
    const NAME_CHARS_MAX: usize = 64;
    let field: String = field.chars().take(NAME_CHARS_MAX).collect();
    FieldError::new(field, message)
}

/// The members of an object in order, with duplicates and with unparsed values.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Fields(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(body: &str) -> Vec<(String, String)> {
        match parse_new_order(body.as_bytes()) {
            Err(BodyError::Fields(faults)) => {
                faults.into_iter().map(|f| (f.field, f.message)).collect()
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    fn faulty_fields(body: &str) -> Vec<String> {
        faults(body).into_iter().map(|(field, _)| field).collect()
    }

    #[test]
    fn whitespace_and_order_of_fields_do_not_matter() {
        let plain = parse_new_order(br#"{"customer_email":"a@b.co","amount_cents":5}"#).unwrap();
        let other =
            parse_new_order(b" {\n\"amount_cents\" :5, \"customer_email\":\"a\\u0040b.co\"} ");
        assert_eq!(other.unwrap(), plain);
    }

    #[test]
    fn what_is_not_json_differs_from_what_is_not_an_order() {
        for body in [
            &b""[..],
            b"{",
            b"{\"a\":}",
            b"\xff",
            b"{}x",
            b"{\"a\":01}",
            b"\"\xc3\"",
        ] {
            assert!(
                matches!(parse_new_order(body), Err(BodyError::Syntax(_))),
                "{body:?}"
            );
        }
        for body in ["[]", "null", "5", "\"x\""] {
            assert_eq!(faulty_fields(body), [""], "{body}");
        }
    }

    #[test]
    fn every_faulty_field_is_listed_at_once() {
        let body = r#"{"customer_email":"nobody","amount_cents":"5","extra":1,"extra":2}"#;
        let expected = ["extra", "extra", "customer_email", "amount_cents"];
        assert_eq!(faulty_fields(body), expected);
        assert_eq!(faulty_fields("{}"), ["customer_email", "amount_cents"]);
    }

    #[test]
    fn a_field_given_twice_is_refused_even_if_both_agree() {
        let body = r#"{"customer_email":"a@b.co","amount_cents":5,"amount_cents":5}"#;
        assert_eq!(faulty_fields(body), ["amount_cents"]);
    }

    #[test]
    fn only_integers_in_range_are_amounts() {
        for amount in [
            "5.0",
            "5e2",
            "\"5\"",
            "-1",
            "0",
            "-0",
            "9007199254740992",
            "1e999",
            "null",
            "true",
            "99999999999999999999999999",
            "[5]",
            "{}",
        ] {
            let body = format!(r#"{{"customer_email":"a@b.co","amount_cents":{amount}}}"#);
            assert_eq!(faulty_fields(&body), ["amount_cents"], "{amount}");
        }
    }

    #[test]
    fn only_strings_of_characters_are_addresses() {
        for email in [
            "5",
            "null",
            r#""a\ud800@b.co""#,
            r#""a\u0000@b.co""#,
            "[\"a@b.co\"]",
        ] {
            let body = format!(r#"{{"customer_email":{email},"amount_cents":5}}"#);
            assert_eq!(faulty_fields(&body), ["customer_email"], "{email}");
        }
    }

    #[test]
    fn deep_nesting_is_a_client_error_like_any_other() {
        let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        assert!(parse_new_order(deep.as_bytes()).is_err());
    }
}
