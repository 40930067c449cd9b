//! An attack on a transport's registers.

use std::sync::{Arc, Mutex};

use arch::GuestMemory;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_STATUS};

use super::input::Input;
use crate::bus::lock;
use crate::testing::{FakeDriver, Record, Recorder, memory_with_hole};
use crate::virtio::transport::MmioTransport;
use crate::virtio::{DeviceType, Identity};

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 0x40;
const FAILED: u32 = 0x80;

const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const STATUS: u64 = VIRTIO_MMIO_STATUS as u64;
const OFFERED: u64 = (1 << 3) | (1 << 40) | (1 << VIRTIO_F_VERSION_1);

/// What the specification makes of the driver's writes.
#[derive(Default)]
struct Model {
    status: u32,
    features: u64,
    select: u32,
}

impl Model {
    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            DRIVER_FEATURES_SEL => self.select = value,
            DRIVER_FEATURES if self.status & FEATURES_OK == 0 && self.select < 2 => {
                let shift = 32 * self.select;
                self.features = (self.features & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
            }
            STATUS if value == 0 => *self = Self::default(),
            STATUS => self.add_status(value),
            _ => {}
        }
    }

    /// virtio 1.3 §2.1.1 and §3.1.1.
    fn add_status(&mut self, value: u32) {
        self.status |= value & (ACKNOWLEDGE | DRIVER | FAILED);
        let agreed = self.features & !OFFERED == 0 && self.features & (1 << VIRTIO_F_VERSION_1) != 0;
        if value & FEATURES_OK != 0 && self.status & DRIVER != 0 && agreed {
            self.status |= FEATURES_OK;
        }
        if value & DRIVER_OK != 0 && self.status & FEATURES_OK != 0 {
            self.status |= DRIVER_OK;
        }
    }
}

/// Attacks the registers of a device that keeps count of what it is told.
///
/// # Panics
/// If the attack gets anywhere.
pub fn registers(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let record = Arc::<Mutex<Record>>::default();
    lock(&record).refuse_start = input.byte() >= 0xf0;
    let memory = memory_with_hole(1 << 16);
    let mut driver = FakeDriver::new(transport(&record, &memory), memory);
    let mut model = Model::default();
    let mut paused = false;
    while !input.is_empty() {
        step(&mut driver, &record, &mut model, &mut paused, &mut input);
        let status = driver.status();
        assert_eq!(status & !NEEDS_RESET, model.status, "the status is what the specification makes of the writes");
        let running = lock(&record).running;
        let ready = status & DRIVER_OK != 0;
        assert!(!running || ready, "a device runs only for a driver that is ready");
        assert!(!ready || running || paused || status & NEEDS_RESET != 0, "a device that cannot start says so");
        lock(&record).events.clear();
    }
    let transport = Arc::clone(driver.transport());
    lock(&transport).core().resume();
    lock(&record).refuse_start = false;
    driver.initialize(1 << 3, &[64, 8]);
    assert_eq!(driver.read(VIRTIO_MMIO_INTERRUPT_STATUS), 0, "a reset takes what an old driver was told");
    assert_eq!(lock(&record).queues.len(), 2, "an honest driver's device starts with its queues");
}

fn transport(record: &Arc<Mutex<Record>>, memory: &Arc<GuestMemory>) -> MmioTransport {
    let features = OFFERED & !(1 << VIRTIO_F_VERSION_1);
    let identity = Identity { device_type: DeviceType::Entropy, features, queue_sizes: vec![64, 8] };
    let device = Box::new(Recorder::new(identity, Arc::clone(record)));
    MmioTransport::new("victim", device, Arc::clone(memory)).expect("a test has descriptors")
}

fn step(
    driver: &mut FakeDriver,
    record: &Arc<Mutex<Record>>,
    model: &mut Model,
    paused: &mut bool,
    input: &mut Input<'_>,
) {
    let choice = input.byte();
    let (offset, value) = match choice % 16 {
        // As drivers do: step by step to DRIVER_OK.
        0..3 => (STATUS, input.choose(&[1, 3, 3, 11, 11, 15, 15, 0, 0x80, 0x40])),
        3 => (DRIVER_FEATURES_SEL, u32::from(input.byte() % 3)),
        4 | 5 => (DRIVER_FEATURES, input.choose(&[0, 1, 8, 0x100, 0x101, u32::MAX])),
        // A queue, about where it may lie.
        6..10 => {
            let register = input.choose(&[0x30, 0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4]);
            (register, input.choose(&[0, 1, 8, 64, 0x1000, 0x2000, 0x3000, 3, u32::MAX]))
        }
        10 => {
            let transport = Arc::clone(driver.transport());
            *paused = choice >> 4 & 1 == 0;
            match choice >> 4 & 3 {
                0 => lock(&transport).core().pause(),
                // Whatever a driver has come to goes on in another device.
                2 => {
                    lock(&transport).core().pause();
                    lock(record).events.clear();
                    driver.migrate(self::transport(record, driver.memory()));
                }
                _ => lock(&transport).core().resume(),
            }
            return;
        }
        _ => (u64::from(input.half()) % 0x1000, input.word()),
    };
    let len = usize::from(if choice < 0xe0 { 4 } else { input.choose(&[1_u8, 2, 4, 8]) });
    let mut data = [0; 8];
    data[..4].copy_from_slice(&value.to_le_bytes());
    driver.write_bytes(offset, &data[..len]);
    driver.read_bytes(offset, &mut data[..len]);
    if len == 4 {
        model.write(offset, value);
    }
}
