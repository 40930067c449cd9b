//! An attack on a network card of two pairs of queues, with a source filter or without.

use std::net::Ipv4Addr;
use std::sync::Arc;

use vm_memory::GuestAddress;

use super::attack::{Attack, Victim};
use super::input::Input;
use super::territory::{DATA, Territory};
use crate::backend::net::{FakeNet, NetFault, Offloads, Wire};
use crate::testing::{Buffer, FakeDriver};
use crate::virtio::net::{Net, NetOptions, NetQueue, SourceFilter};
use crate::virtio::worker::IoThread;

const RX: u16 = 0;
const TX: u16 = 1;
/// The second pair's.
const RX_MORE: u16 = 2;
/// To a driver that knows several pairs.
const CONTROL: u16 = 4;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const HEADER_BYTES: u16 = 12;
const FRAME_BYTES_MAX: u16 = 2000;
/// More than the socket between the card and the wire holds.
const STALE_FRAMES_MAX: usize = 1024;

struct Card {
    wire: Wire,
    more: Wire,
    filtered: bool,
    _threads: [IoThread; 2],
}

/// Attacks a network card whose wire has frames for it, or fails, as the input says.
///
/// # Panics
/// If the attack gets anywhere.
pub fn net(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let filter = match input.byte() % 3 {
        0 => None,
        1 => Some(SourceFilter::mac(MAC)),
        _ => Some(SourceFilter::mac_and_ip(MAC, vec![Ipv4Addr::new(192, 0, 2, 2)], Vec::new())),
    };
    let [(first, wire), (second, more)] = [(); 2].map(|()| FakeNet::new(Offloads::ALL));
    let threads = [(); 2].map(|()| IoThread::spawn("husk-io-victim").expect("a test has threads"));
    let queues = [first, second].into_iter().zip(&threads);
    let queues = queues.map(|(backend, thread)| NetQueue { backend: Arc::new(backend), thread: thread.handle() });
    let filtered = filter.is_some();
    let options = NetOptions { mac: Some(MAC), filter: filter.map(Arc::new), ..NetOptions::default() };
    let net = Net::new("victim", queues.collect(), options).expect("a fuzzer has descriptors");
    Attack::run(Box::new(net), Card { wire, more, filtered, _threads: threads }, input);
}

/// A header, and an ARP request of the card's, filled up: what every filter lets go.
fn honest() -> Vec<u8> {
    let who_has = [0, 1, 8, 0, 6, 4, 0, 1];
    let parts: [&[u8]; 8] =
        [&[0; 12], &[0xff; 6], &MAC, &[8, 6], &who_has, &MAC, &[192, 0, 2, 2], &[0, 0, 0, 0, 0, 0, 192, 0, 2, 1]];
    [&parts.concat()[..], &[9; 150]].concat()
}

impl Victim for Card {
    const QUEUES: u16 = 5;

    fn answers(&self, queue: u16) -> bool {
        queue == TX
    }

    fn plausible(&mut self, queue: u16, input: &mut Input<'_>, territory: &mut Territory) -> Vec<Buffer> {
        let address = DATA + 16 * u64::from(input.byte());
        if queue == CONTROL {
            // Mostly a number of pairs; at first one that there is.
            territory.poke(address, &[input.choose(&[4, 4, 4, 0]), 0, input.byte() % 4, 0]);
            let len = input.choose(&[4_u16, 4, 4, 2, 3, 9]).into();
            return vec![Buffer::Readable(GuestAddress(address), len), Buffer::Writable(GuestAddress(address + 16), 1)];
        }
        if queue == RX || queue == RX_MORE {
            let len = u32::from(input.half() % FRAME_BYTES_MAX) + 1;
            return vec![Buffer::Writable(GuestAddress(address), len)];
        }
        // Flags, GSO type, header length, GSO size, checksum start and offset.
        territory.poke(address, &[input.byte() & 3, input.choose(&[0, 0, 1, 4, 5, 0x81])]);
        territory.poke(address + 2, &(input.long() & 0x00ff_07ff_07ff_07ff).to_le_bytes());
        if input.byte() < 128 {
            territory.poke(address + 12, &honest()[12..54]);
        }
        let len = u32::from(input.half() % FRAME_BYTES_MAX) + 1;
        let header = u32::from(HEADER_BYTES);
        let payload = GuestAddress(address + u64::from(HEADER_BYTES));
        match input.byte() % 4 {
            0 => vec![Buffer::Readable(GuestAddress(address), len)],
            1 => vec![Buffer::Readable(GuestAddress(address), 5), Buffer::Readable(GuestAddress(address + 5), len)],
            _ => vec![Buffer::Readable(GuestAddress(address), header), Buffer::Readable(payload, len)],
        }
    }

    /// A frame arrives, or the wire begins or ceases to fail.
    fn stir(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            0..16 => self.wire.set_fault(NetFault { receive: Some(libc::EIO), ..NetFault::default() }),
            16..32 => self.wire.set_fault(NetFault { transmit: Some(libc::EIO), ..NetFault::default() }),
            32..48 => self.wire.set_fault(NetFault::default()),
            byte => {
                let frame = vec![byte; usize::from(HEADER_BYTES + input.half() % FRAME_BYTES_MAX)];
                // Where nobody takes it, it is lost on its way here.
                let _taken = self.wire.try_send(&frame);
            }
        }
    }

    fn relieve(&mut self) {
        for wire in [&self.wire, &self.more] {
            while let Some(frame) = wire.try_receive() {
                assert!(!self.filtered || frame[18..24] == MAC, "a filtered card sends in its own name");
            }
        }
    }

    fn serve_honestly(&mut self, driver: &mut FakeDriver) {
        self.wire.set_fault(NetFault::default());
        self.relieve();
        // Nothing negotiated: a frame lies in one buffer.
        driver.initialize(0, &[16, 16]);
        let frame = honest();
        let len = u32::try_from(frame.len()).expect("a short frame");
        let out = driver.place(&frame);
        driver.run(TX.into(), &[Buffer::Readable(out, len)]);
        assert_eq!(self.wire.receive(), frame, "an honest driver sends");
        let room = driver.allocate((HEADER_BYTES + FRAME_BYTES_MAX).into());
        // Frames that came before wait in front of ours, which finds no room while there are too many.
        let mut sent = self.wire.try_send(&frame);
        let found = (0..STALE_FRAMES_MAX).any(|_| {
            let buffer = Buffer::Writable(room, (HEADER_BYTES + FRAME_BYTES_MAX).into());
            let written = driver.run(RX.into(), &[buffer]).written;
            let ours = sent && driver.bytes_at(room, frame.len())[12..] == frame[12..];
            sent = sent || self.wire.try_send(&frame);
            ours && written == len
        });
        assert!(found, "an honest driver receives");
    }
}
