//! Participants in memory, for tests.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::{Answer, Command};

/// The books of both participants, as strict as the real ones: a command has one effect and one answer for ever,
/// and a compensation that overtakes its command cancels it.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) answers: HashMap<(Uuid, Command), Answer>,
    pub(crate) refuse: HashSet<Command>,
    pub(crate) held: i32,
    pub(crate) sold: i32,
    pub(crate) authorized: i32,
    pub(crate) captured: i32,
}

impl Ledger {
    /// Executes a command, or repeats its answer.
    pub(crate) fn execute(&mut self, saga: Uuid, command: Command) -> Answer {
        if let Some(answer) = self.answers.get(&(saga, command)) {
            return answer.clone();
        }
        let done = |this: &Self, command| this.answers.get(&(saga, command)) == Some(&Answer::Done);
        let canceled = match command {
            Command::ReserveStock => done(self, Command::ReleaseReservation),
            Command::AuthorizePayment => done(self, Command::VoidPayment),
            Command::CapturePayment => {
                !done(self, Command::AuthorizePayment) || done(self, Command::VoidPayment)
            }
            Command::ConfirmReservation => {
                !done(self, Command::ReserveStock) || done(self, Command::ReleaseReservation)
            }
            Command::VoidPayment | Command::ReleaseReservation => false,
        };
        let answer = match canceled || self.refuse.contains(&command) {
            true => Answer::Refused("refused".into()),
            false => Answer::Done,
        };
        if answer == Answer::Done {
            match command {
                Command::ReserveStock => self.held += 1,
                Command::AuthorizePayment => self.authorized += 1,
                Command::CapturePayment => {
                    self.authorized -= 1;
                    self.captured += 1;
                }
                Command::ConfirmReservation => {
                    self.held -= 1;
                    self.sold += 1;
                }
                Command::VoidPayment if done(self, Command::AuthorizePayment) => {
                    self.authorized -= 1;
                }
                Command::ReleaseReservation if done(self, Command::ReserveStock) => self.held -= 1,
                Command::VoidPayment | Command::ReleaseReservation => {}
            }
        }
        self.answers.insert((saga, command), answer.clone());
        answer
    }
}
