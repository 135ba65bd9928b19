//! The order: its values and transitions.

use std::fmt;

use jiff::Timestamp;
use uuid::{Builder, Uuid};

use super::Status;

/// The id of an order: a UUIDv7 (RFC 9562) that sorts by creation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId(pub Uuid);

impl OrderId {
    /// A new id for an order created at `created_at`.
    ///
    /// The 12 bits after the milliseconds carry the microseconds (RFC 9562, section 6.2,
    /// method 3). So ids of all instances sort by `created_at`, to the microsecond. The primary
    /// key can therefore serve "newest first" and cursors without a second index.
    pub fn at(created_at: Timestamp) -> Self {
        let micros = created_at.as_microsecond().max(0).unsigned_abs();
        // Microseconds within the millisecond, 0..1000, spread over 0..4096.
        let fraction = (micros % 1000) * 4096 / 1000;
        // A v4 is random except for its version and variant bits, which are not used here.
        let entropy = Uuid::new_v4().into_bytes();
        let mut tail = [0; 10];
        tail[0] = (fraction >> 8) as u8;
        tail[1] = (fraction & 0xff) as u8;
        tail[2..8].copy_from_slice(&entropy[..6]);
        tail[8..].copy_from_slice(&entropy[14..]);
        Self(Builder::from_unix_timestamp_millis(micros / 1000, &tail).into_uuid())
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A plausible e-mail address: one `@`, 1 to 64 bytes before it, a domain with a dot after it, at
/// most 254 bytes in all, no spaces or control characters.
///
/// Plausible only: nothing but an e-mail proves that an address works. `openapi.yaml` has the
/// same rules as a pattern.
/// `Debug` hides the address, so that it cannot get into a log by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct CustomerEmail(String);

/// The rule that a text breaks, so that it is not a plausible address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must {0}")]
pub struct EmailError(&'static str);

impl CustomerEmail {
    /// Checks `text`.
    ///
    /// # Errors
    /// The first rule that `text` breaks.
    pub fn new(text: String) -> Result<Self, EmailError> {
        // RFC 5321, as RFC 3696 erratum 1690 counts.
        if text.len() > 254 {
            return Err(EmailError("be at most 254 bytes long"));
        }
        if text.chars().any(is_invisible) {
            return Err(EmailError("not contain spaces or control characters"));
        }
        let not_one_at = EmailError("contain exactly one @");
        let (local, domain) = text.split_once('@').ok_or(not_one_at)?;
        if domain.contains('@') {
            return Err(not_one_at);
        }
        if !(1..=64).contains(&local.len()) {
            return Err(EmailError("have 1 to 64 bytes before the @"));
        }
        if !domain.contains('.') || domain.split('.').any(str::is_empty) {
            return Err(EmailError("have a domain with a dot after the @"));
        }
        Ok(Self(text))
    }

    /// An address from the store, unchecked: the rules may have changed since it was accepted,
    /// and its order must stay readable.
    pub fn accepted_before(text: String) -> Self {
        Self(text)
    }

    /// The address.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A space or control character according to Unicode or ECMA-262, whose `\s` also includes
/// U+FEFF. Forms and scripts may strip what either of them counts as a space.
fn is_invisible(c: char) -> bool {
    c.is_whitespace() || c.is_control() || c == '\u{feff}'
}

impl fmt::Debug for CustomerEmail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CustomerEmail(..)")
    }
}

/// An amount in cents, 1 to 2^53 - 1: every JSON parser represents it exactly (RFC 8259,
/// section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AmountCents(i64);

/// The amount is outside 1..=9007199254740991.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be an integer from 1 to 9007199254740991")]
pub struct AmountError;

impl AmountCents {
    /// The largest amount.
    pub const MAX: i64 = 9_007_199_254_740_991;

    /// Checks `cents`.
    ///
    /// # Errors
    /// [`AmountError`] outside the range.
    pub fn new(cents: i64) -> Result<Self, AmountError> {
        if (1..=Self::MAX).contains(&cents) {
            Ok(Self(cents))
        } else {
            Err(AmountError)
        }
    }

    /// The amount in cents.
    pub fn get(self) -> i64 {
        self.0
    }
}

/// The state of an order at `updated_at`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Identity; sorts by creation time.
    pub id: OrderId,
    /// The customer.
    pub customer_email: CustomerEmail,
    /// The price.
    pub amount: AmountCents,
    /// The current status.
    pub status: Status,
    /// When it was accepted, to the microsecond.
    pub created_at: Timestamp,
    /// When it last changed, to the microsecond.
    pub updated_at: Timestamp,
}

/// The order is not pending any more, so it cannot be canceled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the order is {0} and can no longer be canceled")]
pub struct NotPending(pub Status);

impl Order {
    /// A new, pending order accepted at `now`. The time is truncated to the database's
    /// microseconds, so the answer equals the stored order.
    pub fn create(customer_email: CustomerEmail, amount: AmountCents, now: Timestamp) -> Self {
        let now = to_microsecond(now);
        Self {
            id: OrderId::at(now),
            customer_email,
            amount,
            status: Status::Pending,
            created_at: now,
            updated_at: now,
        }
    }

