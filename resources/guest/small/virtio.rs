//! A virtio-mmio driver's half: finding the windows, the registers, split queues with indirect tables and EVENT_IDX.
//!
//! Written to be easy to misuse on purpose: checks build broken chains out of the same pieces.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::boot::Boot;
use crate::platform::{Line, Platform, Resources};
use crate::{apic, memory, time};

/// virtio 1.3 §2.2: device kinds.
pub const KIND_NET: u32 = 1;
/// Disks.
pub const KIND_BLK: u32 = 2;
/// Entropy.
pub const KIND_RNG: u32 = 4;
/// Memory that is plugged.
pub const KIND_MEM: u32 = 24;

/// virtio 1.3 §6.
pub const F_INDIRECT: u64 = 1 << 28;
/// Both sides say from which ring position on they want to be told.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;

/// virtio 1.3 §2.1.
pub const STATUS_NEEDS_RESET: u32 = 0x40;
const STATUS_ACKNOWLEDGE: u32 = 1;
const STATUS_DRIVER: u32 = 2;
const STATUS_DRIVER_OK: u32 = 4;
const STATUS_FEATURES_OK: u32 = 8;

/// virtio 1.3 §2.7.5.
pub const DESC_NEXT: u16 = 1;
/// The device writes this buffer.
pub const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// virtio 1.3 §4.2.2: the device used a buffer; its configuration changed.
pub const INTERRUPT_USED: u32 = 1;
/// The configuration, or the device's need of a reset.
pub const INTERRUPT_CONFIG: u32 = 2;

/// Windows that a machine may have.
pub const WINDOWS_MAX: usize = 32;

/// virtio 1.3 §4.2.2.
mod register {
    pub(super) const MAGIC: u64 = 0x000;
    pub(super) const VERSION: u64 = 0x004;
    pub(super) const DEVICE_ID: u64 = 0x008;
    pub(super) const DEVICE_FEATURES: u64 = 0x010;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub(super) const DRIVER_FEATURES: u64 = 0x020;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub(super) const QUEUE_SEL: u64 = 0x030;
    pub(super) const QUEUE_SIZE_MAX: u64 = 0x034;
    pub(super) const QUEUE_SIZE: u64 = 0x038;
    pub(super) const QUEUE_READY: u64 = 0x044;
    pub(super) const QUEUE_NOTIFY: u64 = 0x050;
    pub(super) const INTERRUPT_STATUS: u64 = 0x060;
    pub(super) const INTERRUPT_ACK: u64 = 0x064;
    pub(super) const STATUS: u64 = 0x070;
    pub(super) const QUEUE_DESC: u64 = 0x080;
    pub(super) const QUEUE_DRIVER: u64 = 0x090;
    pub(super) const QUEUE_DEVICE: u64 = 0x0a0;
    pub(super) const CONFIG: u64 = 0x100;
}

/// Calls `each` for every virtio-mmio window that has a device: by the words `virtio_mmio.device=SIZE@ADDRESS:GSI` of the
/// command line, or by the DSDT when there is no such word.
pub fn for_each(boot: &Boot, platform: &Platform, mut each: impl FnMut(Device)) {
    let mut named = false;
    for word in boot.values("virtio_mmio.device") {
        named = true;
        if let Some(device) = parse_word(word).and_then(Device::at) {
            each(device);
        }
    }
    if !named {
        platform.devices(b"LNRO0005").filter_map(Device::at).for_each(each);
    }
}

/// The nth device of a kind.
pub fn find(boot: &Boot, platform: &Platform, kind: u32, nth: usize) -> Option<Device> {
    let (mut found, mut count) = (None, 0);
    for_each(boot, platform, |device| {
        if device.kind == kind {
            if count == nth {
                found = Some(device);
            }
            count += 1;
        }
    });
    found
}

fn parse_word(word: &str) -> Option<Resources> {
    let (size, rest) = word.split_once('@')?;
    let mut rest = rest.split(':');
    let (base, gsi) = (parse_number(rest.next()?)?, parse_number(rest.next()?)?);
    let line = Line { gsi: u32::try_from(gsi).ok()?, level: false, low: false };
    Some(Resources { base, size: parse_number(size)?, line })
}

fn parse_number(text: &str) -> Option<u64> {
    let (text, unit) = match text.strip_suffix(['K', 'k']) {
        Some(text) => (text, 1024),
        None => (text, 1),
    };
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
    .map(|number: u64| number * unit)
}

/// A window with a device in it.
#[derive(Clone, Copy)]
pub struct Device {
    /// Address of the registers.
    pub base: u64,
    /// Its interrupt.
    pub line: Line,
    /// virtio's number for what it is.
    pub kind: u32,
}

