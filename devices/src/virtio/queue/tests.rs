mod model;

use super::*;
use crate::testing::{Buffer, Descriptor, DriverRing, Used, memory_with_hole};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{Bytes, GuestAddress};

const REGION: usize = 1 << 20;
const RING: GuestAddress = GuestAddress(0x1000);
const DATA: u64 = 0x40000;
const TABLE: GuestAddress = GuestAddress(0x20000);
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

struct Bench {
    driver: DriverRing,
    queue: ReadyQueue,
    chain: Chain,
}

impl Bench {
    fn new(size: u16, features: u64) -> Self {
        Self::resumed(size, features, QueueState::default())
    }

    fn resumed(size: u16, features: u64, state: QueueState) -> Self {
        let memory = memory_with_hole(REGION);
        let driver = DriverRing::new(memory.clone(), RING, size, features & EVENT_IDX != 0);
        let queue = driver.config(0, 256).validate(&memory, features, state).unwrap();
        Self { driver, queue, chain: Chain::new() }
    }

    fn pop(&mut self) -> Result<bool, QueueError> {
        self.queue.pop(&mut self.chain)
    }

    fn error(&mut self) -> QueueError {
        let error = self.pop().unwrap_err();
        // Once: a retired queue is silent, whatever the driver does.
        assert_eq!(self.pop(), Ok(false));
        assert_eq!(self.queue.enable_notification(), Ok(false));
        error
    }

    /// Descriptors as they are, with head 0.
    fn raw(&mut self, descriptors: &[Descriptor]) {
        for (index, descriptor) in (0..).zip(descriptors) {
            self.driver.write_descriptor(index, *descriptor);
        }
        self.driver.make_available(0);
    }
}

fn readable(len: u32) -> Descriptor {
    Descriptor { address: DATA, len, ..Descriptor::default() }
}

fn writable(len: u32) -> Descriptor {
    Descriptor { address: DATA, len, flags: Descriptor::WRITE, ..Descriptor::default() }
}

fn then(descriptor: Descriptor, next: u16) -> Descriptor {
    Descriptor { flags: descriptor.flags | Descriptor::NEXT, next, ..descriptor }
}

fn shape(segments: &[Segment]) -> Vec<(u64, u32)> {
    segments.iter().map(|segment| (segment.address().0, segment.len())).collect()
}

#[test]
fn a_chain_comes_as_the_driver_made_it_and_goes_back() {
    let mut bench = Bench::new(8, 0);
    let buffers = [
        Buffer::Readable(GuestAddress(DATA), 16),
        Buffer::Readable(GuestAddress(1 << 32), 100),
        Buffer::Writable(GuestAddress(DATA + 4096), 512),
        Buffer::Writable(GuestAddress(DATA + 8192), 1),
    ];
    let head = bench.driver.add(&buffers);
    assert_eq!(bench.pop(), Ok(true));
    assert_eq!(bench.chain.head(), head);
    assert_eq!(shape(bench.chain.readable()), [(DATA, 16), (1 << 32, 100)]);
    assert_eq!(shape(bench.chain.writable()), [(DATA + 4096, 512), (DATA + 8192, 1)]);
    assert_eq!((bench.chain.readable_len(), bench.chain.writable_len()), (116, 513));
    assert_eq!(bench.pop(), Ok(false));

    bench.queue.add_used(head, 513);
    assert_eq!(bench.driver.take_used(), None, "not before it is published");
    assert!(bench.queue.publish());
    assert_eq!(bench.driver.take_used(), Some(Used { head, written: 513 }));
    assert!(!bench.queue.publish(), "nothing new");
}

#[test]
fn an_indirect_table_is_followed_also_behind_direct_descriptors() {
    let mut bench = Bench::new(8, INDIRECT);
    bench
        .driver
        .add_indirect(TABLE, &[Buffer::Readable(GuestAddress(DATA), 4), Buffer::Writable(GuestAddress(DATA), 8)]);
    assert_eq!(bench.pop(), Ok(true));
    assert_eq!((shape(bench.chain.readable()), shape(bench.chain.writable())), (vec![(DATA, 4)], vec![(DATA, 8)]));

    // virtio 1.3 §2.7.5.3.2: normal descriptors, then one indirect; its write flag is ignored; the table may be
    // misaligned.
    let odd = GuestAddress(TABLE.0 + 0x1001);
    bench.driver.write_table_entry(odd, 0, writable(32));
    bench.driver.write_descriptor(4, then(readable(3), 5));
    let flags = Descriptor::INDIRECT | Descriptor::WRITE;
    bench.driver.write_descriptor(5, Descriptor { address: odd.0, len: 16, flags, next: 0 });
    bench.driver.make_available(4);
    assert_eq!(bench.pop(), Ok(true));
    assert_eq!((bench.chain.readable_len(), bench.chain.writable_len()), (3, 32));
}

