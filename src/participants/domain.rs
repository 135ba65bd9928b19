//! Rules of the participants: the effect of a command on a saga's hold, and its answer.
//!
//! | Command | no hold yet | held | settled | released | refused |
//! | --- | --- | --- | --- | --- | --- |
//! | hold | **held** or **refused** | done | done | done | refused, same reason |
//! | settle | **refused** | **settled** | done | refused | refused |
//! | release | **refused**, answers done | **released** | refused | done | done |
//!
//! Bold: the command changes the state. Only "held" can still change, and only once. So the answer
//! to a command never changes, in whatever order commands arrive and however often. A compensation
//! that overtakes its command leaves "refused" behind, and the late command finds it.

#[cfg(test)]
mod tests;

use std::borrow::Cow;

use uuid::Uuid;

/// One of the two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Participant {
    /// Holds units of the one product, then sells them.
    Inventory,
    /// Authorizes payments, then captures them.
    Payments,
}

/// The effect that a command asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reserve stock, or authorize a payment.
    Hold,
    /// Sell what is reserved, or capture what is authorized.
    Settle,
    /// The compensation: release the stock, or void the payment.
    Release,
}

/// A command of one saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The saga.
    pub saga: Uuid,
    /// Units (inventory) or cents (payments) to hold; of no meaning for other actions.
    pub quantity: i64,
    /// The order's amount in cents, for [`refusal_on_purpose`](Participant::refusal_on_purpose).
    pub amount_cents: i64,
}

/// Why a command is refused: one word in snake case.
pub type Reason = Cow<'static, str>;

/// The state of a saga's hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Reserved or authorized.
    Held,
    /// Sold or captured.
    Settled,
    /// It was held and is not any more.
    Released,
    /// Nothing was held, and nothing will be.
    Refused(Reason),
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The command has its effect.
    Done,
    /// The command has no effect and never will.
    Refused(Reason),
}

impl Participant {
    /// The state that `action` leaves behind, and its answer. `state` is `None` before a saga's first
    /// command. `admit` decides about a new hold; it is called only for one.
    pub fn decide(
        self,
        action: Action,
        state: Option<State>,
        admit: impl FnOnce() -> Result<(), Reason>,
    ) -> (State, Answer) {
        use Action::{Hold, Release, Settle};
        use State::{Held, Refused, Released, Settled};
        let state = match (action, state) {
            (Hold, None) => admit().map_or_else(Refused, |()| Held),
            (Settle, None) => Refused(self.not_held().into()),
            (Release, None) => Refused(self.released().into()),
            (Settle, Some(Held)) => Settled,
            (Release, Some(Held)) => Released,
            (_, Some(state)) => state,
        };
        let answer = match (action, &state) {
            (Hold, Refused(reason)) => Answer::Refused(reason.clone()),
            (Hold, _) | (Settle, Settled) | (Release, Released | Refused(_)) => Answer::Done,
            (Settle, Released) => Answer::Refused(self.released().into()),
            (Settle, Held | Refused(_)) => Answer::Refused(self.not_held().into()),
            (Release, Held | Settled) => Answer::Refused(self.settled().into()),
        };
        (state, answer)
    }

    /// Refuses some amounts, as the sandboxes of payment providers do: amounts that end in 02 are out
    /// of stock, and amounts that end in 51 are declined.
    pub fn refusal_on_purpose(self, amount_cents: i64) -> Option<Reason> {
        match (self, amount_cents % 100) {
            (Self::Inventory, 2) => Some(OUT_OF_STOCK.into()),
            (Self::Payments, 51) => Some("insufficient_funds".into()),
            _ => None,
        }
    }

    /// Whether the answer to `action` comes late on purpose: authorizations of amounts that end in 19.
    pub fn is_late_on_purpose(self, action: Action, amount_cents: i64) -> bool {
        self == Self::Payments && action == Action::Hold && amount_cents % 100 == 19
    }

    /// The name of the service, and of its database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inventory => "inventory",
            Self::Payments => "payments",
        }
    }

    /// The full name of its gRPC service.
    pub fn service(self) -> &'static str {
        match self {
            Self::Inventory => "tbd.inventory.v1.InventoryService",
            Self::Payments => "tbd.payments.v1.PaymentsService",
        }
    }

    /// The word for [`State::Held`].
    pub fn held(self) -> &'static str {
        match self {
            Self::Inventory => "held",
            Self::Payments => "authorized",
        }
    }

    /// The word for [`State::Settled`], and the reason for refusing its release.
    pub fn settled(self) -> &'static str {
        match self {
            Self::Inventory => "sold",
            Self::Payments => "captured",
        }
    }

    /// The word for [`State::Released`], and the reason for refusing what comes after it.
    pub fn released(self) -> &'static str {
        match self {
            Self::Inventory => "released",
            Self::Payments => "voided",
        }
    }

    fn not_held(self) -> &'static str {
        match self {
            Self::Inventory => "not_reserved",
            Self::Payments => "not_authorized",
        }
    }

    /// The name of the step that sends `action`, for metrics.
    pub fn step(self, action: Action) -> &'static str {
        match (self, action) {
            (Self::Inventory, Action::Hold) => "reserve",
            (Self::Inventory, Action::Settle) => "confirm",
            (Self::Inventory, Action::Release) => "release",
            (Self::Payments, Action::Hold) => "authorize",
            (Self::Payments, Action::Settle) => "capture",
            (Self::Payments, Action::Release) => "void",
        }
    }
}

const OUT_OF_STOCK: &str = "out_of_stock";

/// The units of the one product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    /// Units that can be reserved.
    pub available: i64,
    /// Units that are reserved.
    pub held: i64,
    /// Units that are sold.
    pub sold: i64,
}

impl Stock {
    /// Holds `units` if there are so many.
    ///
    /// # Errors
    /// `out_of_stock`; the stock is unchanged.
    pub fn hold(&mut self, units: i64) -> Result<(), Reason> {
        if units > self.available {
            return Err(OUT_OF_STOCK.into());
        }
        self.available -= units;
        self.held += units;
        Ok(())
    }

    /// Moves `units` that were held, after their saga's hold became `state`.
    pub fn settle_or_release(&mut self, units: i64, state: &State) {
        match state {
            State::Settled => self.sold += units,
            State::Released => self.available += units,
            State::Held | State::Refused(_) => return,
        }
        self.held -= units;
    }
}
