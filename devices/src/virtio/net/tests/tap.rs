//! The device over a real tap, whose other end is the network stack of the host, in a namespace of its own.

use super::*;
use crate::backend::net::{InterfaceName, Tap};
use crate::testing::{DEADLINE, in_network_namespace, ip};
use std::collections::HashMap;
use std::net::UdpSocket;

const HOST: [u8; 4] = [192, 0, 2, 1];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const PORT: u16 = 4242;
/// Bytes of a receive buffer.
const ROOM: u32 = 2000;

struct TapBench {
    driver: FakeDriver,
    counters: Arc<NetCounters>,
    host: UdpSocket,
    host_mac: [u8; 6],
    /// Where the available buffers are, by head, and places for more.
    rooms: HashMap<u16, GuestAddress>,
    spare: Vec<GuestAddress>,
    _thread: IoThread,
}

impl TapBench {
    fn new(wanted: u64) -> Self {
        ip("tuntap add tap7 mode tap");
        let tap = Tap::open(&InterfaceName::new("tap7").unwrap()).unwrap();
        // Up only now: an interface that is up without a carrier drops what comes until the kernel has noticed one.
        ip("link set tap7 up mtu 65000 address 02:00:00:00:00:01");
        ip("address add 192.0.2.1/24 dev tap7");
        ip("neighbour add 192.0.2.2 lladdr 02:00:00:00:00:07 dev tap7");
        let thread = IoThread::spawn("husk-io-test").unwrap();
        let queue = NetQueue { backend: Arc::new(tap), thread: thread.handle() };
        let net = Net::new("net0", vec![queue], NetOptions { mac: Some(MAC), ..NetOptions::default() }).unwrap();
        let counters = net.counters();
        let memory = memory_with_hole(16 << 20);
        let transport = MmioTransport::new("net0", Box::new(net), memory.clone()).unwrap();
        let mut driver = FakeDriver::new(transport, memory);
        driver.initialize(wanted, &[256, 32]);
        driver.queues.iter().for_each(crate::testing::DriverRing::want_interrupt);
        let host = UdpSocket::bind((std::net::Ipv4Addr::from(HOST), PORT)).unwrap();
        host.set_read_timeout(Some(DEADLINE)).unwrap();
        let (rooms, spare) = (HashMap::new(), Vec::new());
        Self { driver, counters, host, host_mac: [2, 0, 0, 0, 0, 1], rooms, spare, _thread: thread }
    }

    /// Makes as many buffers available as the ring holds.
    fn refill(&mut self) {
        while self.driver.queues[RX].free() > 0 {
            let place = self.spare.pop().unwrap_or_else(|| self.driver.allocate(ROOM.into()));
            let head = self.driver.queues[RX].add(&[Buffer::Writable(place, ROOM)]);
            self.rooms.insert(head, place);
        }
        if self.driver.queues[RX].needs_kick() {
            self.driver.kick(RX);
        }
    }

    /// The next IPv4 frame, header in front.
    fn receive(&mut self) -> Vec<u8> {
        loop {
            let mut frame = Vec::new();
            let (mut buffers, mut count) = (0, 1);
            while buffers < count {
                self.refill();
                let used = self.driver.wait_used(RX);
                let place = self.rooms.remove(&used.head).unwrap();
                frame.extend(self.driver.bytes_at(place, usize::try_from(used.written).unwrap()));
                self.spare.push(place);
                count = u16::from_le_bytes([frame[10], frame[11]]);
                buffers += 1;
            }
            if frame[24..26] == [8, 0] {
                return frame;
            }
        }
    }

    /// A UDP frame to the host behind a header, its checksum left to the device.
    fn udp(&self, gso: u8, gso_size: u16, payload: &[u8]) -> Vec<u8> {
        let udp_len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
        let ip_len = u16::try_from(28 + payload.len()).unwrap().to_be_bytes();
        let mut ip = vec![0x45, 0, ip_len[0], ip_len[1], 0, 0, 0x40, 0, 64, 17, 0, 0];
        ip.extend(GUEST.into_iter().chain(HOST));
        let check = (!fold(sum(&ip))).to_be_bytes();
        ip[10..12].copy_from_slice(&check);
        let pseudo = fold(sum(&GUEST) + sum(&HOST) + 17 + sum(&udp_len)).to_be_bytes();
        let mut frame = vec![1, gso, 42, 0];
        frame.extend(gso_size.to_le_bytes());
        frame.extend([34, 0, 6, 0, 0, 0]);
        frame.extend(self.host_mac.into_iter().chain(MAC).chain([8, 0]));
        frame.extend(ip);
        frame.extend([PORT.to_be_bytes(), PORT.to_be_bytes(), udp_len, pseudo].concat());
        frame.extend(payload);
        frame
    }

