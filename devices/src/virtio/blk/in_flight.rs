//! Requests that are with the backend, by the tokens that it knows them by.

use std::time::Instant;

use vm_memory::GuestAddress;

use crate::backend::block::Token;

/// A request that is with the backend.
pub(super) struct InFlight {
    pub(super) head: u16,
    pub(super) status: GuestAddress,
    /// What the driver finds in its writable buffers if all goes well.
    pub(super) written: u32,
    /// When it was noticed.
    pub(super) since: Instant,
}

/// All of one queue's. It grows to the most that ever were, which the queue bounds: it lets no more chains be in flight
/// than it has entries.
#[derive(Default)]
pub(super) struct InFlightTable {
    slots: Vec<Option<InFlight>>,
    free: Vec<Token>,
}

impl InFlightTable {
    /// Takes a request in, and names it.
    pub(super) fn insert(&mut self, request: InFlight) -> Token {
        let token = self.free.pop().unwrap_or_else(|| {
            let token = u32::try_from(self.slots.len()).expect("a queue has at most 32768 entries");
            self.slots.push(None);
            Token(token)
        });
        self.slots[index(token)] = Some(request);
        token
    }

    /// Gives a request back, whose name is free then.
    ///
    /// # Panics
    /// If there is none of that name, which is the backend's bug.
    pub(super) fn remove(&mut self, token: Token) -> InFlight {
        let request = self.slots[index(token)].take().expect("a backend gives back what it was given, once");
        self.free.push(token);
        request
    }
}

fn index(token: Token) -> usize {
    usize::try_from(token.0).expect("32 bits fit")
}
