//! An attack on a network card.

use std::sync::Arc;

use vm_memory::GuestAddress;

use super::attack::{Attack, Victim};
use super::input::Input;
use super::territory::{DATA, Territory};
use crate::backend::net::{FakeNet, NetFault, Offloads, Wire};
use crate::testing::{Buffer, FakeDriver};
use crate::virtio::net::{Net, NetOptions, NetQueue};
use crate::virtio::worker::IoThread;

const RX: u16 = 0;
const TX: u16 = 1;
const HEADER_BYTES: u16 = 12;
const FRAME_BYTES_MAX: u16 = 2000;
/// More than the socket between the card and the wire holds.
const STALE_FRAMES_MAX: usize = 1024;

struct Card {
    wire: Wire,
    _thread: IoThread,
}

/// Attacks a network card whose wire has frames for it, or fails, as the input says.
///
/// # Panics
/// If the attack gets anywhere.
pub fn net(bytes: &[u8]) {
    let (backend, wire) = FakeNet::new(Offloads::ALL);
    let thread = IoThread::spawn("husk-io-victim").expect("a test has threads");
    let queue = NetQueue { backend: Arc::new(backend), thread: thread.handle() };
    let options = NetOptions { mac: Some([2, 0, 0, 0, 0, 7]), ..NetOptions::default() };
    let net = Net::new("victim", vec![queue], options).expect("a fuzzer has descriptors");
    Attack::run(Box::new(net), Card { wire, _thread: thread }, Input::new(bytes));
}

impl Victim for Card {
    const QUEUES: u16 = 2;

    fn answers(&self, queue: u16) -> bool {
        queue == TX
    }

    fn plausible(&mut self, queue: u16, input: &mut Input<'_>, territory: &mut Territory) -> Vec<Buffer> {
        let address = DATA + 16 * u64::from(input.byte());
        if queue == RX {
            let len = u32::from(input.half() % FRAME_BYTES_MAX) + 1;
            return vec![Buffer::Writable(GuestAddress(address), len)];
        }
        // Flags, GSO type, header length, GSO size, checksum start and offset.
        territory.poke(address, &[input.byte() & 3, input.choose(&[0, 0, 1, 4, 5, 0x81])]);
        territory.poke(address + 2, &(input.long() & 0x00ff_07ff_07ff_07ff).to_le_bytes());
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
        while self.wire.try_receive().is_some() {}
    }

    fn serve_honestly(&mut self, driver: &mut FakeDriver) {
        self.wire.set_fault(NetFault::default());
        self.relieve();
        // Nothing negotiated: a frame lies in one buffer.
        driver.initialize(0, &[16, 16]);
        let frame: Vec<u8> = std::iter::repeat_n(0, HEADER_BYTES.into()).chain(1..=200).collect();
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
