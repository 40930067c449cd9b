//! virtio over MMIO, version 2 (virtio 1.3 §4.2.2): decodes registers, and nothing else.

use std::sync::Arc;

use arch::GuestMemory;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::core::{TransportCore, TransportError, TransportState};
use crate::bus::BusDevice;
use crate::state::SaveState;
use crate::virtio::queue::QueueConfig;
use crate::virtio::{DeviceState, RestoreError, VirtioDevice};

const MAGIC_VALUE: u64 = 0x00;
const VERSION: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_SIZE_MAX: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC_LOW: u64 = 0x80;
const QUEUE_DESC_HIGH: u64 = 0x84;
const QUEUE_DRIVER_LOW: u64 = 0x90;
const QUEUE_DRIVER_HIGH: u64 = 0x94;
const QUEUE_DEVICE_LOW: u64 = 0xa0;
const QUEUE_DEVICE_HIGH: u64 = 0xa4;
const SHM_LEN_LOW: u64 = 0xb0;
const SHM_BASE_HIGH: u64 = 0xbc;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION_2: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"husk");
/// What the length and base of a shared memory region that does not exist read as (virtio 1.3 §4.2.2).
const NO_SHM: u32 = u32::MAX;

/// A virtio device in an MMIO window.
pub struct MmioTransport {
    core: TransportCore,
    device_features_sel: u32,
    driver_features_sel: u32,
}

/// What an MMIO transport saves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    pub(crate) core: TransportState,
    pub(crate) device_features_sel: u32,
    pub(crate) driver_features_sel: u32,
}

impl MmioState {
    /// What the device itself had come to.
    pub fn device(&self) -> &DeviceState {
        &self.core.device
    }
}

impl MmioTransport {
    /// Bytes of the window.
    pub const WINDOW_BYTES: u64 = 0x1000;
    /// Where in the window a driver notifies: a 32-bit write of the queue's index, to be bound to its doorbell.
    pub const NOTIFY_OFFSET: u64 = QUEUE_NOTIFY;

    /// A transport for `device`, whose driver will live in `memory`. `name` is the device's, for the log.
    ///
    /// # Errors
    /// [`TransportError::EventFd`].
    pub fn new(name: &str, device: Box<dyn VirtioDevice>, memory: Arc<GuestMemory>) -> Result<Self, TransportError> {
        let core = TransportCore::new(name, device, memory)?;
        Ok(Self { core, device_features_sel: 0, driver_features_sel: 0 })
    }

    /// One eventfd for each queue, by index, to be signalled by writes to [`Self::NOTIFY_OFFSET`]. A write that
    /// comes to user space all the same signals it too.
    pub fn doorbells(&self) -> &[EventFd] {
        self.core.doorbells()
    }

    /// The interrupt line, to be bound to the device's GSI.
    pub fn interrupt_line(&self) -> &EventFd {
        self.core.interrupt().line()
    }

    /// The meaning behind the registers.
    pub fn core(&mut self) -> &mut TransportCore {
        &mut self.core
    }

    fn read_register(&self, offset: u64) -> u32 {
        let queue = self.core.queue();
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION => VERSION_2,
            DEVICE_ID => self.core.identity().device_type.id(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => half(self.core.offered_features(), self.device_features_sel),
            // A queue that does not exist has room for nothing.
            QUEUE_SIZE_MAX => queue.map_or(0, |queue| queue.size_max.into()),
            QUEUE_READY => queue.map_or(0, |queue| queue.ready.into()),
            INTERRUPT_STATUS => self.core.interrupt().status(),
            STATUS => self.core.status(),
            SHM_LEN_LOW..=SHM_BASE_HIGH => NO_SHM,
            CONFIG_GENERATION => self.core.config_generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURES_SEL => self.device_features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            DRIVER_FEATURES => self.core.write_driver_features(self.driver_features_sel, value),
            QUEUE_SEL => self.core.select_queue(value),
            QUEUE_READY => self.core.configure_queue(|queue| queue.ready = value & 1 != 0),
            QUEUE_NOTIFY => self.core.notify(value),
            INTERRUPT_ACK => self.core.interrupt().acknowledge(value),
            STATUS => self.write_status(value),
            QUEUE_SIZE | QUEUE_DESC_LOW..=QUEUE_DEVICE_HIGH => {
                // virtio 1.3 §4.2.2.2: a driver does not change a queue that it called ready.
                self.core.configure_queue(|queue| {
                    if !queue.ready {
                        describe(queue, offset, value);
                    }
                });
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        self.core.write_status(value);
        if value == 0 {
            (self.device_features_sel, self.driver_features_sel) = (0, 0);
        }
    }
}

/// Takes over what the driver says of its queue, to be checked when it is ready.
fn describe(queue: &mut QueueConfig, offset: u64, value: u32) {
    match offset {
        // A size that does not fit is kept as one that is refused.
        QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(u16::MAX),
        QUEUE_DESC_LOW => set_low(&mut queue.descriptor_table, value),
        QUEUE_DESC_HIGH => set_high(&mut queue.descriptor_table, value),
        QUEUE_DRIVER_LOW => set_low(&mut queue.avail_ring, value),
        QUEUE_DRIVER_HIGH => set_high(&mut queue.avail_ring, value),
        QUEUE_DEVICE_LOW => set_low(&mut queue.used_ring, value),
        QUEUE_DEVICE_HIGH => set_high(&mut queue.used_ring, value),
        _ => {}
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = (*address & !0xffff_ffff) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = (*address & 0xffff_ffff) | (u64::from(value) << 32);
}

fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

impl SaveState for MmioTransport {
    type State = MmioState;
    type Error = RestoreError;

    fn save(&self) -> MmioState {
        let Self { core, device_features_sel, driver_features_sel } = self;
        MmioState {
            core: core.save(),
            device_features_sel: *device_features_sel,
            driver_features_sel: *driver_features_sel,
        }
    }

    fn restore(&mut self, state: MmioState) -> Result<(), RestoreError> {
        let MmioState { core, device_features_sel, driver_features_sel } = state;
        self.core.restore(core)?;
        (self.device_features_sel, self.driver_features_sel) = (device_features_sel, driver_features_sel);
        Ok(())
    }
}

impl BusDevice for MmioTransport {
    /// Registers are read by aligned 32-bit accesses (virtio 1.3 §4.2.2.2), the configuration space by any.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.read_config(offset, data);
        } else if let (true, Ok(data)) = (offset.is_multiple_of(4), <&mut [u8; 4]>::try_from(data)) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            self.core.write_config(offset, data);
        } else if let (true, Ok(data)) = (offset.is_multiple_of(4), <[u8; 4]>::try_from(data)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests;