#[test]
fn a_looping_chain_retires_the_queue() {
    let mut bench = Bench::new(4, 0);
    bench.raw(&[then(readable(1), 1), then(readable(1), 0)]);
    assert_eq!(bench.error(), QueueError::Loop { head: 0 });

    let mut bench = Bench::new(4, INDIRECT);
    bench.driver.write_table_entry(TABLE, 0, then(readable(1), 1));
    bench.driver.write_table_entry(TABLE, 1, then(readable(1), 1));
    bench.raw(&[Descriptor { address: TABLE.0, len: 32, flags: Descriptor::INDIRECT, next: 0 }]);
    assert_eq!(bench.error(), QueueError::Loop { head: 0 });
}

#[test]
fn an_indirect_table_of_every_length_is_bounded() {
    let memory_end = u32::try_from(REGION).unwrap() - u32::try_from(TABLE.0).unwrap();
    for len in (0..=64).chain([4096, 512 << 10, (512 << 10) + 16, memory_end + 16, u32::MAX - 15, u32::MAX]) {
        let mut bench = Bench::new(4, INDIRECT);
        bench.driver.write_table_entry(TABLE, 0, readable(1));
        bench.raw(&[Descriptor { address: TABLE.0, len, flags: Descriptor::INDIRECT, next: 0 }]);
        if len == 0 || len % 16 != 0 || len > 512 << 10 {
            assert_eq!(bench.error(), QueueError::IndirectLength { len }, "{len}");
        } else {
            assert_eq!(bench.pop(), Ok(true), "{len}");
        }
    }
}

#[test]
fn an_indirect_descriptor_where_none_may_be_retires_the_queue() {
    let indirect = Descriptor { address: TABLE.0, len: 16, flags: Descriptor::INDIRECT, next: 0 };
    let refused = QueueError::UnexpectedIndirect { head: 0 };
    let mut not_negotiated = Bench::new(4, 0);
    not_negotiated.raw(&[indirect]);
    assert_eq!(not_negotiated.error(), refused);

    let mut nested = Bench::new(4, INDIRECT);
    nested.driver.write_table_entry(TABLE, 0, indirect);
    nested.raw(&[indirect]);
    assert_eq!(nested.error(), refused);

    let mut not_last = Bench::new(4, INDIRECT);
    not_last.raw(&[then(indirect, 1), readable(1)]);
    assert_eq!(not_last.error(), refused);

    let mut outside = Bench::new(4, INDIRECT);
    let address = u64::try_from(REGION).unwrap() - 16;
    outside.raw(&[Descriptor { address, len: 32, ..indirect }]);
    assert_eq!(outside.error(), QueueError::OutsideMemory { address, len: 32 });
}

#[test]
fn a_descriptor_index_outside_the_table_retires_the_queue() {
    let mut head = Bench::new(4, 0);
    head.driver.make_available(4);
    assert_eq!(head.error(), QueueError::DescriptorIndex { index: 4, len: 4 });

    let mut next = Bench::new(4, 0);
    next.raw(&[then(readable(1), u16::MAX)]);
    assert_eq!(next.error(), QueueError::DescriptorIndex { index: u16::MAX, len: 4 });

    let mut indirect = Bench::new(4, INDIRECT);
    indirect.driver.write_table_entry(TABLE, 0, then(readable(1), 1));
    indirect.raw(&[Descriptor { address: TABLE.0, len: 16, flags: Descriptor::INDIRECT, next: 0 }]);
    assert_eq!(indirect.error(), QueueError::DescriptorIndex { index: 1, len: 1 });
}

#[test]
fn an_available_index_that_jumps_retires_the_queue() {
    for (index, jumps) in [(4, false), (5, true), (0x8000, true), (u16::MAX, true)] {
        let mut bench = Bench::new(4, 0);
        bench.raw(&[readable(1)]);
        bench.driver.publish_avail_index(index);
        if jumps {
            assert_eq!(bench.error(), QueueError::IndexJump { index, next: 0, size: 4 });
        } else {
            assert_eq!(bench.pop(), Ok(true));
        }
    }
}

#[test]
fn no_more_chains_are_in_flight_than_the_ring_has_entries() {
    let mut bench = Bench::new(4, 0);
    bench.raw(&[readable(1)]);
    bench.driver.publish_avail_index(4);
    for _ in 0..4 {
        assert_eq!(bench.pop(), Ok(true));
    }
    bench.driver.publish_avail_index(8);
    assert_eq!(bench.error(), QueueError::TooManyInFlight { size: 4 });
    // What is in flight still completes.
    for _ in 0..4 {
        bench.queue.add_used(0, 0);
    }
    assert!(bench.queue.publish());
    assert_eq!(bench.driver.device_used_index(), 4);
}

