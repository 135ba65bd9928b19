//! The JSON of an order, in responses and in events.

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use uuid::Uuid;

use crate::orders::domain::Order;

/// The schema `Order` of `openapi.yaml`.
#[derive(Serialize)]
pub(super) struct OrderJson<'a> {
    id: Uuid,
    customer_email: &'a str,
    amount_cents: i64,
    status: &'static str,
    created_at: Rfc3339,
    updated_at: Rfc3339,
}

impl<'a> From<&'a Order> for OrderJson<'a> {
    fn from(order: &'a Order) -> Self {
        Self {
            id: order.id.0,
            customer_email: order.customer_email.as_str(),
            amount_cents: order.amount.get(),
            status: order.status.as_str(),
            created_at: Rfc3339(order.created_at),
            updated_at: Rfc3339(order.updated_at),
        }
    }
}

/// A time as RFC 3339 in UTC, always with six fractional digits.
pub(super) struct Rfc3339(pub(super) Timestamp);

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.0))
    }
}

/// The JSON text of one of our types.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    // Only a failing `Serialize` or a key that is not a string can fail; our types have neither.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::orders::domain::{AmountCents, CustomerEmail};

    #[test]
    fn times_have_six_digits_even_at_a_full_second() {
        let email = CustomerEmail::new("a@b.co".into()).unwrap();
        let time = Timestamp::from_second(1_760_000_000).unwrap();
        let order = Order::create(email, AmountCents::new(7).unwrap(), time);
        let text = String::from_utf8(json(&OrderJson::from(&order))).unwrap();
        assert_eq!(
            text,
            format!(
                "{{\"id\":\"{}\",\"customer_email\":\"a@b.co\",\"amount_cents\":7,\"status\":\"pending\",\
                 \"created_at\":\"2025-10-09T08:53:20.000000Z\",\"updated_at\":\"2025-10-09T08:53:20.000000Z\"}}",
                order.id
            )
        );
    }
}
