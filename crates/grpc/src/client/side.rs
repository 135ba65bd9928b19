//! What the reading thread of a client's connection does with responses.

use std::net::SocketAddr;
use std::sync::Arc;

use super::pool::Pool;
use crate::h2::ErrorCode;
use crate::hpack::Header;
use crate::link::{End, Link, LinkState, Side};

/// The client's part of a connection's reading thread.
pub(super) struct ClientSide {
    link: Arc<Link>,
    pool: Arc<Pool>,
    address: SocketAddr,
    /// What the pool knows.
    known: Known,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Nothing,
    Ready,
    Retired,
}

impl ClientSide {
    pub(super) fn new(link: Arc<Link>, pool: Arc<Pool>, address: SocketAddr) -> Self {
        Self {
            link,
            pool,
            address,
            known: Known::Nothing,
        }
    }

    pub(super) fn was_ready(&self) -> bool {
        self.known != Known::Nothing
    }
}

impl Side for ClientSide {
    fn headers(&mut self, state: &mut LinkState, id: u32, headers: Vec<Header>, is_end: bool) {
        let Some(exchange) = state.exchanges.get_mut(&id) else {
            return; // the caller has gone
        };
        exchange.head = Some(headers.clone());
        if is_end {
            exchange.finish(End::Trailers(headers));
        } else {
            exchange.notify();
        }
    }

    fn progress(&mut self, state: &mut LinkState, id: u32) {
        // A stream that failed here is of no use to the server either.
        let exchange = state.exchanges.get(&id);
        if exchange.is_some_and(|exchange| matches!(exchange.end, Some(End::Failed(_)))) {
            state.h2.reset(id, ErrorCode::CANCEL);
        }
    }

    fn due(&mut self, _state: &mut LinkState, _id: u32) {}

    fn unlocked(&mut self) {
        let (is_ready, is_over, has_room) = {
            let mut state = self.link.lock();
            let is_over = state.closed.is_some() || state.is_going_away();
            (state.h2.is_ready(), is_over, state.take_new_room())
        };
        match self.known {
            Known::Nothing if is_ready && !is_over => {
                self.known = Known::Ready;
                self.pool.ready(self.address, &self.link);
            }
            Known::Nothing if is_ready => {
                self.known = Known::Retired;
                self.pool.ended_early(self.address);
            }
            Known::Ready if is_over => {
                self.known = Known::Retired;
                self.pool.retire(self.address, &self.link);
            }
            _ if has_room => self.pool.notify(),
            _ => {}
        }
    }
}
