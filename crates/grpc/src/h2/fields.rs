//! Which header lists are a message, and which are malformed (RFC 9113, sections 8.1 to 8.3).

use crate::hpack::Header;

/// Why a header list is malformed. The stream ends with PROTOCOL_ERROR.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What a header list has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListKind {
    Request,
    Response,
    Trailers,
}

/// The value of the header `name`, the first one if there are several.
pub fn find<'a>(headers: &'a [Header], name: &str) -> Option<&'a [u8]> {
    let mut headers = headers.iter();
    let header = headers.find(|header| header.name == name)?;
    Some(&header.value)
}

/// Checks a list, and returns what its content-length says.
pub(super) fn check(kind: ListKind, headers: &[Header]) -> Result<Option<u64>, Malformed> {
    let mut names = headers.iter().map(|header| &header.name);
    let regular = names.position(|name| !name.starts_with(b":"));
    let (pseudo, regular) = headers.split_at(regular.unwrap_or(headers.len()));
    check_pseudo(kind, pseudo)?;
    let mut content_length = None;
    for header in regular {
        check_regular(header)?;
        if header.name == "content-length" {
            let length = decimal(&header.value)?;
            if content_length.is_some_and(|before| before != length) {
                return Err(Malformed);
            }
            content_length = Some(length);
        }
    }
    Ok(content_length)
}

/// Pseudo-header fields: those that the kind has, once each (RFC 9113, section 8.3).
fn check_pseudo(kind: ListKind, pseudo: &[Header]) -> Result<(), Malformed> {
    let known: &[&[u8]] = match kind {
        ListKind::Request => &[b":method", b":scheme", b":path", b":authority"],
        ListKind::Response => &[b":status"],
        ListKind::Trailers => &[],
    };
    for (position, header) in pseudo.iter().enumerate() {
        let mut before = pseudo[..position].iter();
        let is_repeated = before.any(|before| before.name == header.name);
        if is_repeated || !known.contains(&&header.name[..]) || !is_value(&header.value) {
            return Err(Malformed);
        }
    }
    match kind {
        ListKind::Request => check_request_line(pseudo),
        ListKind::Response => status(pseudo).map(|_| ()),
        ListKind::Trailers => Ok(()),
    }
}

fn check_request_line(pseudo: &[Header]) -> Result<(), Malformed> {
    let is_present = |name| find(pseudo, name).is_some_and(|value| !value.is_empty());
    let is_connect = find(pseudo, ":method") == Some(b"CONNECT");
    let is_complete = if is_connect {
        is_present(":authority")
            && find(pseudo, ":scheme").is_none()
            && find(pseudo, ":path").is_none()
    } else {
        is_present(":method") && is_present(":scheme") && is_present(":path")
    };
    if is_complete { Ok(()) } else { Err(Malformed) }
}

/// The status of a response: three digits.
pub(super) fn status(headers: &[Header]) -> Result<u64, Malformed> {
    let value = find(headers, ":status").ok_or(Malformed)?;
    match decimal(value)? {
        status @ 100.. if value.len() == 3 => Ok(status),
        _ => Err(Malformed),
    }
}

/// A regular field: a name in lower case, nothing that belongs to HTTP/1.1 (RFC 9113, sections 8.2.1 and 8.2.2).
fn check_regular(header: &Header) -> Result<(), Malformed> {
    let name = &header.name[..];
    let is_forbidden = match name {
        b"connection" | b"keep-alive" | b"proxy-connection" => true,
        b"transfer-encoding" | b"upgrade" => true,
        b"te" => header.value != "trailers",
        _ => false,
    };
    let is_name = !name.is_empty() && name.iter().all(|octet| is_name_octet(*octet));
    match is_name && !is_forbidden && is_value(&header.value) {
        true => Ok(()),
        false => Err(Malformed),
    }
}

/// The characters of a token (RFC 9110, section 5.6.2), capital letters apart.
fn is_name_octet(octet: u8) -> bool {
    octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&octet)
}

pub(crate) fn is_value(value: &[u8]) -> bool {
    let is_blank = |octet: Option<&u8>| matches!(octet, Some(b' ' | b'\t'));
    !is_blank(value.first())
        && !is_blank(value.last())
        && !value.iter().any(|octet| matches!(octet, 0 | b'\r' | b'\n'))
}

fn decimal(value: &[u8]) -> Result<u64, Malformed> {
    let is_decimal = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| is_decimal);
    text.and_then(|text| text.parse().ok()).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(headers: &[(&'static str, &'static str)]) -> Vec<Header> {
        headers
            .iter()
            .map(|(name, value)| Header::new(*name, *value))
            .collect()
    }

    fn request(more: &[(&'static str, &'static str)]) -> Result<Option<u64>, Malformed> {
        let head = [(":method", "POST"), (":scheme", "http"), (":path", "/")];
        check(ListKind::Request, &list(&[&head, more].concat()))
    }

    #[test]
    fn a_request_has_a_method_a_scheme_and_a_path() {
        assert_eq!(
            request(&[(":authority", "a"), ("te", "trailers"), ("x-a", "b")]),
            Ok(None)
        );
        for left_out in 0..3 {
            let mut headers = vec![(":method", "GET"), (":scheme", "http"), (":path", "/")];
            headers.remove(left_out);
            assert_eq!(check(ListKind::Request, &list(&headers)), Err(Malformed));
        }
        assert_eq!(request(&[(":path", "/again")]), Err(Malformed));
        assert_eq!(request(&[(":status", "200")]), Err(Malformed));
        assert_eq!(
            request(&[("a", "b"), (":authority", "late")]),
            Err(Malformed)
        );
    }

    #[test]
    fn fields_of_http_1_and_capital_letters_are_malformed() {
        for bad in [
            ("connection", "close"),
            ("te", "gzip"),
            ("upgrade", "x"),
            ("X-A", "b"),
            ("", "b"),
            ("a b", "c"),
        ] {
            assert_eq!(request(&[bad]), Err(Malformed), "{bad:?}");
        }
        for value in [" a", "a\t", "a\0b", "a\nb"] {
            assert_eq!(request(&[("a", value)]), Err(Malformed), "{value:?}");
        }
    }

    #[test]
    fn a_content_length_is_one_number() {
        assert_eq!(
            request(&[("content-length", "12"), ("content-length", "12")]),
            Ok(Some(12))
        );
        assert_eq!(
            request(&[("content-length", "12"), ("content-length", "13")]),
            Err(Malformed)
        );
        assert_eq!(request(&[("content-length", "+1")]), Err(Malformed));
        assert_eq!(request(&[("content-length", "")]), Err(Malformed));
    }

    #[test]
    fn a_response_has_a_status_and_trailers_have_no_pseudo_header() {
        assert_eq!(
            check(ListKind::Response, &list(&[(":status", "200")])),
            Ok(None)
        );
        assert_eq!(
            check(ListKind::Response, &list(&[(":status", "20")])),
            Err(Malformed)
        );
        assert_eq!(
            check(ListKind::Response, &list(&[("a", "b")])),
            Err(Malformed)
        );
        assert_eq!(
            check(ListKind::Trailers, &list(&[("grpc-status", "0")])),
            Ok(None)
        );
        assert_eq!(
            check(ListKind::Trailers, &list(&[(":status", "200")])),
            Err(Malformed)
        );
    }
}
