//! The source filter between a driver's rings and the wire.

use super::*;
use crate::limit::{Limiter, LimiterConfig, Limits, Rate};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;
use std::sync::Mutex;
use vm_memory::Bytes;

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 8];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const HOST: [u8; 4] = [192, 0, 2, 1];

fn by_mac() -> NetOptions {
    NetOptions { filter: Some(Arc::new(SourceFilter::mac(MAC))), ..NetOptions::default() }
}

fn by_mac_and_ip() -> NetOptions {
    let filter = SourceFilter::mac_and_ip(MAC, vec![Ipv4Addr::from(GUEST)], vec![Ipv6Addr::LOCALHOST]);
    NetOptions { filter: Some(Arc::new(filter)), ..NetOptions::default() }
}

/// A UDP packet over IPv4, behind an empty header.
fn packet(mac: [u8; 6], tags: &[u8], from: [u8; 4], payload: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend([0xff; 6].into_iter().chain(mac));
    frame.extend(tags);
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(u16::try_from(28 + payload).unwrap().to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0].into_iter().chain(from).chain(HOST));
    frame.extend([16, 0, 16, 0, 0, 8, 0, 0]);
    frame.extend((0..payload).map(|at| u8::try_from(at % 251).unwrap()));
    frame
}

fn filtered(bench: &Bench) -> u64 {
    bench.count(|all| &all.pairs[0].transmitted.filtered)
}

#[test]
fn frames_of_another_source_are_filtered_out_and_counted_and_the_next_one_goes() {
    let tag: &[u8] = &[0x81, 0, 0x20, 5];
    for (options, bad) in [
        (by_mac(), vec![packet(OTHER, &[], GUEST, 40), packet(OTHER, tag, GUEST, 40)]),
        (by_mac_and_ip(), vec![packet(MAC, &[], HOST, 40), packet(MAC, tag, HOST, 40), frame(60, 1)]),
    ] {
        for wanted in [0, ALL] {
            let mut bench = Bench::with_options(wanted, options.clone());
            for (count, bad) in (1..).zip(&bad) {
                bench.send(&[bad]);
                assert_eq!(filtered(&bench), count);
            }
            for good in [packet(MAC, &[], GUEST, 1400), packet(MAC, tag, GUEST, 0)] {
                bench.send(&[&good]);
                assert_eq!(bench.wire.receive(), good, "and nothing before it");
            }
            assert_eq!(bench.count(|all| &all.pairs[0].transmitted.frames), 2);
            assert_eq!(bench.count(|all| &all.pairs[0].transmitted.dropped), 0, "a filtered frame is counted once");
        }
    }
}

#[test]
fn headers_in_pieces_of_a_byte_are_read_like_any() {
    let mut bench = Bench::with_options(INDIRECT, by_mac_and_ip());
    for (payload, from, goes) in [(0, GUEST, true), (0, HOST, false), (900, GUEST, true), (900, HOST, false)] {
        let sent = packet(MAC, &[], from, payload);
        let place = bench.driver.place(&sent);
        let chain: Vec<_> =
            (0..u64::try_from(sent.len()).unwrap()).map(|at| Buffer::Readable(GuestAddress(place.0 + at), 1)).collect();
        let table = bench.driver.allocate(16 * u64::try_from(chain.len()).unwrap());
        bench.driver.queues[TX].add_indirect(table, &chain);
        bench.driver.kick(TX);
        bench.driver.wait_used(TX);
        if goes {
            assert_eq!(bench.wire.receive(), sent);
        }
    }
    assert_eq!((filtered(&bench), bench.wire.try_receive()), (2, None));
}

#[test]
fn every_cut_of_a_frame_is_one_frame() {
    let mut bench = Bench::with_options(ALL, by_mac_and_ip());
    let (good, bad) = (packet(MAC, &[], GUEST, 400), packet(MAC, &[], HOST, 400));
    for cut in (1..60).chain([HEADER + 255, HEADER + 256, HEADER + 257]) {
        bench.send(&[&bad[..cut], &bad[cut..]]);
        bench.send(&[&good[..cut], &good[cut..]]);
        assert_eq!(bench.wire.receive(), good, "cut at {cut}");
    }
    assert_eq!(filtered(&bench), 62);
}

