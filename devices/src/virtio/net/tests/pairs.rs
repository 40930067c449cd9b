//! Several pairs of queues, and the control queue that says how many take part.

use super::*;
use crate::backend::net::{InterfaceName, Tap};
use crate::testing::{DEADLINE, DriverRing, in_network_namespace, ip};
use std::collections::{HashMap, VecDeque};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

const CTRL_VQ: u64 = 1 << 17;
const MQ: u64 = 1 << 22;
pub(super) const PAIRS: usize = 3;
const CONTROL: usize = 2 * PAIRS;
/// An acknowledgement before there is one.
const NONE: u8 = 0x77;
pub(super) const OK: u8 = 0;
const ERR: u8 = 1;

/// A device of [`PAIRS`] pairs, each with a wire and a thread of its own.
pub(super) struct Pairs {
    pub(super) driver: FakeDriver,
    pub(super) wires: Vec<Wire>,
    counters: Arc<NetCounters>,
    pub(super) _threads: Vec<IoThread>,
}

impl Pairs {
    pub(super) fn new(wanted: u64) -> Self {
        let (backends, wires) = (0..PAIRS).map(|_| FakeNet::new(Offloads::ALL)).unzip::<_, _, Vec<_>, _>();
        Self::over(backends, wires, wanted)
    }

    fn over<B: NetBackend + 'static>(backends: Vec<B>, wires: Vec<Wire>, wanted: u64) -> Self {
        let (net, threads) = Self::card(backends);
        let counters = net.counters();
        let memory = memory_with_hole(16 << 20);
        let transport = MmioTransport::new("net0", Box::new(net), memory.clone()).unwrap();
        let driver = FakeDriver::new(transport, memory);
        let mut pairs = Self { driver, wires, counters, _threads: threads };
        pairs.initialize(wanted);
        pairs
    }

    pub(super) fn card<B: NetBackend + 'static>(backends: Vec<B>) -> (Net, Vec<IoThread>) {
        let threads: Vec<_> = backends.iter().map(|_| IoThread::spawn("husk-io-test").unwrap()).collect();
        let queues = backends.into_iter().zip(&threads);
        let queues = queues.map(|(backend, thread)| NetQueue { backend: Arc::new(backend), thread: thread.handle() });
        let queues = queues.collect();
        (Net::new("net0", queues, NetOptions { mac: Some(MAC), ..NetOptions::default() }).unwrap(), threads)
    }

    /// Moves the driver to another device, which has the state of this one, and lets it go on.
    pub(super) fn move_to<B: NetBackend + 'static>(&mut self, backends: Vec<B>) {
        let (net, threads) = Self::card(backends);
        self.counters = net.counters();
        let heir = MmioTransport::new("net0", Box::new(net), self.driver.memory().clone()).unwrap();
        self.driver.migrate(heir);
        self._threads = threads;
        self.driver.transport().lock().unwrap().core().resume();
    }

    fn initialize(&mut self, wanted: u64) {
        self.driver.initialize(wanted, &[32; CONTROL + 1]);
        self.driver.queues.iter().for_each(DriverRing::want_interrupt);
    }

    /// Gives the control queue at `queue` a command, and returns its answer.
    fn command_at(&mut self, queue: usize, command: &[u8]) -> u8 {
        let (place, ack) = (self.driver.place(command), self.driver.place(&[NONE]));
        let len = u32::try_from(command.len()).unwrap();
        let used = self.driver.run(queue, &[Buffer::Readable(place, len), Buffer::Writable(ack, 1)]);
        assert_eq!(used.written, 1);
        self.driver.bytes_at(ack, 1)[0]
    }

    fn command(&mut self, command: &[u8]) -> u8 {
        self.command_at(CONTROL, command)
    }

    pub(super) fn set_pairs(&mut self, pairs: u16) -> u8 {
        self.command(&[&[4, 0][..], &pairs.to_le_bytes()].concat())
    }

    pub(super) fn attached(&self) -> Vec<bool> {
        self.wires.iter().map(Wire::is_attached).collect()
    }

    pub(super) fn send(&mut self, pair: usize, sent: &[u8]) {
        let place = self.driver.place(sent);
        let len = u32::try_from(sent.len()).unwrap();
        self.driver.run(2 * pair + TX, &[Buffer::Readable(place, len)]);
        assert_eq!(self.wires[pair].receive(), sent);
    }

    pub(super) fn post(&mut self, pair: usize) -> GuestAddress {
        let room = self.driver.place(&[UNWRITTEN; 2048]);
        self.driver.queues[2 * pair].add(&[Buffer::Writable(room, 2048)]);
        self.driver.kick(2 * pair);
        room
    }

    pub(super) fn expect(&mut self, pair: usize, room: GuestAddress, sent: &[u8]) {
        let used = self.driver.wait_used(2 * pair);
        assert_eq!(usize::try_from(used.written).unwrap(), sent.len());
        assert_eq!(self.driver.bytes_at(room, sent.len()), delivered(sent, 1));
    }

    fn refused(&self) -> u64 {
        self.counters.control_errors.load(Ordering::Relaxed)
    }
}

