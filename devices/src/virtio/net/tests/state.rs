//! A network device whose state is saved and given to another, in the middle of frames.

use super::pairs::{OK, PAIRS, Pairs};
use super::*;
use crate::limit::{LimiterConfig, Limits, Rate};
use crate::state::SaveState;
use crate::virtio::transport::MmioState;
use crate::virtio::voice::News;

impl Bench {
    /// Moves the driver to another device on another wire, which has the state of this one. It does not go on yet. Returns
    /// the old wire.
    fn move_to(&mut self, options: NetOptions) -> Wire {
        let (backend, wire) = FakeNet::new(Offloads::ALL);
        let net = card(Arc::new(backend), options, &self._thread);
        (self.counters, self.control) = (net.counters(), net.control());
        let heir = MmioTransport::new("net0", Box::new(net), self.driver.memory().clone()).unwrap();
        self.driver.migrate(heir);
        std::mem::replace(&mut self.wire, wire)
    }
}

/// What another device says of a state.
fn refusal(state: &MmioState, able: Offloads, options: NetOptions) -> String {
    let (backend, _wire) = FakeNet::new(able);
    let thread = IoThread::spawn("husk-io-test").unwrap();
    let queue = NetQueue { backend: Arc::new(backend), thread: thread.handle() };
    let net = Net::new("net0", vec![queue], options).unwrap();
    let mut heir = MmioTransport::new("net0", Box::new(net), memory_with_hole(16 << 20)).unwrap();
    heir.restore(state.clone()).map_or_else(|error| error.to_string(), |()| "none".to_owned())
}

fn with_mac() -> NetOptions {
    NetOptions { mac: Some(MAC), ..NetOptions::default() }
}

#[test]
fn frames_go_and_come_once_wherever_the_device_is_saved() {
    for wanted in [0, EVENT_IDX | MERGE, ALL] {
        let mut bench = Bench::new(wanted);
        for round in 0..4 {
            let rooms: Vec<_> = (0..3).map(|_| bench.add_room(2048)).collect();
            let sent: Vec<_> = (0..30).map(|seed| frame(100, round * 30 + seed)).collect();
            for frame in &sent {
                let place = bench.driver.place(frame);
                bench.driver.queues[TX].add(&[Buffer::Readable(place, 112)]);
            }
            bench.driver.kick(TX);
            if round == 1 {
                // The wire takes a few, and the rest waits for it.
                assert_eq!(bench.wire.receive(), sent[0]);
            }
            let old = bench.move_to(NetOptions::default());
            bench.resume();
            // None is lost on the way, none goes twice, and their order is what it was.
            let mut went: Vec<_> = std::iter::from_fn(|| old.try_receive()).collect();
            let first = usize::from(round == 1) + went.len();
            went.extend((first..30).map(|_| bench.wire.receive()));
            assert_eq!(went, sent[usize::from(round == 1)..]);
            for _ in 0..30 {
                bench.driver.wait_used(TX);
            }
            assert_eq!(bench.wire.try_receive(), None);
            for (seed, room) in rooms.into_iter().enumerate() {
                bench.wire.send(&frame(200, seed));
                bench.driver.wait_used(RX);
                assert_eq!(bench.driver.bytes_at(room, 212), delivered(&frame(200, seed), 1));
            }
        }
    }
}

#[test]
fn the_new_interface_is_told_what_the_driver_takes_upon_itself() {
    let mut bench = Bench::new(GUEST_CSUM | 1 << 7);
    bench.move_to(NetOptions::default());
    bench.resume();
    assert_eq!(bench.wire.offloads(), Offloads { csum: true, tso4: true, ..Offloads::default() });
}

#[test]
fn a_cable_that_is_out_stays_out_and_one_that_was_pulled_meanwhile_is_told() {
    let mut bench = Bench::new(STATUS);
    bench.pause();
    bench.control.set_link(LinkState::Down);
    bench.move_to(NetOptions::default());
    assert_eq!(bench.control.link(), LinkState::Down);
    assert_eq!(bench.driver.take_interrupt(), None, "it does not run yet");
    bench.resume();
    assert!(bench.driver.take_interrupt().is_some_and(|causes| causes & 2 != 0));
    assert_eq!(bench.driver.config(6), [0, 0]);
    bench.send(&[&frame(60, 1)]);
    assert_eq!(bench.wire.try_receive(), None);
    while bench.driver.take_interrupt().is_some() {}
    bench.move_to(NetOptions::default());
    bench.resume();
    assert_eq!(bench.driver.take_interrupt(), None, "once");
    bench.control.set_link(LinkState::Up);
    bench.send(&[&frame(60, 2)]);
    assert_eq!(bench.wire.receive(), frame(60, 2));
}

