//! Orders and pages as protobuf messages.

use jiff::Timestamp;
use serde::Deserialize;
use uuid::Uuid;

use crate::orders::adapters::http::conditional::etag;
use crate::orders::adapters::http::query::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, parse_cursor};
use crate::orders::domain::{AmountCents, CustomerEmail, Order, OrderId, Status};
use crate::orders::ports::Page;
use crate::proto::orders as proto;
use tbd_http::{FieldError, Problem, problem};

/// The message of an order.
pub(super) fn order(order: &Order) -> proto::Order {
    proto::Order {
        id: order.id.to_string(),
        customer_email: order.customer_email.as_str().to_owned(),
        amount_cents: order.amount.get(),
        status: status(order.status).into(),
        created_at: Some(timestamp(order.created_at)),
        updated_at: Some(timestamp(order.updated_at)),
        etag: etag(order),
    }
}

/// The message of an order that the REST adapter or this one stored as JSON.
///
/// # Errors
/// 500 for JSON that neither of them wrote.
pub(super) fn stored_order(body: &[u8]) -> Result<proto::Order, Problem> {
    #[derive(Deserialize)]
    struct Stored {
        id: Uuid,
        customer_email: String,
        amount_cents: i64,
        status: String,
        created_at: Timestamp,
        updated_at: Timestamp,
    }
    let parse = || {
        let stored: Stored = serde_json::from_slice(body).ok()?;
        Some(order(&Order {
            id: OrderId(stored.id),
            customer_email: CustomerEmail::accepted_before(stored.customer_email),
            amount: AmountCents::new(stored.amount_cents).ok()?,
            status: stored.status.parse().ok()?,
            created_at: stored.created_at,
            updated_at: stored.updated_at,
        }))
    };
    parse().ok_or_else(|| {
        log::error!("a stored answer is not an order");
        problem::internal()
    })
}

/// The page that a request asks for.
///
/// # Errors
/// Every faulty field.
pub(super) fn page(request: &proto::ListOrdersRequest) -> Result<Page, Vec<FieldError>> {
    let mut faults = Vec::new();
    let wanted = proto::OrderStatus::try_from(request.status);
    if wanted.is_err() {
        faults.push(FieldError::new("status", "must be a known status"));
    }
    let limit = match u32::try_from(request.page_size) {
        Ok(0) => PAGE_SIZE_DEFAULT,
        Ok(size) if size <= PAGE_SIZE_MAX => size,
        _ => {
            let message = format!("must be an integer from 0 to {PAGE_SIZE_MAX}");
            faults.push(FieldError::new("page_size", message));
            PAGE_SIZE_DEFAULT
        }
    };
    let before = parse_cursor(&request.page_token);
    if before.is_none() && !request.page_token.is_empty() {
        let message = "must be a next_page_token of an earlier answer";
        faults.push(FieldError::new("page_token", message));
    }
    if !faults.is_empty() {
        return Err(faults);
    }
    let is_wanted = |known: &Status| wanted == Ok(status(*known));
    Ok(Page {
        status: Status::ALL.into_iter().find(is_wanted),
        before,
        skip: 0,
        limit,
    })
}

fn status(status: Status) -> proto::OrderStatus {
    match status {
        Status::Pending => proto::OrderStatus::Pending,
        Status::Processing => proto::OrderStatus::Processing,
        Status::Completed => proto::OrderStatus::Completed,
        Status::Failed => proto::OrderStatus::Failed,
        Status::Canceled => proto::OrderStatus::Canceled,
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    // Orders are created after 1970, so the nanoseconds are not negative.
    prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}