impl Device {
    fn at(resources: Resources) -> Option<Self> {
        let base = resources.base;
        let device = Self { base, line: resources.line, kind: memory::load(base + register::DEVICE_ID) };
        let fits = device.read(register::MAGIC) == u32::from_le_bytes(*b"virt") && device.read(register::VERSION) == 2;
        (fits && device.kind != 0).then_some(device)
    }

    fn read(&self, register: u64) -> u32 {
        memory::load(self.base + register)
    }

    fn write(&self, register: u64, value: u32) {
        memory::store(self.base + register, value);
    }

    fn write64(&self, register: u64, value: u64) {
        self.write(register, value as u32);
        self.write(register + 4, (value >> 32) as u32);
    }

    /// A register that reads in user space and has no effect: for timing exits.
    pub fn magic_register(&self) -> u64 {
        self.base + register::MAGIC
    }

    /// 32 bits of the device's own configuration.
    pub fn config(&self, offset: u64) -> u32 {
        self.read(register::CONFIG + offset)
    }

    /// One byte of it.
    pub fn config8(&self, offset: u64) -> u8 {
        memory::load(self.base + register::CONFIG + offset)
    }

    /// What the device offers.
    pub fn offered(&self) -> u64 {
        self.write(register::DEVICE_FEATURES_SEL, 0);
        let low = self.read(register::DEVICE_FEATURES);
        self.write(register::DEVICE_FEATURES_SEL, 1);
        u64::from(self.read(register::DEVICE_FEATURES)) << 32 | u64::from(low)
    }

    /// The status register.
    pub fn status(&self) -> u32 {
        self.read(register::STATUS)
    }

    /// Resets, and waits until the device says that it did.
    pub fn reset(&self) -> Result<(), &'static str> {
        self.write(register::STATUS, 0);
        match time::poll_until(2000, || self.status() == 0) {
            true => Ok(()),
            false => Err("status is not 0 within 2 s of a reset"),
        }
    }

    /// virtio 1.3 §3.1.1 up to FEATURES_OK; gives what of `wanted` is offered, VERSION_1 added.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, &'static str> {
        self.reset()?;
        self.write(register::STATUS, STATUS_ACKNOWLEDGE);
        self.write(register::STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
        let features = self.offered() & (wanted | F_VERSION_1);
        if features & F_VERSION_1 == 0 {
            return Err("VERSION_1 is not offered");
        }
        self.write(register::DRIVER_FEATURES_SEL, 0);
        self.write(register::DRIVER_FEATURES, features as u32);
        self.write(register::DRIVER_FEATURES_SEL, 1);
        self.write(register::DRIVER_FEATURES, (features >> 32) as u32);
        let status = STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK;
        self.write(register::STATUS, status);
        match self.status() & STATUS_FEATURES_OK {
            0 => Err("the device refuses the features that it offered"),
            _ => Ok(features),
        }
    }

    /// The last step: the device may work.
    pub fn go(&self) {
        self.write(register::STATUS, self.status() | STATUS_DRIVER_OK);
    }

    /// Sets a queue up, of at most `size_max` entries, with interrupts off.
    pub fn queue(&self, index: u32, size_max: u16, features: u64) -> Result<Queue, &'static str> {
        self.write(register::QUEUE_SEL, index);
        let offered = self.read(register::QUEUE_SIZE_MAX);
        if offered == 0 || self.read(register::QUEUE_READY) != 0 {
            return Err("the queue is not there, or is ready before it was set up");
        }
        let size = u16::try_from(offered).unwrap_or(u16::MAX).min(size_max);
        let queue = Queue::new(*self, index, size, features & F_EVENT_IDX != 0);
        self.write(register::QUEUE_SIZE, u32::from(size));
        self.write64(register::QUEUE_DESC, queue.table);
        self.write64(register::QUEUE_DRIVER, queue.avail);
        self.write64(register::QUEUE_DEVICE, queue.used);
        self.write(register::QUEUE_READY, 1);
        match self.read(register::QUEUE_READY) {
            1 => Ok(queue),
            _ => Err("the queue does not become ready"),
        }
    }

    /// Reads and clears why the device interrupts, and lets the line's next interrupt in.
    pub fn take_interrupt(&self) -> u32 {
        let reason = self.read(register::INTERRUPT_STATUS);
        if reason != 0 {
            self.write(register::INTERRUPT_ACK, reason);
        }
        apic::acknowledge();
        reason
    }

    /// Sleeps until the line's counter moves on from `seen` and the device has a reason, at most so many milliseconds;
    /// gives the reason, 0 for none. A level-triggered line may interrupt once more after its reason is gone.
    pub fn wait_for_interrupt(&self, counter: &AtomicU64, mut seen: u64, ms: u64) -> u32 {
        while apic::wait(counter, seen, ms) {
            seen = counter.load(Ordering::Acquire);
            match self.take_interrupt() {
                0 => {}
                reason => return reason,
            }
        }
        0
    }

    /// Why the device interrupts, left as it is.
    pub fn interrupt_status(&self) -> u32 {
        self.read(register::INTERRUPT_STATUS)
    }
}