#[test]
fn several_pairs_are_offered_with_a_control_queue_and_only_the_first_takes_part() {
    let pairs = Pairs::new(ALL);
    assert_eq!(pairs.driver.offered_features() & (MQ | CTRL_VQ), MQ | CTRL_VQ);
    assert_eq!(pairs.driver.config(8), u16::try_from(PAIRS).unwrap().to_le_bytes());
    assert_eq!(pairs.attached(), [true, false, false]);
    let single = Bench::new(ALL);
    assert_eq!(single.driver.offered_features() & (MQ | CTRL_VQ), 0);
}

#[test]
fn the_driver_says_how_many_pairs_get_frames() {
    for wanted in [ALL, MQ | CTRL_VQ] {
        let mut pairs = Pairs::new(wanted);
        let rooms: Vec<_> = (0..PAIRS).map(|pair| pairs.post(pair)).collect();
        (0..PAIRS).for_each(|pair| pairs.wires[pair].send(&frame(100, pair)));
        pairs.expect(0, rooms[0], &frame(100, 0));
        assert_eq!(pairs.set_pairs(2), OK);
        assert_eq!(pairs.attached(), [true, true, false]);
        pairs.expect(1, rooms[1], &frame(100, 1));
        assert_eq!(pairs.set_pairs(3), OK);
        pairs.expect(2, rooms[2], &frame(100, 2));
        (0..PAIRS).for_each(|pair| pairs.send(pair, &frame(200, pair)));
        // Those that no longer take part give back what they had, and have it again later.
        let rooms: Vec<_> = (0..PAIRS).map(|pair| pairs.post(pair)).collect();
        assert_eq!(pairs.set_pairs(1), OK);
        assert_eq!(pairs.attached(), [true, false, false]);
        (0..PAIRS).for_each(|pair| pairs.wires[pair].send(&frame(300, pair)));
        pairs.expect(0, rooms[0], &frame(300, 0));
        assert_eq!([2, 4].map(|queue| pairs.driver.queues[queue].take_used()), [None, None]);
        assert_eq!(pairs.set_pairs(3), OK);
        (1..PAIRS).for_each(|pair| pairs.expect(pair, rooms[pair], &frame(300, pair)));
        assert_eq!(pairs.refused(), 0);
    }
}

#[test]
fn each_queue_counts_its_own_frames() {
    let mut pairs = Pairs::new(ALL);
    assert_eq!(pairs.set_pairs(3), OK);
    for pair in 0..PAIRS {
        for _ in 0..=pair {
            pairs.send(pair, &frame(200, pair));
        }
        let room = pairs.post(pair);
        pairs.wires[pair].send(&frame(100, pair));
        pairs.expect(pair, room, &frame(100, pair));
    }
    for (pair, sent) in (0..PAIRS).zip(1..) {
        let PairCounters { received, transmitted } = &pairs.counters.pairs[pair];
        for (queue, frames, bytes) in [(received, 1, 100), (transmitted, sent, 200 * sent)] {
            let counted = [&queue.frames, &queue.bytes, &queue.batches].map(|count| count.load(Ordering::Relaxed));
            assert_eq!((counted, queue.latency.read().count()), ([frames, bytes, frames], frames), "pair {pair}");
        }
    }
}

