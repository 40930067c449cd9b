//! An attack on a disk.

use std::path::Path;
use std::sync::Arc;

use vm_memory::GuestAddress;

use super::attack::{Attack, Victim};
use super::input::Input;
use super::territory::{DATA, Territory, UPPER};
use crate::backend::block::{DiskAccess, DiskImage, DiskOptions, Fault, FaultyBackend, FileBackend};
use crate::testing::{Buffer, FakeDriver};
use crate::virtio::blk::{Blk, BlkOptions, DiskControl, DiskName, DiskQueue};
use crate::virtio::worker::IoThread;

const SECTORS: u64 = 64;
const SECTOR_BYTES: u32 = 512;
const IN: u32 = 0;
const OUT: u32 = 1;
const OK: u8 = 0;

/// Where requests lie in guest memory.
const HEADERS: u64 = DATA;
const PAYLOAD: u64 = 0x9000;
const STATUSES: u64 = 0xf000;

struct Disk {
    control: DiskControl,
    _thread: IoThread,
}

/// Attacks a disk of 64 sectors in memory, whose operations are delayed or fail as the input says.
///
/// # Panics
/// If the attack gets anywhere.
pub fn disk(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let file = tempfile::tempfile_in("/dev/shm").expect("a test has memory for a disk");
    file.set_len(SECTORS * u64::from(SECTOR_BYTES)).expect("a test has memory for a disk");
    let image = DiskImage::from_file(file, Path::new("victim"), DiskAccess::ReadWrite, DiskOptions::default());
    let image = image.expect("64 sectors are a disk");
    let fail_nth = (choice & 0x80 != 0).then_some(u64::from(choice & 15));
    let fault = Fault { fail_nth, depth: usize::from(choice >> 4 & 3), ..Fault::default() };
    let thread = IoThread::spawn("husk-io-victim").expect("a test has threads");
    let backend = Box::new(FaultyBackend::new(FileBackend::new(Arc::new(image)), fault));
    let queues = vec![DiskQueue { backend, thread: thread.handle() }];
    let blk = Blk::new(DiskName::new("victim"), queues, BlkOptions::default()).expect("there is no limiter");
    let control = blk.control();
    Attack::run(Box::new(blk), Disk { control, _thread: thread }, input);
}

impl Disk {
    fn data(input: &mut Input<'_>, writable: bool) -> Option<Buffer> {
        let choice = input.byte();
        let len = match choice % 8 {
            0 => return None,
            1 => Territory::len(input),
            2..6 => SECTOR_BYTES,
            _ => SECTOR_BYTES * u32::from(input.byte() % 8),
        };
        let address = PAYLOAD + 64 * u64::from(choice >> 3);
        let address = GuestAddress(if choice & 0x80 == 0 { address } else { address + UPPER });
        Some(if writable { Buffer::Writable(address, len) } else { Buffer::Readable(address, len) })
    }

    /// One request of an honest driver. Returns its status.
    fn request(driver: &mut FakeDriver, kind: u32, sector: u8, data: Buffer) -> u8 {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8] = sector;
        let (header, status) = (driver.place(&header), driver.place(&[0xee]));
        driver.run(0, &[Buffer::Readable(header, 16), data, Buffer::Writable(status, 1)]);
        driver.bytes_at(status, 1)[0]
    }
}

impl Victim for Disk {
    const QUEUES: u16 = 1;

    fn answers(&self, _queue: u16) -> bool {
        true
    }

    fn plausible(&mut self, _queue: u16, input: &mut Input<'_>, territory: &mut Territory) -> Vec<Buffer> {
        let slot = u64::from(input.byte());
        // Read, write, flush, name, discard, write zeroes.
        let kind = input.choose(&[IN, OUT, IN, OUT, 4, 8, 11, 13, u32::MAX]);
        let sector = match input.byte() % 4 {
            0 => input.long(),
            1 => SECTORS - 1,
            _ => u64::from(input.byte()) % SECTORS,
        };
        let header = [kind.to_le_bytes(), [0; 4]].concat().into_iter().chain(sector.to_le_bytes());
        let (header_address, status_address) = (HEADERS + 16 * slot, STATUSES + slot);
        territory.poke(header_address, &header.collect::<Vec<_>>());
        let mut chain = vec![Buffer::Readable(GuestAddress(header_address), 16)];
        let writable = matches!(kind, IN | 8);
        if matches!(kind, 11 | 13) {
            let range = [sector.to_le_bytes(), input.long().to_le_bytes()].concat();
            territory.poke(PAYLOAD + 16 * slot, &range);
            chain.push(Buffer::Readable(GuestAddress(PAYLOAD + 16 * slot), 16));
        }
        (0..input.byte() % 3).for_each(|_| chain.extend(Self::data(input, writable)));
        chain.push(Buffer::Writable(GuestAddress(status_address), 1));
        chain
    }

    /// The disk shrinks, or grows back.
    fn stir(&mut self, input: &mut Input<'_>) {
        let sectors = 1 + u64::from(input.byte()) % SECTORS;
        self.control.resize(SECTORS, sectors * u64::from(SECTOR_BYTES)).expect("the file has so many sectors");
    }

    fn relieve(&mut self) {}

    fn serve_honestly(&mut self, driver: &mut FakeDriver) {
        self.control.resize(SECTORS, SECTORS * u64::from(SECTOR_BYTES)).expect("the file has so many sectors");
        driver.initialize(u64::MAX, &[16]);
        let sent: Vec<u8> = (0..=255).chain(0..=255).collect();
        let (out, back) = (driver.place(&sent), driver.allocate(SECTOR_BYTES.into()));
        // One operation of the backend fails, and it may be this one.
        let mut retried = |kind, data| (0..2).any(|_| Self::request(driver, kind, 5, data) == OK);
        assert!(retried(OUT, Buffer::Readable(out, SECTOR_BYTES)), "an honest driver writes");
        assert!(retried(IN, Buffer::Writable(back, SECTOR_BYTES)), "an honest driver reads");
        assert_eq!(driver.bytes_at(back, sent.len()), sent, "an honest driver reads what it wrote");
    }
}