#[test]
fn a_limit_that_is_used_up_still_is() {
    let rate = Rate::new(3, 0, 24 * 3_600_000);
    let limits = LimiterConfig { total: Limits { operations: rate, bytes: None }, ..LimiterConfig::default() };
    let options = || NetOptions { limiter: Some(Limiter::new(limits)), ..with_mac() };
    let mut bench = Bench::with_options(EVENT_IDX, options());
    (0..3).for_each(|seed| bench.send(&[&frame(60, seed)]));
    let place = bench.driver.place(&frame(60, 3));
    bench.driver.queues[TX].add(&[Buffer::Readable(place, 72)]);
    let (backend, wire) = FakeNet::new(Offloads::ALL);
    let net = card(Arc::new(backend), options(), &bench._thread);
    let mut heir = MmioTransport::new("net0", Box::new(net), bench.driver.memory().clone()).unwrap();
    heir.restore(bench.driver.save()).unwrap();
    bench.driver.move_to(heir);
    bench.resume();
    bench.pause();
    assert_eq!(bench.driver.queues[TX].device_used_index(), 3, "a restore gives nothing away");
    assert_eq!(wire.try_receive(), None);
}

#[test]
fn a_device_that_differs_says_in_what() {
    let bench = Bench::with_options(ALL, NetOptions { mtu: Some(1400), ..NetOptions::default() });
    let state = bench.driver.save();
    let same = || NetOptions { mtu: Some(1400), ..with_mac() };
    assert_eq!(refusal(&state, Offloads::ALL, same()), "none");
    let without = Offloads { tso4: false, uso: false, ..Offloads::ALL };
    assert_eq!(
        refusal(&state, without, same()),
        "the driver uses VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_GUEST_USO4, \
         VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_USO, which the device does not offer any more"
    );
    let other_mac = NetOptions { mac: Some([2, 0, 0, 0, 0, 8]), ..same() };
    assert_eq!(
        refusal(&state, Offloads::ALL, other_mac),
        "the guest was told MAC address 02:00:00:00:00:07, and here there is MAC address 02:00:00:00:00:08"
    );
    let other_mtu = NetOptions { mtu: Some(1500), ..same() };
    assert_eq!(refusal(&state, Offloads::ALL, other_mtu), "the guest was told an MTU of 1400, and here it is 1500");
    let fewer = Pairs::new(0).driver.save();
    let error = refusal(&fewer, Offloads::ALL, with_mac());
    assert_eq!(error, "the guest was told a number of queues of 7, and here it is 2");
}

#[test]
fn an_mtu_of_0_is_in_no_state() {
    let state = |mtu| {
        let (mac, news, limiter) = (None::<[u8; 6]>, News::None, None::<()>);
        postcard::to_allocvec(&(mac, mtu, true, news, 1_u16, limiter)).unwrap()
    };
    assert_eq!(postcard::from_bytes::<NetState>(&state(Some(1500_u16))).unwrap().mtu.map(u16::from), Some(1500));
    postcard::from_bytes::<NetState>(&state(Some(0))).unwrap_err();
}

#[test]
fn the_pairs_that_take_part_are_those_that_did() {
    let mut pairs = Pairs::new(ALL);
    for active in [3, 2, 1_u16] {
        assert_eq!(pairs.set_pairs(active), OK);
        let (backends, wires) = (0..PAIRS).map(|_| FakeNet::new(Offloads::ALL)).unzip::<_, _, Vec<_>, _>();
        pairs.move_to(backends);
        pairs.wires = wires;
        let active = usize::from(active);
        assert_eq!(pairs.attached(), (0..PAIRS).map(|pair| pair < active).collect::<Vec<_>>());
        for pair in 0..active {
            let room = pairs.post(pair);
            pairs.wires[pair].send(&frame(100, pair));
            pairs.expect(pair, room, &frame(100, pair));
            pairs.send(pair, &frame(90, pair));
        }
    }
}

#[test]
fn a_queue_that_cannot_be_attached_is_an_error_and_so_are_pairs_that_there_are_not() {
    let mut pairs = Pairs::new(ALL);
    assert_eq!(pairs.set_pairs(2), OK);
    let state = pairs.driver.save();
    let attempt = |state: MmioState, fault: NetFault| {
        let (backends, wires) = (0..PAIRS).map(|_| FakeNet::new(Offloads::ALL)).unzip::<_, _, Vec<_>, Vec<_>>();
        wires[1].set_fault(fault);
        let (net, _threads) = Pairs::card(backends);
        let mut heir = MmioTransport::new("net0", Box::new(net), memory_with_hole(16 << 20)).unwrap();
        heir.restore(state).map_err(|error| error.to_string())
    };
    let fault = NetFault { attach: Some(libc::EBADFD), ..NetFault::default() };
    assert_eq!(attempt(state.clone(), fault), Err("cannot set the backend up as it was".to_owned()));
    for active_pairs in [0, 4, u16::MAX] {
        let mut state = state.clone();
        let DeviceState::Network(net) = &mut state.core.device else { unreachable!("it is a network card's") };
        net.active_pairs = active_pairs;
        let error = attempt(state, NetFault::default()).unwrap_err();
        assert!(error.contains("more pairs of queues take part than there are, or none"), "{error}");
    }
}

#[test]
fn after_a_reset_a_device_that_was_restored_is_as_new() {
    let mut bench = Bench::new(ALL);
    bench.driver.reset();
    let new = bench.driver.save();
    bench.initialize(ALL);
    bench.post(2048);
    bench.move_to(NetOptions::default());
    bench.resume();
    bench.driver.reset();
    assert_eq!(bench.driver.save(), new);
    assert_eq!(bench.wire.offloads(), Offloads::default());
    bench.initialize(ALL);
    bench.send(&[&frame(60, 1)]);
    assert_eq!(bench.wire.receive(), frame(60, 1));
}
