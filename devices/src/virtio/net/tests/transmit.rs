use super::*;

#[test]
fn a_frame_arrives_as_it_was_sent_however_it_was_cut() {
    let mut bench = Bench::new(ALL);
    let sent = frame(1000, 1);
    for cuts in [vec![12], vec![1], vec![5, 12, 13], vec![26], vec![11, 500], vec![]] {
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.iter().copied().chain([sent.len()]) {
            pieces.push(&sent[from..cut]);
            from = cut;
        }
        bench.send(&pieces);
        assert_eq!(bench.wire.receive(), sent, "{cuts:?}");
    }
    assert_eq!(
        (bench.count(|all| &all.pairs[0].transmitted.frames), bench.count(|all| &all.pairs[0].transmitted.bytes)),
        (6, 6000)
    );
}

#[test]
fn frames_of_all_sizes_arrive_in_order() {
    let mut bench = Bench::new(ALL);
    for (seed, len) in [14, 60, 64, 1514, 1518, 4096, 9018, 65553, 65554].into_iter().enumerate() {
        let sent = frame(len, seed);
        bench.send(&[&sent[..12], &sent[12..]]);
        assert_eq!(bench.wire.receive(), sent);
    }
}

#[test]
fn what_is_no_frame_is_dropped_and_counted() {
    let mut bench = Bench::new(ALL);
    bench.send(&[&frame(13, 0)]);
    bench.send(&[&frame(65555, 0)]);
    bench.send(&[&[0; 12]]);
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.dropped), 3);
    bench.send(&[&[0; 11]]);
    bench.send(&[&[0]]);
    let room = bench.room(64);
    let chain = [Buffer::Readable(room, 32), Buffer::Writable(GuestAddress(room.0 + 32), 32)];
    assert_eq!(bench.driver.run(TX, &chain).written, 0);
    assert_eq!(bench.driver.run(TX, &[Buffer::Writable(room, 32)]).written, 0);
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.errors), 4);
    assert_eq!(bench.driver.bytes_at(room, 64), [UNWRITTEN; 64]);
    let good = frame(60, 3);
    bench.send(&[&good]);
    assert_eq!(bench.wire.receive(), good, "and nothing before it");
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.frames), 1);
}

/// A frame of 100 bytes whose header is `flags`, `gso_type`, `hdr_len`, `gso_size`, `csum_start`, `csum_offset`.
fn with_header(flags: u8, gso: u8, fields: [u16; 4]) -> Vec<u8> {
    let mut frame = frame(100, 9);
    (frame[0], frame[1]) = (flags, gso);
    for (at, value) in fields.into_iter().enumerate() {
        frame[2 + 2 * at..4 + 2 * at].copy_from_slice(&value.to_le_bytes());
    }
    frame
}

#[test]
fn what_a_header_asks_for_reaches_the_backend_only_as_far_as_it_was_negotiated() {
    let mut bench = Bench::new(CSUM);
    let checksum = with_header(1, 0, [54, 0, 34, 16]);
    bench.send(&[&checksum]);
    assert_eq!(bench.wire.receive(), checksum);
    bench.send(&[&with_header(1, 1, [54, 50, 34, 16])]);
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.dropped), 1, "segmentation");
    bench.initialize(0);
    bench.send(&[&checksum]);
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.dropped), 2, "a checksum");
    bench.initialize(ALL);
    for gso in [1, 4, 5, 0x81, 0x84] {
        let large = with_header(1, gso, [54, 50, 34, 16]);
        bench.send(&[&large]);
        assert_eq!(bench.wire.receive(), large);
    }
    for lie in [
        with_header(1, 0, [0, 0, 34, 65]),
        with_header(1, 0, [0, 0, u16::MAX, u16::MAX]),
        with_header(0, 1, [54, 50, 34, 16]),
        with_header(1, 1, [54, 0, 34, 16]),
        with_header(1, 3, [54, 50, 34, 16]),
        with_header(1, 0x80, [54, 50, 34, 16]),
    ] {
        bench.send(&[&lie]);
    }
    assert_eq!(bench.count(|all| &all.pairs[0].transmitted.dropped), 8);
    // Only what was checked goes on.
    bench.send(&[&with_header(0xf2, 0, [u16::MAX, 7, 8, 9])]);
    assert_eq!(bench.wire.receive(), with_header(0, 0, [100, 0, 0, 0]));
}

#[test]
fn a_wire_without_room_is_waited_for_and_the_order_stays() {
    for wanted in [0, EVENT_IDX] {
        let mut bench = Bench::new(wanted);
        let frames: Vec<_> = (0..32).map(|seed| frame(200, seed)).collect();
        for sent in &frames {
            let place = bench.driver.place(sent);
            bench.driver.queues[TX].add(&[Buffer::Readable(place, 212)]);
        }
        bench.driver.kick(TX);
        // The wire holds few frames; the rest wait until it has room.
        for sent in &frames {
            assert_eq!(bench.wire.receive(), *sent);
        }
        for _ in 0..32 {
            bench.driver.wait_used(TX);
        }
        assert_eq!(bench.wire.try_receive(), None, "nothing twice");
        assert_eq!(bench.count(|all| &all.pairs[0].transmitted.frames), 32);
        assert_eq!(bench.counters.pairs[0].transmitted.latency.read().count(), 32);
    }
}

#[test]
fn a_lost_frame_is_counted_and_the_next_one_goes() {
    let mut bench = Bench::new(STATUS);
    bench.wire.set_fault(NetFault { transmit: Some(libc::EIO), ..NetFault::default() });
    bench.send(&[&frame(60, 1)]);
    bench.wire.set_fault(NetFault::default());
    bench.send(&[&frame(60, 2)]);
    assert_eq!(bench.wire.receive(), frame(60, 2));
    assert_eq!(
        (bench.count(|all| &all.pairs[0].transmitted.errors), bench.count(|all| &all.pairs[0].transmitted.frames)),
        (1, 1)
    );
    assert_eq!(bench.driver.config(6), [1, 0]);
}
