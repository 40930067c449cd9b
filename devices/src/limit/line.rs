//! Who waits for tokens, in order of arrival: pure, beside the buckets that they wait for.

use std::collections::VecDeque;

use super::Flow;

/// A queue that is held to a limiter, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MemberId(pub(super) u64);

/// The bucket that a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// One of its flow: the other flow's requests may go.
    OfFlow,
    /// One of both flows: a later request of any flow would take what this one waits for.
    OfTotal,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    id: MemberId,
    flow: Flow,
    /// None until it has asked the buckets: others came first.
    lack: Option<Lack>,
}

/// The line.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: VecDeque<Waiting>,
}

impl Line {
    /// Whether somebody came first whom a request of `flow` by `id` must not overtake.
    pub(super) fn blocks(&self, id: MemberId, flow: Flow) -> bool {
        let earlier = self.waiting.iter().take_while(|waiting| waiting.id != id);
        let mut earlier = earlier.map(|waiting| waiting.flow == flow || waiting.lack == Some(Lack::OfTotal));
        earlier.any(|blocks| blocks)
    }

    /// Lets a request wait, at the end or where its member stands already. `lack` is None if it was blocked.
    pub(super) fn join(&mut self, id: MemberId, flow: Flow, lack: Option<Lack>) {
        let entry = Waiting { id, flow, lack };
        match self.waiting.iter_mut().find(|waiting| waiting.id == id) {
            Some(waiting) => *waiting = entry,
            None => self.waiting.push_back(entry),
        }
    }

    /// Takes a member out. False if it was not there.
    pub(super) fn leave(&mut self, id: MemberId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.id != id);
        self.waiting.len() < before
    }

    /// Everybody.
    pub(super) fn all(&self) -> impl Iterator<Item = MemberId> {
        self.waiting.iter().map(|waiting| waiting.id)
    }

    /// Who was blocked and no longer is, and so should ask. At most one of each flow.
    pub(super) fn unblocked(&self) -> impl Iterator<Item = MemberId> {
        let blocked = self.waiting.iter().filter(|waiting| waiting.lack.is_none());
        blocked.filter(|waiting| !self.blocks(waiting.id, waiting.flow)).map(|waiting| waiting.id)
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MemberId = MemberId(1);
    const B: MemberId = MemberId(2);
    const C: MemberId = MemberId(3);

    #[test]
    fn who_lacks_tokens_of_its_flow_holds_up_that_flow_alone() {
        for (lack, holds_up_others) in [(None, false), (Some(Lack::OfFlow), false), (Some(Lack::OfTotal), true)] {
            let mut line = Line::default();
            line.join(A, Flow::In, lack);
            assert!(line.blocks(B, Flow::In));
            assert_eq!(line.blocks(B, Flow::Out), holds_up_others, "{lack:?}");
            assert!(!line.blocks(A, Flow::In), "nobody holds up itself");
        }
    }

    #[test]
    fn who_comes_later_holds_up_nobody_before_it() {
        let mut line = Line::default();
        line.join(A, Flow::In, Some(Lack::OfFlow));
        line.join(B, Flow::Out, Some(Lack::OfTotal));
        assert!(!line.blocks(A, Flow::In));
        assert!(line.blocks(C, Flow::Out) && line.blocks(C, Flow::In));
    }

    #[test]
    fn the_next_of_each_flow_asks_when_the_first_leaves() {
        let mut line = Line::default();
        line.join(A, Flow::In, Some(Lack::OfTotal));
        for (id, flow) in [(B, Flow::Out), (C, Flow::In), (MemberId(4), Flow::In)] {
            assert!(line.blocks(id, flow));
            line.join(id, flow, None);
        }
        assert_eq!(line.unblocked().count(), 0);
        assert!(line.leave(A) && !line.leave(A));
        assert_eq!(line.unblocked().collect::<Vec<_>>(), [B, C]);
        // B keeps its place when it has asked, and what it lacks decides over C.
        line.join(B, Flow::Out, Some(Lack::OfTotal));
        assert_eq!(line.unblocked().count(), 0);
        line.join(B, Flow::Out, Some(Lack::OfFlow));
        assert_eq!(line.unblocked().collect::<Vec<_>>(), [C]);
    }
}