    fn send(&mut self, frame: &[u8]) {
        let place = self.driver.place(frame);
        self.driver.run(TX, &[Buffer::Readable(place, u32::try_from(frame.len()).unwrap())]);
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum()
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    u16::try_from((once & 0xffff) + (once >> 16)).unwrap()
}

/// All of a UDP packet over IPv4 sums up to nothing, if its checksum is right.
fn is_udp_sum_right(frame: &[u8]) -> bool {
    let (addresses, udp) = (&frame[38..46], &frame[46..]);
    fold(sum(addresses) + 17 + u32::try_from(udp.len()).unwrap() + sum(udp)) == 0xffff
}

#[test]
fn frames_go_both_ways_and_checksums_are_whose_they_were_negotiated_to_be() {
    for wanted in [ALL, MERGE] {
        in_network_namespace(|| {
            let mut bench = TapBench::new(wanted);
            for len in [0, 1, 18, 1000, 1472, 9000, 60_000] {
                let payload = frame(len, len)[12..].to_vec();
                bench.host.send_to(&payload, (std::net::Ipv4Addr::from(GUEST), PORT)).unwrap();
                let got = bench.receive();
                assert_eq!(got[12..18], MAC);
                assert!(got[54..] == payload, "{len} bytes to the guest");
                let left_out = got[0] & 1 != 0;
                assert!(!left_out || wanted == ALL, "not negotiated");
                assert!(left_out || is_udp_sum_right(&got), "{len}");
                if wanted == ALL {
                    let sent = bench.udp(0, 0, &payload);
                    bench.send(&sent);
                    let mut got = vec![0; 65536];
                    let len = bench.host.recv(&mut got).unwrap();
                    assert!(got[..len] == payload, "{len} bytes to the host");
                }
            }
            let dropped = [&bench.counters.pairs[0].received.dropped, &bench.counters.pairs[0].transmitted.dropped];
            assert_eq!(dropped.map(|counter| counter.load(Ordering::Relaxed)), [0, 0]);
        });
    }
}

#[test]
fn a_large_udp_frame_is_cut_into_datagrams_by_the_host() {
    in_network_namespace(|| {
        let mut bench = TapBench::new(ALL);
        let payload = frame(20_000, 3)[12..].to_vec();
        let sent = bench.udp(5, 1000, &payload);
        bench.send(&sent);
        for part in payload.chunks(1000) {
            let mut got = [0; 2000];
            assert_eq!(bench.host.recv(&mut got).unwrap(), 1000);
            assert!(got[..1000] == *part);
        }
    });
}

#[test]
fn a_tap_that_is_deleted_is_a_link_that_goes_down() {
    in_network_namespace(|| {
        let mut bench = TapBench::new(ALL);
        bench.refill();
        assert_eq!(bench.driver.config(6), [1, 0]);
        ip("link delete tap7");
        bench.driver.wait_for("the link to go down", |driver| (driver.config(6) == [0, 0]).then_some(()));
        let sent = bench.udp(0, 0, &[0; 100]);
        bench.send(&sent);
        assert_eq!(bench.counters.pairs[0].transmitted.errors.load(Ordering::Relaxed), 1);
        // A driver that starts again hears that it cannot.
        bench.driver.reset();
        assert!(bench.driver.negotiate(1 << 32));
        bench.driver.set_up_queue(8);
        bench.driver.set_up_queue(8);
        bench.driver.driver_ok();
        bench.driver.wait_needs_reset();
    });
}

#[test]
fn an_interface_that_is_down_loses_frames_until_it_is_up() {
    in_network_namespace(|| {
        let mut bench = TapBench::new(ALL);
        ip("link set tap7 down");
        let sent = bench.udp(0, 0, &[1; 100]);
        bench.send(&sent);
        assert_eq!(bench.counters.pairs[0].transmitted.errors.load(Ordering::Relaxed), 1);
        ip("link set tap7 up");
        bench.send(&sent);
        let mut got = [0; 200];
        assert_eq!(bench.host.recv(&mut got).unwrap(), 100);
        ip("neighbour replace 192.0.2.2 lladdr 02:00:00:00:00:07 dev tap7");
        bench.host.send_to(&[2; 50], (std::net::Ipv4Addr::from(GUEST), PORT)).unwrap();
        assert!(bench.receive()[54..] == [2; 50]);
    });
}

#[test]
fn frames_that_are_there_together_arrive_in_order_and_what_is_wrong_among_them_is_left_out() {
    in_network_namespace(|| {
        let mut bench = TapBench::new(CSUM);
        let numbers = |count: usize| (0..count).map(|number| vec![u8::try_from(number).unwrap(); 10 + 40 * number]);
        // The ring has 32 entries: 28 frames, of which three are none.
        for (number, payload) in numbers(28).enumerate() {
            let mut frame = bench.udp(0, 0, &payload);
            if number % 10 == 7 {
                // A header and nothing behind it.
                frame.truncate(12);
            }
            let place = bench.driver.place(&frame);
            bench.driver.queues[TX].add(&[Buffer::Readable(place, u32::try_from(frame.len()).unwrap())]);
        }
        bench.driver.kick(TX);
        for (_, payload) in numbers(28).enumerate().filter(|(number, _)| number % 10 != 7) {
            let mut received = [0; 2000];
            let len = bench.host.recv(&mut received).unwrap();
            assert_eq!(received[..len], payload);
        }
        for _ in 0..28 {
            bench.driver.wait_used(TX);
        }
        let sent = &bench.counters.pairs[0].transmitted;
        let count = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((count(&sent.frames), count(&sent.dropped) + count(&sent.errors)), (25, 3));
    });
}
