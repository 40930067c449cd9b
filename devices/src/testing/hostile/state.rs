//! A saved state that nobody saved.

use std::io;
use std::path::Path;
use std::sync::Arc;

use arch::GuestMemory;
use vm_memory::GuestAddress;

use crate::backend::block::{DiskAccess, DiskImage, DiskOptions, FileBackend};
use crate::backend::memory::Reclaim;
use crate::backend::net::{FakeNet, Offloads, Wire};
use crate::bus::lock;
use crate::state::SaveState;
use crate::testing::{Buffer, FakeDriver, memory_with_hole};
use crate::virtio::balloon::{Balloon, BalloonOptions};
use crate::virtio::blk::{Blk, BlkOptions, DiskName, DiskQueue};
use crate::virtio::mem::{BlockStore, MemoryArea, MemoryDevice};
use crate::virtio::net::{LinkState, Net, NetControl, NetOptions, NetQueue};
use crate::virtio::rng::{Rng, RngState};
use crate::virtio::transport::{MmioState, MmioTransport};
use crate::virtio::worker::IoThread;
use crate::virtio::{DeviceState, DeviceType, VirtioDevice};

const KINDS: [DeviceType; 5] =
    [DeviceType::Network, DeviceType::Block, DeviceType::Entropy, DeviceType::Balloon, DeviceType::Memory];
const REGION_BYTES: usize = 1 << 20;
const SECTORS: u64 = 64;
/// Entries of the driver's queues.
const QUEUE_SIZE: u16 = 16;
const FRAME: [u8; 72] = [0; 72];

/// What a memory device has for its driver.
const AREA: MemoryArea =
    MemoryArea { start: GuestAddress(1 << 33), bytes: 100 << 21, block_bytes: 1 << 21, node: Some(1) };

/// A host that has all the memory that there is.
struct Plenty;

impl BlockStore for Plenty {
    fn plug(&self, _start: GuestAddress, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn unplug(&self, _start: GuestAddress, _bytes: u64) -> io::Result<()> {
        Ok(())
    }
}

/// A device of some kind, with what it needs.
struct Heir {
    transport: MmioTransport,
    memory: Arc<GuestMemory>,
    /// The first of a network card, and what plugs it in.
    wire: Option<(Wire, NetControl)>,
    _thread: IoThread,
}

impl Heir {
    fn new(kind: DeviceType) -> Self {
        let thread = IoThread::spawn("husk-io-heir").expect("a test has threads");
        let memory = memory_with_hole(REGION_BYTES);
        let mut wire = None;
        let device: Box<dyn VirtioDevice> = match kind {
            DeviceType::Network => {
                let [first, second] = [(); 2].map(|()| FakeNet::new(Offloads::ALL));
                let queue = |backend| NetQueue { backend: Arc::new(backend), thread: thread.handle() };
                let queues = vec![queue(first.0), queue(second.0)];
                let net = Net::new("heir", queues, NetOptions::default()).expect("a test has descriptors");
                wire = Some((first.1, net.control()));
                Box::new(net)
            }
            DeviceType::Block => {
                let file = tempfile::tempfile_in("/dev/shm").expect("a test has memory for a disk");
                file.set_len(SECTORS * 512).expect("a test has memory for a disk");
                let image =
                    DiskImage::from_file(file, Path::new("heir"), DiskAccess::ReadWrite, DiskOptions::default());
                let backend = Box::new(FileBackend::new(Arc::new(image.expect("64 sectors are a disk"))));
                let queues = vec![DiskQueue { backend, thread: thread.handle() }];
                Box::new(Blk::new(DiskName::new("heir"), queues, BlkOptions::default()).expect("there is no limiter"))
            }
            DeviceType::Entropy => Box::new(Rng::new("heir", None, thread.handle())),
            DeviceType::Balloon => {
                let options = BalloonOptions { hinting: true, reporting: true, ..BalloonOptions::default() };
                let reclaim = Reclaim::new(Arc::clone(&memory), None);
                let balloon = Balloon::new("heir", &options, reclaim, Arc::new(|| {}), thread.handle());
                Box::new(balloon.expect("a test has descriptors"))
            }
            DeviceType::Memory => {
                let (store, requested) = (Arc::new(Plenty), AREA.bytes / 2);
                let memory = MemoryDevice::new("heir", AREA, requested, store, Arc::new(|| {}), thread.handle());
                Box::new(memory.expect("a half is less than all"))
            }
        };
        let transport = MmioTransport::new("heir", device, Arc::clone(&memory)).expect("a test has descriptors");
        Self { transport, memory, wire, _thread: thread }
    }

