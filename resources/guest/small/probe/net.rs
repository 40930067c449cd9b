//! A network card: its neighbour found and pinged, everything sent back, figures.
//!
//! `net.ip=` is the guest's address (192.0.2.2), `net.peer=` its neighbour's (192.0.2.1), `net.n=` which card.

use core::sync::atomic::Ordering;

use guest::net::{F_MERGE, Net};
use guest::virtio::{self, Device, F_EVENT_IDX, KIND_NET};
use guest::{println, time};

use super::disk::{listen, listen_no_more};
use super::station::{Came, DATA_MAX, Ip, Shown, Station, parse_ip};
use super::{Failure, Machine, passed};

const PINGS: u16 = 100;

fn device(machine: &Machine) -> Result<Device, Failure> {
    let nth = machine.boot.values("net.n").last().and_then(|text| text.parse().ok()).unwrap_or(0);
    virtio::find(machine.boot, &machine.platform, KIND_NET, nth).ok_or("there is no virtio-net device".into())
}

/// The card with these features, and its neighbour found.
fn station(machine: &Machine, features: u64) -> Result<Station, Failure> {
    let address = |key, default: Ip| match machine.boot.values(key).last() {
        None => Ok(default),
        Some(text) => parse_ip(text).ok_or("an address that is none"),
    };
    let (ip, peer) = (address("net.ip", [192, 0, 2, 2])?, address("net.peer", [192, 0, 2, 1])?);
    let mut station = Station::new(Net::open(device(machine)?, features)?, ip, peer);
    station.resolve()?;
    Ok(station)
}

/// Data of a ping, different for each.
fn pattern(number: u16) -> [u8; DATA_MAX] {
    core::array::from_fn(|at| (at as u16).wrapping_mul(7).wrapping_add(number.wrapping_mul(31)) as u8)
}

fn expect_reply(station: &mut Station, number: u16, data: &[u8], ms: u64) -> Result<(), Failure> {
    let deadline = time::Deadline::in_ms(ms);
    while !deadline.passed() {
        match station.step() {
            Came::Reply(got, got_data) if got == number => {
                return if got_data == data { Ok(()) } else { Err("an echo is not what was sent".into()) };
            }
            _ => {}
        }
    }
    Err(Failure::Numbers("no echo, of number and length", number.into(), data.len() as u64))
}

/// Pings of all sizes, answered in order; the last ones waited for by interrupt.
pub(crate) fn net(machine: &Machine) -> Result<(), Failure> {
    const BY_INTERRUPT: u16 = 10;
    let mut station = station(machine, F_EVENT_IDX | F_MERGE)?;
    let up = station.net.is_up();
    for number in 0..PINGS {
        let data = &pattern(number)[..DATA_MAX * usize::from(number) / usize::from(PINGS - 1)];
        station.ping(number, data);
        expect_reply(&mut station, number, data, 2000)?;
    }
    let device = station.net.device;
    let counter = listen(machine, device)?;
    for number in 0..BY_INTERRUPT {
        let seen = counter.load(Ordering::Acquire);
        station.net.receive_queue.interrupt_after(0);
        // What came before the wish interrupts nobody.
        while station.net.receive_queue.has_used() {
            station.step();
            station.net.receive_queue.interrupt_after(0);
        }
        station.ping(number, &[]);
        if device.wait_for_interrupt(counter, seen, 2000) & virtio::INTERRUPT_USED == 0 {
            return Err("no interrupt within 2 s of a ping".into());
        }
        expect_reply(&mut station, number, &[], 2000)?;
    }
    listen_no_more(machine, device);
    let (mac, peer, features) = (Shown(station.mac), Shown(station.peer_mac), station.net.features);
    let (up, mtu) = (u8::from(up), station.net.mtu().unwrap_or(0));
    device.reset()?;
    passed!("net", "pings={PINGS} mac={mac} peer={peer} features={features:#x} up={up} mtu={mtu}")
}

/// Sends each datagram to port 4242 back until one says `end`.
pub(crate) fn netecho(machine: &Machine) -> Result<(), Failure> {
    let mut station = station(machine, F_EVENT_IDX | F_MERGE)?;
    println!("NETECHO WAIT");
    let (mut frames, mut bytes) = (0u64, 0u64);
    loop {
        if let Came::Datagram(frame, data) = station.step() {
            station.send_back(frame);
            frames += 1;
            bytes += (frame.len() - data) as u64;
            if frame[data..] == *b"end" {
                break;
            }
        }
    }
    if !time::poll_until(2000, || station.net.reap() == 0) {
        return Err("frames that do not leave".into());
    }
    station.net.device.reset()?;
    passed!("netecho", "frames={frames} bytes={bytes} answered={}", station.answered)
}

/// Frames a second to the neighbour, each size for about 200 ms, and echoes one after the other.
pub(crate) fn netbench(machine: &Machine) -> Result<(), Failure> {
    const BATCH: u64 = 32;
    let mut station = station(machine, F_EVENT_IDX | F_MERGE)?;
    let mut rate = |len: usize| {
        let mut room = Station::frame();
        let frame = station.datagram(&mut room, len - 42);
        let (start, mut sent) = (guest::cpu::tsc(), 0);
        while guest::cpu::tsc() - start < time::ticks(200_000) {
            for _ in 0..BATCH {
                station.net.push(frame);
            }
            station.net.flush();
            sent += BATCH;
        }
        while station.net.reap() > 0 {}
        time::rate(sent, guest::cpu::tsc() - start)
    };
    let (tx64, tx1500) = (rate(64), rate(1500));
    let (start, mut echoes) = (guest::cpu::tsc(), 0u16);
    while guest::cpu::tsc() - start < time::ticks(200_000) {
        station.ping(echoes, &[]);
        expect_reply(&mut station, echoes, &[], 2000)?;
        echoes += 1;
    }
    let echo = time::rate(echoes.into(), guest::cpu::tsc() - start);
    station.net.device.reset()?;
    passed!("netbench", "tx64={tx64} tx1500={tx1500} echo={echo}")
}

/// The card is reset in the middle of traffic again and again, and works each time.
pub(crate) fn netreset(machine: &Machine) -> Result<(), Failure> {
    const ROUNDS: u16 = 20;
    for number in 0..ROUNDS {
        let features = if number % 2 == 0 { F_EVENT_IDX | F_MERGE } else { 0 };
        let mut station = station(machine, features)?;
        let data = &pattern(number)[..1000];
        station.ping(number, data);
        expect_reply(&mut station, number, data, 2000)?;
        (0..64).for_each(|more| station.ping(1000 + more, data));
        station.net.device.reset()?;
    }
    passed!("netreset", "rounds={ROUNDS}")
}
