//! VLAN tags: two devices over taps that a bridge of the host joins carry each other's frames as they are.

use super::*;
use crate::backend::net::{InterfaceName, Tap};
use crate::testing::{DEADLINE, DriverRing, in_network_namespace, ip};
use std::collections::HashMap;
use std::time::Instant;

/// An EtherType that nobody else here uses (IEEE 802: for experiments).
const EXPERIMENT: [u8; 2] = [0x88, 0xb5];
const ROOM: u32 = 2048;
/// Sends what nobody looks at.
const GREETER: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A device behind a tap of its own.
struct Port {
    driver: FakeDriver,
    mac: [u8; 6],
    /// Where the available buffers are, by head.
    rooms: HashMap<u16, GuestAddress>,
    _thread: IoThread,
}

impl Port {
    fn new(tap: &str, mac: [u8; 6], wanted: u64) -> Self {
        ip(&format!("tuntap add {tap} mode tap"));
        let backend = Tap::open(&InterfaceName::new(tap).unwrap()).unwrap();
        ip(&format!("link set {tap} master br7"));
        ip(&format!("link set {tap} up"));
        let thread = IoThread::spawn("husk-io-test").unwrap();
        let queue = NetQueue { backend: Arc::new(backend), thread: thread.handle() };
        let net = Net::new(tap, vec![queue], NetOptions { mac: Some(mac), ..NetOptions::default() }).unwrap();
        let memory = memory_with_hole(16 << 20);
        let transport = MmioTransport::new(tap, Box::new(net), memory.clone()).unwrap();
        let mut driver = FakeDriver::new(transport, memory);
        driver.initialize(wanted, &[32, 32]);
        driver.queues.iter().for_each(DriverRing::want_interrupt);
        Self { driver, mac, rooms: HashMap::new(), _thread: thread }
    }

    fn refill(&mut self) {
        while self.driver.queues[RX].free() > 0 {
            let place = self.driver.allocate(ROOM.into());
            let head = self.driver.queues[RX].add(&[Buffer::Writable(place, ROOM)]);
            self.rooms.insert(head, place);
        }
        self.driver.kick(RX);
    }

    fn send(&mut self, frame: &[u8]) {
        let place = self.driver.place(frame);
        self.driver.run(TX, &[Buffer::Readable(place, u32::try_from(frame.len()).unwrap())]);
    }

    /// Whether a frame from `source` is among those that have come.
    fn has_heard(&mut self, source: [u8; 6]) -> bool {
        self.refill();
        while let Some(used) = self.driver.queues[RX].take_used() {
            let place = self.rooms.remove(&used.head).unwrap();
            if self.driver.bytes_at(place, 24)[18..] == source {
                return true;
            }
        }
        false
    }

    /// The next frame from `source`, header in front: the host's own are not ours.
    fn receive_from(&mut self, source: [u8; 6]) -> Vec<u8> {
        loop {
            self.refill();
            let used = self.driver.wait_used(RX);
            let place = self.rooms.remove(&used.head).unwrap();
            let frame = self.driver.bytes_at(place, usize::try_from(used.written).unwrap());
            if frame[18..24] == source {
                return frame;
            }
        }
    }
}

fn ports(wanted: [u64; 2]) -> [Port; 2] {
    ip("link add br7 type bridge forward_delay 0");
    ip("link set br7 up");
    let [first, second] = wanted;
    let mut ports = [Port::new("tap7", [2, 0, 0, 0, 0, 7], first), Port::new("tap8", [2, 0, 0, 0, 0, 8], second)];
    // The bridge forwards when it has noticed both carriers.
    let [one, other] = &mut ports;
    let hello = tagged(GREETER, other.mac, &[], &EXPERIMENT, &[1; 50]);
    let deadline = Instant::now() + DEADLINE;
    while !other.has_heard(GREETER) {
        assert!(Instant::now() < deadline, "the bridge forwards in time");
        one.send(&hello);
    }
    ports
}

/// A frame behind an empty header, with tags in front of its type.
fn tagged(from: [u8; 6], to: [u8; 6], tags: &[[u8; 4]], protocol: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = [0; HEADER];
    [&header[..], &to, &from, &tags.concat(), protocol, payload].concat()
}

#[test]
fn tags_of_all_kinds_go_through_both_ways_as_they_are() {
    let tags: [&[[u8; 4]]; 7] = [
        &[],
        // VLAN 5; VLAN 4094 with the highest priority; priority alone.
        &[[0x81, 0, 0, 5]],
        &[[0x81, 0, 0xef, 0xfe]],
        &[[0x81, 0, 0xa0, 0]],
        // A service tag, alone and around a customer's; two customer's tags.
        &[[0x88, 0xa8, 0x60, 100]],
        &[[0x88, 0xa8, 0x60, 100], [0x81, 0, 0x20, 5]],
        &[[0x81, 0, 0, 9], [0x81, 0, 0, 10]],
    ];
    for wanted in [0, ALL] {
        in_network_namespace(|| {
            let [mut one, mut other] = ports([wanted; 2]);
            for (seed, tags) in tags.into_iter().enumerate() {
                for len in [46, 1500] {
                    let payload = &frame(len, seed)[HEADER..];
                    let sent = tagged(one.mac, other.mac, tags, &EXPERIMENT, payload);
                    one.send(&sent);
                    assert!(other.receive_from(one.mac)[HEADER..] == sent[HEADER..], "{tags:x?} {len} to the second");
                    let back = tagged(other.mac, one.mac, tags, &EXPERIMENT, payload);
                    other.send(&back);
                    assert!(one.receive_from(other.mac)[HEADER..] == back[HEADER..], "{tags:x?} {len} to the first");
                }
            }
        });
    }
}
