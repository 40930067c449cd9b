//! The cable, and the MTU of what is on it.

use super::*;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MTU;

#[test]
fn an_unplugged_cable_is_told_and_loses_frames_of_both_directions() {
    for wanted in [STATUS, ALL] {
        let mut bench = Bench::new(wanted);
        bench.post(128);
        bench.control.set_link(LinkState::Down);
        assert_eq!(bench.control.link(), LinkState::Down);
        bench.driver.wait_for("the link to go down", |driver| (driver.config(6) == [0, 0]).then_some(()));
        assert!(bench.driver.take_interrupt().is_some());
        bench.send(&[&frame(60, 1)]);
        bench.wire.send(&frame(60, 2));
        bench.wire.send(&frame(60, 3));
        bench.wait_count(|all| &all.pairs[0].received.dropped, 2);
        assert_eq!(bench.count(|all| &all.pairs[0].transmitted.dropped), 1);
        assert_eq!(bench.wire.try_receive(), None);
        assert_eq!(bench.driver.queues[RX].device_used_index(), 0);
        bench.control.set_link(LinkState::Up);
        bench.driver.wait_for("the link to go up", |driver| (driver.config(6) == [1, 0]).then_some(()));
        bench.wire.send(&frame(60, 4));
        assert_eq!(bench.driver.wait_used(RX).written, 72);
        bench.send(&[&frame(60, 5)]);
        assert_eq!(bench.wire.receive(), frame(60, 5));
    }
}

#[test]
fn frames_that_come_while_the_cable_is_out_are_never_seen_even_if_no_buffers_were_there() {
    let mut bench = Bench::new(ALL);
    bench.wire.send(&frame(60, 1));
    bench.control.set_link(LinkState::Down);
    bench.wire.send(&frame(60, 2));
    bench.wait_count(|all| &all.pairs[0].received.dropped, 2);
    bench.control.set_link(LinkState::Up);
    let room = bench.post(128);
    bench.wire.send(&frame(60, 3));
    bench.driver.wait_used(RX);
    assert_eq!(bench.driver.bytes_at(room, 72), delivered(&frame(60, 3), 1));
}

#[test]
fn a_driver_hears_of_each_change_once_and_only_if_it_wants_to() {
    let bench = Bench::new(STATUS);
    let raised = |bench: &Bench| bench.driver.transport().lock().unwrap().interrupt_line().read().unwrap_or(0);
    let before = raised(&bench);
    for (state, changes) in [(LinkState::Up, 0), (LinkState::Down, 1), (LinkState::Down, 0), (LinkState::Up, 1)] {
        bench.control.set_link(state);
        assert_eq!(raised(&bench), changes, "{state:?}");
    }
    assert_eq!(before, 0);
    let deaf = Bench::new(0);
    deaf.control.set_link(LinkState::Down);
    assert_eq!(raised(&deaf), 0);
}

#[test]
fn a_cable_stays_out_over_a_reset_and_a_pause_hides_no_change() {
    let mut bench = Bench::new(STATUS);
    bench.control.set_link(LinkState::Down);
    bench.initialize(STATUS);
    assert_eq!(bench.driver.config(6), [0, 0]);
    while bench.driver.take_interrupt().is_some() {}
    bench.pause();
    bench.control.set_link(LinkState::Up);
    assert!(bench.driver.take_interrupt().is_none());
    bench.resume();
    bench.driver.wait_for("an interrupt", |driver| driver.take_interrupt());
    assert_eq!(bench.driver.config(6), [1, 0]);
}

#[test]
fn the_mtu_is_told_and_larger_packets_are_dropped_unless_they_are_segmented_later() {
    let options = || NetOptions { mtu: Some(1000), ..NetOptions::default() };
    let mut bench = Bench::with_options(ALL, options());
    assert_eq!(bench.driver.config(10), 1000_u16.to_le_bytes());
    let tagged = |len: usize, tags: &[u16]| {
        let mut tagged = frame(len, 1);
        for (tag, kind) in tags.iter().enumerate() {
            tagged[24 + 4 * tag..26 + 4 * tag].copy_from_slice(&kind.to_be_bytes());
        }
        let ethertype = 24 + 4 * tags.len();
        tagged[ethertype..ethertype + 2].copy_from_slice(&[8, 0]);
        tagged
    };
    let mut large = tagged(5000, &[]);
    large[1] = 1;
    let cases = [
        (tagged(1014, &[]), true),
        (tagged(1015, &[]), false),
        (tagged(1018, &[0x8100]), true),
        (tagged(1019, &[0x8100]), false),
        (tagged(1022, &[0x88a8, 0x8100]), true),
        (tagged(1023, &[0x88a8, 0x8100]), false),
        (large.clone(), true),
    ];
    let mut dropped = 0;
    for (sent, fits) in cases {
        bench.wire.send(&sent);
        if fits {
            let room = bench.post(8192);
            bench.driver.wait_used(RX);
            assert_eq!(bench.driver.bytes_at(room, 60), delivered(&sent, 1)[..60]);
        } else {
            dropped += 1;
            bench.post(8192);
            bench.wait_count(|all| &all.pairs[0].received.dropped, dropped);
            bench.wire.send(&tagged(60, &[]));
            bench.driver.wait_used(RX);
        }
    }
    // A driver that does not know of it is not held to it.
    let mut bench = Bench::with_options(ALL & !(1 << VIRTIO_NET_F_MTU), options());
    bench.post(8192);
    bench.wire.send(&tagged(1015, &[]));
    assert_eq!(bench.driver.wait_used(RX).written, 1027);
}