#[test]
fn a_pause_keeps_the_pairs_and_a_reset_leaves_the_first() {
    let mut pairs = Pairs::new(ALL);
    assert_eq!(pairs.set_pairs(3), OK);
    for seed in 0..5 {
        let transport = Arc::clone(pairs.driver.transport());
        transport.lock().unwrap().core().pause();
        transport.lock().unwrap().core().resume();
        for pair in 0..PAIRS {
            let room = pairs.post(pair);
            pairs.wires[pair].send(&frame(100, seed));
            pairs.expect(pair, room, &frame(100, seed));
            pairs.send(pair, &frame(100, seed));
        }
    }
    pairs.driver.reset();
    assert_eq!(pairs.attached(), [true, false, false]);
    pairs.initialize(ALL);
    let rooms: Vec<_> = (0..PAIRS).map(|pair| pairs.post(pair)).collect();
    (0..PAIRS).for_each(|pair| pairs.wires[pair].send(&frame(60, pair)));
    pairs.expect(0, rooms[0], &frame(60, 0));
    assert_eq!(pairs.driver.queues[2].take_used(), None);
    assert_eq!(pairs.set_pairs(2), OK);
    pairs.expect(1, rooms[1], &frame(60, 1));
}

#[test]
fn a_number_of_pairs_that_there_is_not_is_refused_and_changes_nothing() {
    let mut pairs = Pairs::new(ALL);
    assert_eq!(pairs.set_pairs(2), OK);
    for (count, bad) in (1..).zip([0, 4, 0x100, 0x8000, u16::MAX]) {
        assert_eq!(pairs.set_pairs(bad), ERR, "{bad}");
        assert_eq!((pairs.refused(), pairs.attached()), (count, vec![true, true, false]));
    }
    pairs.send(1, &frame(60, 1));
}

#[test]
fn commands_of_another_class_kind_or_length_are_refused() {
    let mut pairs = Pairs::new(ALL);
    // Receive modes, MAC, VLAN and announcement were not offered; receive-side scaling neither.
    let unknown: [&[u8]; 8] = [
        &[0, 0, 1],
        &[0, 1, 0],
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[2, 0, 5, 0],
        &[3, 0],
        &[4, 1, 2, 0],
        &[4, 2, 2, 0],
        &[0xff; 4],
    ];
    // As it should be, but for its length.
    let lengths: [&[u8]; 5] = [&[4], &[4, 0], &[4, 0, 2], &[4, 0, 2, 0, 0], &[4, 0, 2, 0, 0, 0, 0, 0]];
    for (count, bad) in (1..).zip(unknown.into_iter().chain(lengths)) {
        assert_eq!(pairs.command(bad), ERR, "{bad:?}");
        assert_eq!((pairs.refused(), pairs.attached()), (count, vec![true, false, false]));
    }
    assert_eq!(pairs.set_pairs(3), OK);
}

#[test]
fn a_command_in_pieces_is_read_and_an_answer_has_room_for_one_byte() {
    let mut pairs = Pairs::new(ALL);
    let command = pairs.driver.place(&[4, 0, 3, 0]);
    let mut chain: Vec<_> = (0..4).map(|at| Buffer::Readable(GuestAddress(command.0 + at), 1)).collect();
    let ack = pairs.driver.place(&[NONE; 8]);
    chain.extend([Buffer::Writable(ack, 1), Buffer::Writable(GuestAddress(ack.0 + 1), 7)]);
    assert_eq!(pairs.driver.run(CONTROL, &chain).written, 1);
    assert_eq!(pairs.driver.bytes_at(ack, 8), [&[OK][..], &[NONE; 7]].concat());
    assert_eq!(pairs.attached(), [true; PAIRS]);
}