/// virtio 1.3 §2.7.5: a descriptor.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Desc {
    /// Address of the buffer.
    pub address: u64,
    /// Its bytes.
    pub len: u32,
    /// `DESC_*`.
    pub flags: u16,
    /// Index of the next descriptor when `flags` has `DESC_NEXT`.
    pub next: u16,
}

/// A split queue; the caller decides which descriptors are whose.
pub struct Queue {
    device: Device,
    index: u32,
    /// Entries.
    pub size: u16,
    event_idx: bool,
    table: u64,
    avail: u64,
    used: u64,
    /// Chains made available, not all told to the device yet.
    available: u16,
    published: u16,
    seen: u16,
}

impl Queue {
    fn new(device: Device, index: u32, size: u16, event_idx: bool) -> Self {
        let entries = u64::from(size);
        let table = memory::alloc(16 * entries);
        let (avail, used) = (memory::alloc(6 + 2 * entries), memory::alloc(6 + 8 * entries));
        for (start, len) in [(table, 16 * entries), (avail, 6 + 2 * entries), (used, 6 + 8 * entries)] {
            (start..start + len).for_each(|at| memory::store(at, 0u8));
        }
        let queue = Self { device, index, size, event_idx, table, avail, used, available: 0, published: 0, seen: 0 };
        queue.interrupts_off();
        queue
    }

    /// Writes a descriptor of the table.
    pub fn set(&self, index: u16, desc: Desc) {
        memory::store(self.table + 16 * u64::from(index), desc);
    }

    /// Makes the chain at `head` available at the next `kick`.
    pub fn push(&mut self, head: u16) {
        memory::store(self.avail + 4 + 2 * u64::from(self.available % self.size), head);
        self.available = self.available.wrapping_add(1);
    }

    /// Shows the device what was pushed, and rings when the device wants to be rung; says whether it rang.
    pub fn kick(&mut self) -> bool {
        let before = self.published;
        // Pairs with the device's acquire of avail.idx: chains before index.
        fence(Ordering::Release);
        memory::store(self.avail + 2, self.available);
        self.published = self.available;
        // virtio 1.3 §2.7.13.4.1: the index before the look at what the device wants. Pairs with the device's fence
        // between its own wish and its last look at avail.idx.
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = memory::load::<u16>(self.used + 4 + 8 * u64::from(self.size));
            // virtio 1.3 §2.7.10: did the index step over the event?
            self.published.wrapping_sub(event).wrapping_sub(1) < self.published.wrapping_sub(before)
        } else {
            memory::load::<u16>(self.used) & 1 == 0
        };
        if wanted {
            self.ring();
        }
        wanted
    }

    /// Rings without a look at what the device wants.
    pub fn ring(&self) {
        self.device.write(register::QUEUE_NOTIFY, self.index);
    }

    /// The next used chain: its head and the bytes written.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.seen {
            return None;
        }
        // Pairs with the device's release of used.idx: index before element.
        fence(Ordering::Acquire);
        let element = self.used + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some((memory::load::<u32>(element) as u16, memory::load(element + 4)))
    }

    /// Whether `pop` would give one.
    pub fn has_used(&self) -> bool {
        self.used_index() != self.seen
    }

    /// How far the device is.
    pub fn used_index(&self) -> u16 {
        memory::load(self.used + 2)
    }

    /// Asks for an interrupt when `after` further chains have been used, 0 for the next one.
    pub fn interrupt_after(&self, after: u16) {
        memory::store(self.avail, 0u16);
        memory::store(self.avail + 4 + 2 * u64::from(self.size), self.seen.wrapping_add(after));
        // virtio 1.3 §2.7.7: the wish before the next look at used.idx.
        fence(Ordering::SeqCst);
    }

    /// Asks for none; with EVENT_IDX for one in half the index's range, which is as good.
    pub fn interrupts_off(&self) {
        memory::store(self.avail, u16::from(!self.event_idx));
        memory::store(self.avail + 4 + 2 * u64::from(self.size), self.seen.wrapping_sub(0x8000));
    }
}