    /// How many queues an honest driver sets up.
    fn queues(kind: DeviceType) -> usize {
        match kind {
            DeviceType::Network => 5,
            DeviceType::Block | DeviceType::Entropy | DeviceType::Memory => 1,
            DeviceType::Balloon => 4,
        }
    }

    /// What an honest driver finds after a reset.
    fn serve_honestly(driver: &mut FakeDriver, wire: Option<&(Wire, NetControl)>, kind: DeviceType) {
        driver.rewind_heap();
        driver.initialize(u64::MAX, &vec![QUEUE_SIZE; Self::queues(kind)]);
        let place = driver.place(&FRAME);
        match kind {
            DeviceType::Network => {
                let (wire, control) = wire.expect("a network card has one");
                // Whether it is plugged in is the host's to say.
                control.set_link(LinkState::Up);
                driver.run(1, &[Buffer::Readable(place, 72)]);
                assert_eq!(wire.receive(), FRAME);
            }
            DeviceType::Block => {
                let (data, status) = (driver.allocate(512), driver.place(&[0xee]));
                driver.run(0, &[Buffer::Readable(place, 16), Buffer::Writable(data, 512), Buffer::Writable(status, 1)]);
                assert_eq!(driver.bytes_at(status, 1), [0]);
            }
            DeviceType::Entropy => assert_eq!(driver.run(0, &[Buffer::Writable(place, 64)]).written, 64),
            DeviceType::Balloon => {
                // The last page of the first region.
                let number = driver.place(&255_u32.to_le_bytes());
                driver.run(0, &[Buffer::Readable(number, 4)]);
                assert_eq!(driver.bytes_at(GuestAddress(255 << 12), 4096), [0; 4096]);
            }
            DeviceType::Memory => {
                // Whatever is plugged goes, and the last block comes if the host asks for any.
                let requested = u64::from_le_bytes(driver.config(48)) > 0;
                let mut plug = [0; 24];
                plug[8..16].copy_from_slice(&(AREA.start.0 + AREA.bytes - AREA.block_bytes).to_le_bytes());
                plug[16] = 1;
                let mut unplug_all = [0; 24];
                unplug_all[0] = 2;
                for (request, answer) in [(unplug_all, 0), (plug, u8::from(!requested))] {
                    let (asked, answered) = (driver.place(&request), driver.place(&[0xff; 10]));
                    driver.run(0, &[Buffer::Readable(asked, 24), Buffer::Writable(answered, 10)]);
                    assert_eq!(driver.bytes_at(answered, 1), [answer]);
                }
            }
        }
    }
}

/// Gives `bytes`, as a saved state, to a device of the kind that they say.
///
/// # Panics
/// If a state that was taken over is not what is saved, or keeps a driver from using the device after a reset.
pub fn state(bytes: &[u8]) {
    let Ok((state, _rest)) = postcard::take_from_bytes::<MmioState>(bytes) else { return };
    let kind = state.core.device.device_type();
    let mut heir = Heir::new(kind);
    if heir.transport.restore(state.clone()).is_err() {
        return;
    }
    let saved = heir.transport.save();
    let state = unlimited(state);
    assert!(saved == state, "what was taken over is what is saved: {saved:?}");
    let Heir { mut transport, memory, wire, _thread } = heir;
    transport.core().resume();
    let mut driver = FakeDriver::new(transport, memory);
    (0..Heir::queues(kind)).for_each(|queue| driver.kick(queue));
    lock(driver.transport()).core().pause();
    let again = lock(driver.transport()).save();
    let mut next = Heir::new(kind);
    next.transport.restore(again).expect("what a device has come to from there is a state as well");
    lock(driver.transport()).core().resume();
    Heir::serve_honestly(&mut driver, wire.as_ref(), kind);
}

/// None of the heirs is limited.
fn unlimited(mut state: MmioState) -> MmioState {
    match &mut state.core.device {
        DeviceState::Block(disk) => disk.limiter = None,
        DeviceState::Network(net) => net.limiter = None,
        DeviceState::Entropy(rng) => *rng = RngState::default(),
        DeviceState::Balloon(_) | DeviceState::Memory(_) => {}
    }
    state
}

/// States of each kind of device: without a driver, and with one that has used it.
///
/// # Panics
/// If the host has not what a test needs.
pub fn saved_states() -> Vec<Vec<u8>> {
    let states = KINDS.into_iter().flat_map(|kind| {
        let Heir { transport, memory, wire, _thread } = Heir::new(kind);
        let mut driver = FakeDriver::new(transport, memory);
        let new = lock(driver.transport()).save();
        Heir::serve_honestly(&mut driver, wire.as_ref(), kind);
        lock(driver.transport()).core().pause();
        let used = lock(driver.transport()).save();
        [new, used]
    });
    states.map(|state| postcard::to_allocvec(&state).expect("a state has no end")).collect()
}