#[test]
fn a_command_without_room_for_its_answer_is_not_done_and_comes_back_empty() {
    let mut pairs = Pairs::new(ALL);
    let place = pairs.driver.place(&[4, 0, 3, 0]);
    assert_eq!(pairs.driver.run(CONTROL, &[Buffer::Readable(place, 4)]).written, 0);
    assert_eq!((pairs.refused(), pairs.attached()), (1, vec![true, false, false]));
    // A command is read, never one's own answer.
    assert_eq!(pairs.driver.run(CONTROL, &[Buffer::Writable(place, 4)]).written, 1);
    assert_eq!(pairs.driver.bytes_at(place, 4), [ERR, 0, 3, 0]);
    assert_eq!((pairs.refused(), pairs.attached()), (2, vec![true, false, false]));
}

#[test]
fn a_broken_control_ring_retires_that_queue_and_frames_go_on_until_reset() {
    for descriptor in [
        Descriptor { address: 0x8000, len: 4, flags: Descriptor::NEXT, next: 31 },
        Descriptor { address: 0x8000, len: 0, flags: 0, next: 0 },
        Descriptor { address: u64::MAX - 2, len: 4, flags: 0, next: 0 },
        Descriptor { address: 0x8000, len: 15, flags: Descriptor::INDIRECT, next: 0 },
    ] {
        let mut pairs = Pairs::new(ALL);
        assert_eq!(pairs.set_pairs(2), OK);
        pairs.driver.queues[CONTROL].write_descriptor(31, descriptor);
        pairs.driver.queues[CONTROL].make_available(31);
        pairs.driver.kick(CONTROL);
        pairs.driver.wait_needs_reset();
        assert_eq!(pairs.counters.retired_queues.load(Ordering::Relaxed), 1);
        pairs.send(0, &frame(60, 1));
        pairs.send(1, &frame(60, 2));
        pairs.initialize(ALL);
        assert_eq!(pairs.set_pairs(3), OK);
    }
}

#[test]
fn what_is_readable_behind_what_is_writable_retires_the_queue() {
    let mut pairs = Pairs::new(ALL);
    let place = pairs.driver.place(&[4, 0, 3, 0, NONE]);
    let chain = [Buffer::Writable(GuestAddress(place.0 + 4), 1), Buffer::Readable(place, 4)];
    pairs.driver.queues[CONTROL].add(&chain);
    pairs.driver.kick(CONTROL);
    pairs.driver.wait_needs_reset();
    assert_eq!(pairs.driver.bytes_at(place, 5), [4, 0, 3, 0, NONE]);
    assert_eq!(pairs.attached(), [true, false, false]);
}

#[test]
fn pairs_come_and_go_while_frames_fly() {
    let mut pairs = Pairs::new(ALL);
    let mut rooms: Vec<VecDeque<_>> = vec![VecDeque::new(); PAIRS];
    let mut coming: Vec<VecDeque<_>> = vec![VecDeque::new(); PAIRS];
    for round in 0..15 {
        for pair in 0..PAIRS {
            while rooms[pair].len() < 16 {
                let room = pairs.post(pair);
                rooms[pair].push_back(room);
            }
            for number in 0..4 {
                let sent = frame(64 + number, round);
                // A wire holds only so many while nobody takes them.
                if pairs.wires[pair].try_send(&sent) && pair > 0 {
                    coming[pair].push_back(sent);
                }
            }
        }
        assert_eq!(pairs.set_pairs(3), OK);
        assert_eq!(pairs.set_pairs(1), OK);
        assert_eq!(pairs.attached(), [true, false, false]);
        for number in 0..4 {
            let room = rooms[0].pop_front().unwrap();
            pairs.expect(0, room, &frame(64 + number, round));
        }
        // What the others got before they left, they got whole, once and in order.
        for pair in 1..PAIRS {
            while let Some(used) = pairs.driver.queues[2 * pair].take_used() {
                let (sent, room) = (coming[pair].pop_front().unwrap(), rooms[pair].pop_front().unwrap());
                assert_eq!(usize::try_from(used.written).unwrap(), sent.len());
                assert_eq!(pairs.driver.bytes_at(room, sent.len()), delivered(&sent, 1));
            }
        }
    }
    assert_eq!(pairs.set_pairs(3), OK);
    for (pair, coming) in coming.into_iter().enumerate() {
        for sent in coming {
            let room = pairs.post(pair);
            rooms[pair].push_back(room);
            let room = rooms[pair].pop_front().unwrap();
            pairs.expect(pair, room, &sent);
        }
    }
}