#[test]
fn a_frame_to_be_segmented_is_filtered_and_no_checksum_overwrites_its_source() {
    let mut bench = Bench::with_options(ALL, by_mac_and_ip());
    let with_header = |from, gso, start: u8, offset: u8| {
        let mut frame = packet(MAC, &[], from, 3000);
        frame[..10].copy_from_slice(&[1, gso, 42, 0, 0xe8, 3, start, 0, offset, 0]);
        if gso == 0 {
            frame[4..6].fill(0);
        }
        frame
    };
    let good = with_header(GUEST, 5, 34, 6);
    bench.send(&[&good]);
    assert_eq!(bench.wire.receive(), good);
    bench.send(&[&with_header(HOST, 5, 34, 6)]);
    // In the Ethernet address, in the protocol, in the IPv4 address.
    for (start, offset) in [(0, 6), (6, 5), (12, 0), (14, 12), (26, 0), (33, 0)] {
        for gso in [0, 5] {
            bench.send(&[&with_header(GUEST, gso, start, offset)]);
        }
    }
    assert_eq!((filtered(&bench), bench.wire.try_receive()), (13, None));
}

/// A backend under which the guest changes a frame between the check and the system call.
struct Hasty {
    inner: FakeNet,
    memory: Arc<GuestMemory>,
    /// Where the frame of the guest lies, and what it becomes.
    change: Mutex<Option<(GuestAddress, Vec<u8>)>>,
}

impl NetBackend for Hasty {
    fn offloads(&self) -> Offloads {
        self.inner.offloads()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.inner.set_offloads(offloads)
    }

    fn attach(&self) -> io::Result<()> {
        self.inner.attach()
    }

    fn detach(&self) -> io::Result<()> {
        self.inner.detach()
    }

    fn receive(&self, room: &mut ReceiveRoom) -> io::Result<usize> {
        self.inner.receive(room)
    }

    fn transmit(&self, frame: &mut TransmitFrame) -> io::Result<()> {
        if let Some((place, bytes)) = self.change.lock().unwrap().take() {
            self.memory.write_slice(&bytes, place).unwrap();
        }
        self.inner.transmit(frame)
    }

    fn receive_fd(&self) -> RawFd {
        self.inner.receive_fd()
    }

    fn transmit_fd(&self) -> RawFd {
        self.inner.transmit_fd()
    }
}

#[test]
fn a_guest_that_changes_a_frame_behind_the_check_sends_what_was_checked() {
    for (options, checked) in [(by_mac(), 14), (by_mac_and_ip(), 256)] {
        let mut hasty = None;
        let make = |inner, memory: &Arc<GuestMemory>| {
            let backend = Arc::new(Hasty { inner, memory: Arc::clone(memory), change: Mutex::new(None) });
            hasty = Some(Arc::clone(&backend));
            backend as Arc<dyn NetBackend>
        };
        let mut bench = Bench::over(make, ALL, options, IoThread::spawn("husk-io-test").unwrap());
        let good = packet(MAC, &[], GUEST, 400);
        let spoofed: Vec<u8> = good.iter().map(|byte| !byte).collect();
        let place = bench.driver.place(&good);
        *hasty.unwrap().change.lock().unwrap() = Some((place, spoofed.clone()));
        bench.driver.run(TX, &[Buffer::Readable(place, u32::try_from(good.len()).unwrap())]);
        let sent = bench.wire.receive();
        let end = HEADER + checked;
        assert_eq!((&sent[..end], &sent[end..]), (&good[..end], &spoofed[end..]));
        assert_eq!(bench.driver.bytes_at(place, spoofed.len()), spoofed, "it was changed");
    }
}

#[test]
fn what_is_filtered_out_spends_nothing_of_a_limit() {
    let tokens =
        LimiterConfig { outward: Limits { operations: Rate::per_second(1), bytes: None }, ..LimiterConfig::default() };
    let options = NetOptions { limiter: Some(Limiter::new(tokens)), ..by_mac() };
    let mut bench = Bench::with_options(ALL, options);
    for _ in 0..50 {
        bench.send(&[&packet(OTHER, &[], GUEST, 0)]);
    }
    let good = packet(MAC, &[], GUEST, 0);
    bench.send(&[&good]);
    assert_eq!((bench.wire.receive(), filtered(&bench)), (good, 50));
}