#[test]
fn a_buffer_that_is_not_guest_memory_retires_the_queue() {
    let end = u64::try_from(REGION).unwrap();
    let cases = [(end - 1, 2), (end, 1), (0xf000_0000, 4096), (u64::MAX, 1), (u64::MAX - 4, u32::MAX), (0, u32::MAX)];
    for (address, len) in cases {
        let mut bench = Bench::new(4, 0);
        bench.raw(&[Descriptor { address, len, ..Descriptor::default() }]);
        assert_eq!(bench.error(), QueueError::OutsideMemory { address, len });
    }
    let mut last_byte = Bench::new(4, 0);
    last_byte.raw(&[Descriptor { address: end - 1, len: 1, ..Descriptor::default() }]);
    assert_eq!(last_byte.pop(), Ok(true));
}

#[test]
fn zero_length_wrong_order_and_overlong_chains_retire_the_queue() {
    let mut zero = Bench::new(4, 0);
    zero.raw(&[then(readable(1), 1), writable(0)]);
    assert_eq!(zero.error(), QueueError::ZeroLength { address: DATA });

    let mut order = Bench::new(4, 0);
    order.raw(&[then(writable(1), 1), readable(1)]);
    assert_eq!(order.error(), QueueError::ReadableAfterWritable { head: 0 });

    let mut segments = Bench::new(4, INDIRECT);
    let entries = u16::try_from(CHAIN_SEGMENTS_MAX).unwrap() + 1;
    for index in 0..entries {
        segments.driver.write_table_entry(TABLE, index, then(readable(1), index + 1));
    }
    let len = u32::from(entries) * 16;
    segments.raw(&[Descriptor { address: TABLE.0, len, flags: Descriptor::INDIRECT, next: 0 }]);
    assert_eq!(segments.error(), QueueError::TooManySegments { head: 0 });
}

#[test]
fn a_chain_of_more_than_4_gib_retires_the_queue() {
    // Overlapping buffers are allowed: 16 of 256 MiB each describe more than there is.
    let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 256 << 20)]).unwrap());
    let mut driver = DriverRing::new(memory.clone(), RING, 32, false);
    let mut queue = driver.config(0, 32).validate(&memory, 0, QueueState::default()).unwrap();
    driver.add(&[Buffer::Readable(GuestAddress(0), 256 << 20); 16]);
    assert_eq!(queue.pop(&mut Chain::new()), Err(QueueError::TooLong { head: 0 }));
}

#[test]
fn a_buffer_across_two_mappings_becomes_two_segments() {
    let half = 1 << 20;
    let ranges = [(GuestAddress(0), half), (GuestAddress(1 << 20), half)];
    let memory = Arc::new(GuestMemory::from_ranges(&ranges).unwrap());
    let mut driver = DriverRing::new(memory.clone(), RING, 4, false);
    let mut queue = driver.config(0, 4).validate(&memory, 0, QueueState::default()).unwrap();
    driver.add(&[Buffer::Writable(GuestAddress((1 << 20) - 100), 300)]);
    let mut chain = Chain::new();
    assert_eq!(queue.pop(&mut chain), Ok(true));
    assert_eq!(shape(chain.writable()), [((1 << 20) - 100, 100), (1 << 20, 200)]);
}

#[test]
fn a_descriptor_that_changes_after_the_pop_changes_nothing() {
    let mut bench = Bench::new(4, 0);
    bench.raw(&[readable(16)]);
    assert_eq!(bench.pop(), Ok(true));
    bench.raw(&[Descriptor { address: u64::MAX, len: u32::MAX, flags: 0xffff, next: 0xffff }]);
    assert_eq!(shape(bench.chain.readable()), [(DATA, 16)]);
}

#[test]
fn a_queue_that_is_none_is_refused_by_name() {
    let memory = memory_with_hole(REGION);
    let driver = DriverRing::new(memory.clone(), RING, 8, false);
    let good = driver.config(3, 256);
    assert!(good.validate(&memory, 0, QueueState::default()).is_ok());
    let validate = |config: QueueConfig| config.validate(&memory, 0, QueueState::default()).map(drop);

    for size in [0, 3, 255, 257, 512, u16::MAX] {
        let refused = QueueConfigError::Size { index: 3, size, size_max: 256 };
        assert_eq!(validate(QueueConfig { size, ..good }), Err(refused));
    }
    let end = u64::try_from(REGION).unwrap();
    let placed = |result: Result<(), QueueConfigError>| match result {
        Err(QueueConfigError::Placement { ring, .. }) => ring,
        other => panic!("{other:?}"),
    };
    for descriptor_table in [RING.0 + 8, end - 64, end, 0xd000_0000, u64::MAX - 15, u64::MAX] {
        assert_eq!(placed(validate(QueueConfig { descriptor_table, ..good })), "descriptor table");
    }
    for avail_ring in [RING.0 + 1, end - 20, end, u64::MAX - 1] {
        assert_eq!(placed(validate(QueueConfig { avail_ring, ..good })), "available ring");
    }
    for used_ring in [RING.0 + 2, end - 68, end, u64::MAX - 3] {
        assert_eq!(placed(validate(QueueConfig { used_ring, ..good })), "used ring");
    }
    // The very last place is one, and size 1 is a size.
    let last = QueueConfig { size: 1, avail_ring: end - 8, used_ring: end - 16, descriptor_table: end - 32, ..good };
    assert!(validate(last).is_ok());
}