#[test]
fn a_queue_that_the_host_does_not_attach_leaves_the_number_as_it_was() {
    let mut pairs = Pairs::new(ALL);
    pairs.wires[2].set_fault(NetFault { attach: Some(libc::EINVAL), ..NetFault::default() });
    assert_eq!(pairs.set_pairs(3), ERR);
    assert_eq!(pairs.attached(), [true, false, false]);
    assert_eq!(pairs.set_pairs(2), OK);
    pairs.wires[2].set_fault(NetFault::default());
    assert_eq!(pairs.set_pairs(3), OK);
    assert_eq!(pairs.attached(), [true; PAIRS]);
}

#[test]
fn a_driver_that_knows_one_pair_has_its_control_queue_third_and_is_refused_there() {
    let mut pairs = Pairs::new(CTRL_VQ);
    assert_eq!(pairs.command_at(2, &[4, 0, 1, 0]), ERR);
    assert_eq!(pairs.command_at(2, &[0, 0, 1]), ERR);
    pairs.send(0, &frame(60, 1));
    assert_eq!(pairs.attached(), [true, false, false]);
}

#[test]
fn a_driver_without_a_control_queue_has_the_first_pair() {
    for wanted in [0, MQ] {
        let mut pairs = Pairs::new(wanted);
        pairs.driver.initialize(wanted, &[32, 32]);
        let room = pairs.post(0);
        pairs.wires[0].send(&frame(60, 1));
        pairs.expect(0, room, &frame(60, 1));
        pairs.send(0, &frame(60, 2));
    }
}

#[test]
fn pairs_that_were_not_set_up_cannot_take_part() {
    let mut pairs = Pairs::new(CTRL_VQ | MQ);
    pairs.driver.reset();
    assert!(pairs.driver.negotiate(CTRL_VQ | MQ | 1 << 32));
    (0..4).for_each(|_| pairs.driver.set_up_queue(32));
    let place = pairs.driver.allocate(DriverRing::bytes(32));
    let ring = DriverRing::new(Arc::clone(pairs.driver.memory()), place, 32, false);
    pairs.driver.describe_queue(6, 32, [ring.table.0, ring.avail.0, ring.used.0]);
    pairs.driver.queues.push(ring);
    pairs.driver.driver_ok();
    pairs.driver.queues[4].want_interrupt();
    // The fifth ring is the seventh queue.
    let ask = |pairs: &mut Pairs, count: u8| {
        let (place, ack) = (pairs.driver.place(&[4, 0, count, 0]), pairs.driver.place(&[NONE]));
        pairs.driver.queues[4].add(&[Buffer::Readable(place, 4), Buffer::Writable(ack, 1)]);
        pairs.driver.kick(CONTROL);
        assert_eq!(pairs.driver.wait_used(4).written, 1);
        pairs.driver.bytes_at(ack, 1)[0]
    };
    assert_eq!((ask(&mut pairs, 3), ask(&mut pairs, 2)), (ERR, OK));
    assert_eq!(pairs.attached(), [true, true, false]);
}

