//! Query parameters of the list: `?status=&page=&page_size=&cursor=`.

use uuid::Uuid;

use crate::orders::domain::{OrderId, Status};
use crate::orders::ports::Page;
use tbd_http::FieldError;

/// The largest page number. Nobody reads further, and the arithmetic cannot overflow.
const PAGE_MAX: u32 = i32::MAX as u32;
/// The largest page.
pub const PAGE_SIZE_MAX: u32 = 100;
/// The size of a page that names none.
pub const PAGE_SIZE_DEFAULT: u32 = 20;

/// The parameters of a list request.
#[derive(Debug, PartialEq)]
pub struct ListQuery {
    /// Which orders.
    pub page: Page,
    /// The page number; `None` if the request uses a cursor.
    pub number: Option<u32>,
}

/// The cursor of the page that begins after `id`. Opaque to clients.
pub fn cursor(id: OrderId) -> String {
    id.0.simple().to_string()
}

/// The id in a cursor; `None` if it is not one.
pub fn parse_cursor(text: &str) -> Option<OrderId> {
    // Only the form that `cursor` writes; other forms of a UUID are not accepted.
    let id = Uuid::parse_str(text).ok()?;
    let exact = id.get_version_num() == 7 && text == id.simple().to_string();
    exact.then_some(OrderId(id))
}

/// Parses a raw query string. Ignores unknown parameters.
///
/// # Errors
/// Every faulty parameter.
pub fn parse(raw: &str) -> Result<ListQuery, Vec<FieldError>> {
    let mut faults = Vec::new();
    let mut fault = |field: &str, message: &str| faults.push(FieldError::new(field, message));
    let [mut status, mut page, mut page_size, mut cursor] = [None, None, None, None];
    for (name, value) in form_urlencoded::parse(raw.as_bytes()) {
        let slot = match &*name {
            "status" => &mut status,
            "page" => &mut page,
            "page_size" => &mut page_size,
            "cursor" => &mut cursor,
            _ => continue,
        };
        if slot.replace(value).is_some() {
            fault(&name, "must not appear more than once");
        }
    }
    if page.is_some() && cursor.is_some() {
        fault("cursor", "must not be combined with page");
    }
    let status = status.and_then(|text| {
        text.parse::<Status>()
            .map_err(|error| fault("status", &error.to_string()))
            .ok()
    });
    let before = cursor.as_deref().and_then(|text| {
        let before = parse_cursor(text);
        if before.is_none() {
            fault("cursor", "must be a next_cursor of an earlier answer");
        }
        before
    });
    let mut number = |name: &str, text: Option<&str>, default, max| match text {
        None => default,
        Some(text) => parse_number(text, max).unwrap_or_else(|| {
            fault(name, &format!("must be an integer from 1 to {max}"));
            default
        }),
    };
    let page_number = number("page", page.as_deref(), 1, PAGE_MAX);
    let limit = number(
        "page_size",
        page_size.as_deref(),
        PAGE_SIZE_DEFAULT,
        PAGE_SIZE_MAX,
    );
    if !faults.is_empty() {
        return Err(faults);
    }
    Ok(ListQuery {
        page: Page {
            status,
            before,
            skip: u64::from(page_number - 1) * u64::from(limit),
            limit,
        },
        number: before.is_none().then_some(page_number),
    })
}

/// A plain decimal number from 1 to `max`, without sign or spaces.
fn parse_number(text: &str, max: u32) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits)?;
    (1..=max).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faulty(raw: &str) -> Vec<String> {
        let faults = parse(raw).expect_err(raw);
        faults.into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn nothing_asked_for_means_the_first_twenty() {
        let query = parse("").unwrap();
        let page = Page {
            status: None,
            before: None,
            skip: 0,
            limit: 20,
        };
        assert_eq!(
            query,
            ListQuery {
                page,
                number: Some(1)
            }
        );
    }

    #[test]
    fn a_page_skips_those_before_it() {
        let query = parse("page=3&page_size=100&status=failed&unknown=1&unknown=2").unwrap();
        assert_eq!((query.page.skip, query.page.limit), (200, 100));
        assert_eq!(query.page.status, Some(Status::Failed));
    }

    #[test]
    fn a_cursor_is_read_back() {
        let id = OrderId::at(jiff::Timestamp::now());
        let query = parse(&format!("cursor={}", cursor(id))).unwrap();
        assert_eq!((query.page.before, query.number), (Some(id), None));
    }

    #[test]
    fn every_faulty_parameter_is_named() {
        for (raw, fields) in [
            ("status=", vec!["status"]),
            (
                "status=done&page=0&page_size=101",
                vec!["status", "page", "page_size"],
            ),
            ("page=%2B1", vec!["page"]),
            ("page=-1", vec!["page"]),
            ("page=1.0", vec!["page"]),
            ("page=4294967296", vec!["page"]),
            ("page_size=", vec!["page_size"]),
            ("page=1&page=1", vec!["page"]),
            ("cursor=", vec!["cursor"]),
            (
                "cursor=0190163d-8694-739b-aea5-966c26f8ad91",
                vec!["cursor"],
            ),
            ("cursor=zz&page=1", vec!["cursor", "cursor"]),
            ("status=%ff", vec!["status"]),
        ] {
            assert_eq!(faulty(raw), fields, "{raw}");
        }
    }
}
