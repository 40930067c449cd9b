//! Frames over the first card: as many as the monitor takes, and as many as come.
//!
//! Frames are Ethernet of a type that no host listens to, to an address that is no one's, so that the host drops them as
//! cheaply as it can; from [`GSO_BYTES_MIN`] on they are one TCP segment that the host would have to cut (virtio 1.3
//! §5.1.6.2). Sizes count the Ethernet header and not virtio's.

use guest::virtio::{self, DESC_WRITE, Desc, Device, F_EVENT_IDX, KIND_NET, Queue};
use guest::{cpu, memory, time};

use super::work::{Until, Work};
use super::{Machine, begin, figures};

/// virtio 1.3 §5.1.3: checksums may be left to the device, and to the driver.
const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_HOST_TSO4: u64 = 1 << 11;
const F_MERGE: u64 = 1 << 15;
const FEATURES: u64 = F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_HOST_TSO4 | F_MERGE | F_EVENT_IDX;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const QUEUE_MAX: u16 = 256;

/// virtio 1.3 §5.1.6: before each frame.
const HEADER: u64 = 12;
const NUM_BUFFERS: u64 = 10;
const ETHERNET: u64 = 14;
const IP: u64 = 20;
const FRAME_MIN: u64 = ETHERNET + IP + 20;
/// What hosts pass on whole.
const FRAME_MAX: u64 = 65535;
/// Larger frames than any usual MTU are left to be cut.
const GSO_BYTES_MIN: u64 = 9000;
const SEGMENT: u16 = 1448;

/// A receive buffer; a larger frame takes several.
const ROOM: u64 = 4096;
/// Patience with the monitor, and with whoever sends.
const PATIENCE_MS: u64 = 10_000;

struct Card {
    device: Device,
    features: u64,
    receive: Queue,
    transmit: Queue,
}

fn open(machine: &Machine, work: &Work) -> Result<Card, &'static str> {
    let device = virtio::find(machine.boot, &machine.platform, KIND_NET, 0).ok_or("there is no network card")?;
    if !(FRAME_MIN..=FRAME_MAX).contains(&work.size) {
        return Err("a size that no frame has");
    }
    let features = device.negotiate(FEATURES)?;
    let receive = device.queue(RECEIVE, QUEUE_MAX, features)?;
    let transmit = device.queue(TRANSMIT, QUEUE_MAX, features)?;
    device.go();
    Ok(Card { device, features, receive, transmit })
}

/// Keeps the transmit queue full; each entry is the same frame.
pub(crate) fn transmit(machine: &Machine, work: &Work) -> Result<(), &'static str> {
    let mut card = open(machine, work)?;
    if work.size >= GSO_BYTES_MIN && card.features & F_HOST_TSO4 == 0 {
        return Err("the card cuts no frames");
    }
    let frame = build_frame(work.size);
    for index in 0..card.transmit.size {
        card.transmit.set(index, Desc { address: frame, len: (HEADER + work.size) as u32, flags: 0, next: 0 });
    }
    let mut sent = 0;
    if let Some(warm_up) = work.warm_up() {
        send(&mut card, warm_up.until, &mut sent)?;
    }
    begin(work);
    let before = sent;
    let start = cpu::tsc();
    let doorbells = send(&mut card, work.until, &mut sent)?;
    let (ticks, frames) = (cpu::tsc() - start, sent - before);
    card.device.reset()?;
    let rate = time::rate(frames, ticks);
    figures!(work, "requests={frames} ns={} rate={rate} doorbells={doorbells} failed=0 wrong=0", time::ns(ticks))
}

/// Gives how often it rang. `sent` numbers frames, and with them descriptors, over several calls.
fn send(card: &mut Card, until: Until, sent: &mut u64) -> Result<u64, &'static str> {
    let size = u64::from(card.transmit.size);
    let start = cpu::tsc();
    let (first, mut now, mut moved, mut in_flight, mut doorbells) = (*sent, start, start, 0, 0);
    // All are back in the end, so the next call may count on its descriptors.
    while in_flight > 0 || until.goes_on(*sent - first, start, now) {
        let before = *sent;
        while in_flight < size && until.goes_on(*sent - first, start, now) {
            // The device may use them in any order, but they are all the same.
            card.transmit.push((*sent % size) as u16);
            *sent += 1;
            in_flight += 1;
        }
        if *sent != before {
            doorbells += u64::from(card.transmit.kick());
        }
        now = cpu::tsc();
        let still = in_flight;
        while card.transmit.pop().is_some() {
            in_flight -= 1;
        }
        if in_flight != still {
            moved = now;
        } else if now - moved > time::ticks(PATIENCE_MS * 1000) {
            return Err("a frame does not leave within 10 s");
        } else {
            cpu::pause();
        }
    }
    Ok(doorbells)
}