#[test]
fn a_driver_may_change_its_mind_only_so_often() {
    let mut pairs = Pairs::new(ALL);
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!((pairs.set_pairs(2), pairs.set_pairs(1)), (OK, OK));
    }
    // 32 changes at once, and then ten a second.
    assert!(start.elapsed() >= Duration::from_millis(100 * (40 - 32)), "{:?}", start.elapsed());
    let start = Instant::now();
    (0..1000).for_each(|_| assert_eq!(pairs.set_pairs(1), OK));
    assert!(start.elapsed() < Duration::from_secs(100), "what changes nothing waits for nothing");
}

/// UDP frames that came to each pair, of one that each of `hosts` sends.
fn spread(pairs: &mut Pairs, rooms: &mut [HashMap<u16, GuestAddress>; PAIRS], hosts: &[UdpSocket]) -> [usize; PAIRS] {
    hosts.iter().for_each(|host| assert_eq!(host.send(&[7; 100]).unwrap(), 100));
    let mut counts = [0; PAIRS];
    let deadline = Instant::now() + DEADLINE;
    while counts.iter().sum::<usize>() < hosts.len() {
        assert!(Instant::now() < deadline, "{counts:?} of {} frames come in time", hosts.len());
        for pair in 0..PAIRS {
            while let Some(used) = pairs.driver.queues[2 * pair].take_used() {
                let room = rooms[pair].remove(&used.head).unwrap();
                let frame = pairs.driver.bytes_at(room, 2048);
                // IPv4 that carries UDP; the host says more by itself.
                counts[pair] += usize::from(frame[24..26] == [8, 0] && frame[35] == 17);
                let head = pairs.driver.queues[2 * pair].add(&[Buffer::Writable(room, 2048)]);
                rooms[pair].insert(head, room);
                pairs.driver.kick(2 * pair);
            }
        }
        std::thread::yield_now();
    }
    counts
}

#[test]
fn a_tap_deals_frames_out_to_the_pairs_that_take_part_and_to_no_other() {
    in_network_namespace(|| {
        ip("tuntap add tap7 mode tap multi_queue");
        let taps = Tap::open_queues(&InterfaceName::new("tap7").unwrap(), PAIRS).unwrap();
        let mut pairs = Pairs::over(taps, Vec::new(), ALL);
        ip("link set tap7 up");
        ip("address add 192.0.2.1/24 dev tap7");
        ip("neighbour add 192.0.2.2 lladdr 02:00:00:00:00:07 dev tap7");
        let hosts: Vec<_> = (0..64).map(|_| UdpSocket::bind("192.0.2.1:0").unwrap()).collect();
        hosts.iter().for_each(|host| host.connect("192.0.2.2:4242").unwrap());
        let mut rooms = [(); PAIRS].map(|()| HashMap::new());
        for (pair, rooms) in rooms.iter_mut().enumerate() {
            for _ in 0..32 {
                let room = pairs.driver.place(&[0; 2048]);
                rooms.insert(pairs.driver.queues[2 * pair].add(&[Buffer::Writable(room, 2048)]), room);
            }
            pairs.driver.kick(2 * pair);
        }
        let alone = [64, 0, 0];
        assert_eq!(spread(&mut pairs, &mut rooms, &hosts), alone);
        assert_eq!(pairs.set_pairs(2), OK);
        let [first, second, third] = spread(&mut pairs, &mut rooms, &hosts);
        assert!(first > 0 && second > 0 && third == 0, "{first} {second} {third}");
        assert_eq!(pairs.set_pairs(3), OK);
        let counts = spread(&mut pairs, &mut rooms, &hosts);
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
        pairs.move_to(Tap::open_queues(&InterfaceName::new("tap7").unwrap(), PAIRS).unwrap());
        let counts = spread(&mut pairs, &mut rooms, &hosts);
        assert!(counts.iter().all(|count| *count > 0), "{counts:?} after a restore");
        pairs.driver.queues[CONTROL].want_interrupt();
        assert_eq!(pairs.set_pairs(1), OK);
        assert_eq!(spread(&mut pairs, &mut rooms, &hosts), alone);
    });
}