    /// The order, canceled at `now`. An order that is canceled already stays unchanged.
    ///
    /// # Errors
    /// [`NotPending`] once processing has begun.
    pub fn cancel(&self, now: Timestamp) -> Result<Self, NotPending> {
        match self.status {
            Status::Canceled => Ok(self.clone()),
            status if status.may_become(Status::Canceled) => Ok(Self {
                status: Status::Canceled,
                // Another machine's clock may be behind: never earlier than the creation.
                updated_at: to_microsecond(now).max(self.created_at),
                ..self.clone()
            }),
            status => Err(NotPending(status)),
        }
    }
}

fn to_microsecond(timestamp: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(timestamp.as_microsecond()).unwrap_or(timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: i64) -> Timestamp {
        Timestamp::from_microsecond(micros).unwrap()
    }

    fn order(status: Status) -> Order {
        let email = CustomerEmail::new("a@b.example".into()).unwrap();
        let mut order = Order::create(email, AmountCents::new(1).unwrap(), at(5_000_000));
        order.status = status;
        order
    }

    #[test]
    fn ids_sort_as_their_creation_times_to_the_microsecond() {
        let start = 1_760_000_000_000_000;
        let ids: Vec<OrderId> = (0..3000).map(|n| OrderId::at(at(start + n))).collect();
        assert!(ids.is_sorted());
        assert!(ids.iter().all(|id| id.0.get_version_num() == 7));
    }

    #[test]
    fn ids_of_one_microsecond_differ() {
        let ids: std::collections::HashSet<OrderId> =
            (0..10_000).map(|_| OrderId::at(at(1))).collect();
        assert_eq!(ids.len(), 10_000);
    }

    #[test]
    fn plausible_addresses_are_taken() {
        let longest = format!("{}@{}.example", "l".repeat(64), "d".repeat(254 - 65 - 8));
        for text in [
            "a@b.co",
            "jürgen@straße.example",
            "o'neil+x@b.c.d",
            &longest,
        ] {
            assert!(CustomerEmail::new(text.into()).is_ok(), "{text}");
        }
    }

    #[test]
    fn implausible_addresses_are_refused_with_the_broken_rule() {
        for (text, rule) in [
            ("", "must contain exactly one @"),
            ("ab.co", "must contain exactly one @"),
            ("a@b@c.co", "must contain exactly one @"),
            ("@b.co", "must have 1 to 64 bytes before the @"),
            (
                &format!("{}@b.co", "l".repeat(65)),
                "must have 1 to 64 bytes before the @",
            ),
            ("a@", "must have a domain with a dot after the @"),
            ("a@localhost", "must have a domain with a dot after the @"),
            ("a@.co", "must have a domain with a dot after the @"),
            ("a@b..co", "must have a domain with a dot after the @"),
            ("a@b.", "must have a domain with a dot after the @"),
            ("a b@c.co", "must not contain spaces or control characters"),
            ("a@b.co\n", "must not contain spaces or control characters"),
            ("a\0@b.co", "must not contain spaces or control characters"),
            (
                "a\u{feff}@b.co",
                "must not contain spaces or control characters",
            ),
            (
                &format!("a@{}.co", "d".repeat(250)),
                "must be at most 254 bytes long",
            ),
        ] {
            let error = CustomerEmail::new(text.into()).unwrap_err();
            assert_eq!(error.to_string(), rule, "{text:?}");
        }
    }

    #[test]
    fn amounts_have_a_first_and_a_last() {
        for (cents, fits) in [
            (i64::MIN, false),
            (0, false),
            (1, true),
            (AmountCents::MAX, true),
            (AmountCents::MAX + 1, false),
        ] {
            assert_eq!(AmountCents::new(cents).is_ok(), fits, "{cents}");
        }
    }

    #[test]
    fn only_a_pending_order_can_be_canceled() {
        let canceled = order(Status::Pending).cancel(at(6_000_000)).unwrap();
        assert_eq!(canceled.status, Status::Canceled);
        assert_eq!(canceled.updated_at, at(6_000_000));
        for status in [Status::Processing, Status::Completed, Status::Failed] {
            assert_eq!(order(status).cancel(at(6_000_000)), Err(NotPending(status)));
        }
    }

    #[test]
    fn canceling_again_changes_nothing() {
        let canceled = order(Status::Pending).cancel(at(6_000_000)).unwrap();
        assert_eq!(canceled.cancel(at(7_000_000)), Ok(canceled));
    }

    #[test]
    fn an_address_stays_out_of_debug_output() {
        assert!(!format!("{:?}", order(Status::Pending)).contains("b.example"));
    }
}