/// Counts frames of the run's size, from the first on; the host sends them when it has seen that the run begins.
pub(crate) fn receive(machine: &Machine, work: &Work) -> Result<(), &'static str> {
    let mut card = open(machine, work)?;
    if card.features & F_MERGE == 0 {
        return Err("the card merges no buffers");
    }
    let rooms = memory::alloc(ROOM * u64::from(card.receive.size));
    let room = |index: u16| rooms + ROOM * u64::from(index);
    for index in 0..card.receive.size {
        card.receive.set(index, Desc { address: room(index), len: ROOM as u32, flags: DESC_WRITE, next: 0 });
        card.receive.push(index);
    }
    card.receive.kick();
    begin(work);
    let (mut frames, mut others, mut doorbells) = (0, 0, 0);
    let (mut start, mut now, mut moved) = (0, cpu::tsc(), cpu::tsc());
    // What is left of a frame: buffers, and its bytes so far.
    let (mut buffers_left, mut bytes) = (0, 0);
    while start == 0 || work.until.goes_on(frames, start, now) {
        let mut came = false;
        while let Some((index, len)) = card.receive.pop() {
            came = true;
            if buffers_left == 0 {
                (buffers_left, bytes) = (memory::load::<u16>(room(index) + NUM_BUFFERS), 0);
            }
            bytes += u64::from(len);
            buffers_left -= 1;
            card.receive.push(index);
            if buffers_left == 0 && bytes == HEADER + work.size {
                start = if start == 0 { cpu::tsc() } else { start };
                frames += 1;
            } else if buffers_left == 0 {
                others += 1;
            }
        }
        now = cpu::tsc();
        if came {
            moved = now;
            doorbells += u64::from(card.receive.kick());
        } else if now - moved > time::ticks(PATIENCE_MS * 1000) {
            return Err("no frame within 10 s");
        } else {
            cpu::pause();
        }
    }
    let ticks = now - start;
    card.device.reset()?;
    let rate = time::rate(frames, ticks);
    let ns = time::ns(ticks);
    figures!(work, "requests={frames} ns={ns} rate={rate} doorbells={doorbells} others={others} failed=0 wrong=0")
}

/// virtio's header and a frame of so many bytes; gives where.
fn build_frame(size: u64) -> u64 {
    let at = memory::alloc(HEADER + size);
    (at..at + HEADER + size).for_each(|byte| memory::store(byte, 0u8));
    let put =
        |offset: u64, bytes: &[u8]| (offset..).zip(bytes).for_each(|(place, byte)| memory::store(at + place, *byte));
    let frame = HEADER;
    put(frame, &[2, 0, 0, 0, 0, 0x99]);
    put(frame + 6, &[2, 0, 0, 0, 0, 7]);
    if size < GSO_BYTES_MIN {
        // IEEE 802: local experiments.
        put(frame + 12, &[0x88, 0xb5]);
        return at;
    }
    const NEEDS_CSUM: u8 = 1;
    const GSO_TCPV4: u8 = 1;
    put(0, &[NEEDS_CSUM, GSO_TCPV4]);
    put(2, &(FRAME_MIN as u16).to_le_bytes());
    put(4, &SEGMENT.to_le_bytes());
    put(6, &((ETHERNET + IP) as u16).to_le_bytes());
    put(8, &16u16.to_le_bytes());
    put(frame + 12, &[0x08, 0x00, 0x45, 0]);
    put(frame + ETHERNET + 2, &((size - ETHERNET) as u16).to_be_bytes());
    put(frame + ETHERNET + 8, &[64, 6]);
    put(frame + ETHERNET + 12, &[192, 0, 2, 2, 192, 0, 2, 99]);
    // TCP: five words of header, ACK.
    put(frame + ETHERNET + IP + 12, &[0x50, 0x10]);
    at
}