#[test]
fn flags_suppress_doorbells_and_interrupts() {
    let mut bench = Bench::new(8, 0);
    assert_eq!(bench.queue.enable_notification(), Ok(false));
    bench.driver.add(&[Buffer::Readable(GuestAddress(DATA), 1)]);
    assert!(bench.driver.needs_kick());
    bench.queue.disable_notification();
    bench.driver.add(&[Buffer::Readable(GuestAddress(DATA), 1)]);
    assert!(!bench.driver.needs_kick());
    assert_eq!(bench.queue.enable_notification(), Ok(true), "the re-check finds what came without a doorbell");

    for refuses in [true, false] {
        assert_eq!(bench.pop(), Ok(true));
        if refuses {
            bench.driver.refuse_interrupts();
        } else {
            bench.driver.want_interrupt();
        }
        let head = bench.chain.head();
        bench.queue.add_used(head, 0);
        assert_eq!(bench.queue.publish(), !refuses);
    }
    assert_eq!(bench.queue.enable_notification(), Ok(false));
}

#[test]
fn event_indices_suppress_doorbells_and_interrupts() {
    let mut bench = Bench::new(8, EVENT_IDX);
    let buffer = [Buffer::Readable(GuestAddress(DATA), 1)];
    assert_eq!(bench.queue.enable_notification(), Ok(false));
    bench.driver.add(&buffer);
    assert!(bench.driver.needs_kick());
    bench.driver.add(&buffer);
    assert!(!bench.driver.needs_kick(), "the event index lies behind");
    assert_eq!(bench.queue.enable_notification(), Ok(true));
    for _ in 0..2 {
        assert_eq!(bench.pop(), Ok(true));
    }
    assert_eq!(bench.queue.enable_notification(), Ok(false));
    assert_eq!(bench.driver.avail_event(), 2);
    bench.driver.add(&buffer);
    assert!(bench.driver.needs_kick());
    assert_eq!(bench.pop(), Ok(true));

    // The driver wants to know when the third is used, and nothing before.
    bench.driver.set_used_event(2);
    bench.queue.add_used(0, 0);
    assert!(bench.queue.publish(), "the first publication always tells");
    bench.queue.add_used(1, 0);
    assert!(!bench.queue.publish());
    bench.queue.add_used(2, 0);
    assert!(bench.queue.publish());
}

#[test]
fn event_indices_work_across_the_wrap_and_in_batches() {
    let start = QueueState { next_avail: u16::MAX - 1, next_used: u16::MAX - 1, retired: false, held: Vec::new() };
    let mut bench = Bench::resumed(8, EVENT_IDX, start);
    bench.driver.publish_avail_index(u16::MAX - 1);
    bench.driver.write_descriptor(0, readable(1));
    for _ in 0..5 {
        bench.driver.make_available(0);
        assert_eq!(bench.pop(), Ok(true));
    }
    bench.driver.set_used_event(0);
    bench.queue.add_used(0, 0);
    assert!(bench.queue.publish(), "the first of an activation");
    bench.queue.add_used(0, 0);
    assert!(!bench.queue.publish(), "index 0xffff + 1 = 0 has not passed event 0");
    bench.queue.add_used(0, 0);
    bench.queue.add_used(0, 0);
    assert!(bench.queue.publish(), "the batch passes it");
    assert_eq!(bench.queue.state(), QueueState { next_avail: 3, next_used: 2, retired: false, held: Vec::new() });
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let mut bench = Bench::new(4, 0);
    let memory = bench.queue.memory().clone();
    let buffer = [Buffer::Readable(GuestAddress(DATA), 1)];
    for round in 0..10 {
        let head = bench.driver.add(&buffer);
        assert_eq!(bench.pop(), Ok(true), "{round}");
        bench.queue.add_used(head, round);
        bench.queue.publish();
        let state = bench.queue.state();
        bench.queue = bench.driver.config(0, 256).validate(&memory, 0, state).unwrap();
        assert_eq!(bench.driver.take_used(), Some(Used { head, written: round }));
    }
}
