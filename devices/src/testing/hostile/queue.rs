//! An attack on a queue, without a device: the input is both the driver and the device's order of work.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::GuestMemoryBackend;

use super::input::Input;
use super::ledger::{ENTRIES_MAX, Ledger, indirect_table};
use super::territory::Territory;
use crate::testing::Descriptor;
use crate::virtio::queue::{CHAIN_SEGMENTS_MAX, Chain, QueueConfig, QueueState, ReadyQueue};

struct Bench {
    territory: Territory,
    ring: Ledger,
    queue: ReadyQueue,
    features: u64,
    chain: Chain,
    /// Heads that the device has, oldest first.
    held: Vec<u16>,
    /// The last pop is among them, and may be taken back.
    newest_is_held: bool,
    retired: bool,
}

/// Attacks a queue of up to 16 entries. Driver and device take turns on one thread.
///
/// # Panics
/// If the attack gets anywhere.
pub fn queue(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let features = (u64::from(choice & 1) << VIRTIO_RING_F_EVENT_IDX)
        | (u64::from(choice >> 1 & 1) << VIRTIO_RING_F_INDIRECT_DESC);
    let mut territory = Territory::new();
    let ring = Ledger::new(0, ENTRIES_MAX >> (choice >> 4 & 3));
    territory.offer(ring.addresses()[2], ring.used_bytes());
    let queue = ready(&ring, &territory, features, QueueState::default());
    let mut bench = Bench {
        territory,
        ring,
        queue,
        features,
        chain: Chain::new(),
        held: Vec::new(),
        newest_is_held: false,
        retired: false,
    };
    while !input.is_empty() {
        bench.act(&mut input);
        assert_eq!(usize::from(bench.queue.in_flight()), bench.held.len(), "each pop is in flight until it is used");
    }
    bench.give_all_back();
    bench.territory.check();
}

fn ready(ring: &Ledger, territory: &Territory, features: u64, state: QueueState) -> ReadyQueue {
    let [descriptor_table, avail_ring, used_ring] = ring.addresses();
    let config = QueueConfig {
        size: ring.size(),
        ready: true,
        descriptor_table,
        avail_ring,
        used_ring,
        ..QueueConfig::new(0, ENTRIES_MAX)
    };
    config.validate(territory.memory(), features, state).expect("the attacker's ring is a ring")
}

impl Bench {
    fn act(&mut self, input: &mut Input<'_>) {
        let size = self.ring.size();
        match input.byte() % 12 {
            0 | 1 => {
                let (index, descriptor) = (input.below(size), descriptor(input, size));
                Ledger::write_descriptor(&mut self.territory, self.ring.addresses()[0], index, descriptor);
            }
            2 => {
                let (index, descriptor) = (input.below(ENTRIES_MAX), descriptor(input, ENTRIES_MAX));
                Ledger::write_descriptor(&mut self.territory, indirect_table(input.byte()), index, descriptor);
            }
            3 | 4 => {
                let head = input.below(size + 1);
                self.ring.make_available(&mut self.territory, head);
            }
            5 => {
                let index = self.ring.avail_index().wrapping_add(if input.byte() < 240 { 1 } else { input.half() });
                self.ring.publish(&mut self.territory, index);
            }
            6 | 7 => self.pop(),
            8 => self.use_one(input),
            9 => {
                self.queue.publish();
                self.ring.collect(&self.territory);
            }
            10 => self.notification(input),
            _ => self.turn_back(input),
        }
    }

    fn pop(&mut self) {
        let popped = self.queue.pop(&mut self.chain);
        assert!(!self.retired || popped == Ok(false), "a retired queue is silent");
        match popped {
            Err(_) => self.retired = true,
            Ok(false) => {}
            Ok(true) => {
                self.held.push(self.chain.head());
                self.newest_is_held = true;
                self.check_chain();
            }
        }
        assert_eq!(self.queue.state().retired, self.retired, "what breaks a rule retires");
    }

    /// The chain is whole, in order, in memory, and bounded.
    fn check_chain(&self) {
        let (readable, writable) = (self.chain.readable(), self.chain.writable());
        assert!(readable.len() + writable.len() <= CHAIN_SEGMENTS_MAX, "the chain is bounded");
        for (segments, len) in [(readable, self.chain.readable_len()), (writable, self.chain.writable_len())] {
            assert_eq!(segments.iter().map(|segment| u64::from(segment.len())).sum::<u64>(), u64::from(len));
            for segment in segments {
                let len = usize::try_from(segment.len()).expect("64 bits fit");
                assert!(len > 0, "a segment has a length");
                let slice = Arc::clone(self.territory.memory());
                assert!(slice.get_slice(segment.address(), len).is_ok(), "a segment lies in memory");
            }
        }
        assert!(usize::from(self.queue.in_flight()) <= usize::from(self.queue.size()), "a ring holds so many");
    }

    fn use_one(&mut self, input: &mut Input<'_>) {
        if !self.held.is_empty() {
            let at = usize::from(input.byte()) % self.held.len();
            let head = self.held.remove(at);
            self.newest_is_held &= at < self.held.len();
            self.queue.add_used(head, input.word());
        }
    }

    fn notification(&mut self, input: &mut Input<'_>) {
        match input.byte() % 4 {
            0 => self.queue.disable_notification(),
            1 => self.queue.retract_notification(),
            2 => self.ring.wish(&mut self.territory, input.half(), input.half()),
            _ => {
                let more = self.queue.enable_notification();
                assert!(!self.retired || more == Ok(false), "a retired queue is silent");
                self.retired |= more.is_err();
            }
        }
    }

    /// The last pop is taken back, or the queue is stopped and started again where it was.
    fn turn_back(&mut self, input: &mut Input<'_>) {
        if input.byte().is_multiple_of(2) {
            if std::mem::take(&mut self.newest_is_held) {
                self.held.pop();
                self.queue.unpop(1);
                // It comes again, unless the driver has changed it meanwhile.
                self.pop();
            }
        } else {
            self.give_all_back();
            self.queue = ready(&self.ring, &self.territory, self.features, self.queue.state());
        }
    }

    fn give_all_back(&mut self) {
        self.newest_is_held = false;
        for head in self.held.drain(..) {
            self.queue.add_used(head, 0);
        }
        self.queue.publish();
        self.ring.collect(&self.territory);
    }
}

fn descriptor(input: &mut Input<'_>, entries: u16) -> Descriptor {
    Descriptor {
        address: Territory::address(input),
        len: Territory::len(input),
        flags: u16::from(input.byte() % 8),
        next: input.below(entries + 2),
    }
}
