//! Who answers at which address: one [`Bus`] for port I/O, one for MMIO.
//!
//! vCPU threads call it, the owner of the machine fills it.
//!
//! Architecture invariant: lock order is the map, then a device, and the map is released before the device is locked.
//! A device never calls a bus, so no cycle can form.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use thiserror::Error;

/// A device on a bus.
pub trait BusDevice: Send {
    /// Answers a read of `data.len()` bytes, `offset` bytes into the device's range.
    ///
    /// `data` comes filled with ones, which is what stays where the device has nothing to say.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes a write of `data.len()` bytes, `offset` bytes into the device's range.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as a bus holds it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// Why a range cannot be given to a device.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// The range holds no address.
    #[error("bus range {0:#x?} is empty")]
    Empty(Range<u64>),
    /// Somebody else answers in the range.
    #[error("bus range {wanted:#x?} overlaps {taken:#x?}")]
    Overlap {
        /// The range asked for.
        wanted: Range<u64>,
        /// The range that is in the way.
        taken: Range<u64>,
    },
    /// No device has exactly this range.
    #[error("no device has the bus range {0:#x?}")]
    Absent(Range<u64>),
}

/// An address space of devices.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, without overlap.
    slots: RwLock<Vec<Slot>>,
}

struct Slot {
    range: Range<u64>,
    device: SharedDevice,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives `range` to `device`.
    ///
    /// # Errors
    /// [`BusError::Empty`] and [`BusError::Overlap`].
    pub fn insert(&self, range: Range<u64>, device: SharedDevice) -> Result<(), BusError> {
        if range.is_empty() {
            return Err(BusError::Empty(range));
        }
        let mut slots = self.slots.write().expect(POISONED);
        let at = slots.partition_point(|slot| slot.range.end <= range.start);
        if let Some(next) = slots.get(at)
            && next.range.start < range.end
        {
            return Err(BusError::Overlap { wanted: range, taken: next.range.clone() });
        }
        slots.insert(at, Slot { range, device });
        Ok(())
    }

    /// Takes the device of exactly `range` off the bus. A vCPU that found it before may still be inside it.
    ///
    /// # Errors
    /// [`BusError::Absent`].
    pub fn remove(&self, range: &Range<u64>) -> Result<SharedDevice, BusError> {
        let mut slots = self.slots.write().expect(POISONED);
        match slots.iter().position(|slot| slot.range == *range) {
            Some(at) => Ok(slots.remove(at).device),
            None => Err(BusError::Absent(range.clone())),
        }
    }

    /// Reads at `address`. False means that nobody is there, and `data` is then all ones, as on a PC.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((offset, device)) = self.find(address, data.len()) else {
            return false;
        };
        lock(&device).read(offset, data);
        true
    }

    /// Writes at `address`. False means that nobody is there.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(address, data.len()) else {
            return false;
        };
        lock(&device).write(offset, data);
        true
    }

    /// The device that owns all `len` bytes at `address`: an access that straddles the end of a range is nobody's.
    fn find(&self, address: u64, len: usize) -> Option<(u64, SharedDevice)> {
        let slots = self.slots.read().expect(POISONED);
        let slot = slots.get(slots.partition_point(|slot| slot.range.end <= address))?;
        let end = address.checked_add(u64::try_from(len).ok()?)?;
        let inside = slot.range.start <= address && end <= slot.range.end;
        inside.then(|| (address - slot.range.start, Arc::clone(&slot.device)))
    }
}

const POISONED: &str = "a thread panicked while it changed the bus map, which aborts the process";

/// Locks a device, or whatever else threads share here.
///
/// A lock can only be poisoned by a panic, which aborts the process; only a test can see one.
pub(crate) fn lock<T: ?Sized>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().expect("a thread panicked with a device's lock held, which aborts the process")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Register {
        last: Option<(u64, Vec<u8>)>,
    }

    impl BusDevice for Register {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.last = Some((offset, data.to_vec()));
        }
    }

    fn device() -> Arc<Mutex<Register>> {
        Arc::default()
    }

    #[test]
    fn each_access_reaches_the_device_of_its_range_at_the_right_offset() {
        let bus = Bus::new();
        let (low, high) = (device(), device());
        bus.insert(0x20..0x28, high.clone()).unwrap();
        bus.insert(0x10..0x18, low.clone()).unwrap();

        let mut data = [0; 2];
        assert!(bus.read(0x16, &mut data));
        assert_eq!(data, [6, 6]);
        assert!(bus.write(0x27, &[9]));
        assert_eq!(high.lock().unwrap().last, Some((7, vec![9])));
        assert_eq!(low.lock().unwrap().last, None);
    }

    #[test]
    fn an_access_that_nobody_owns_reads_ones() {
        let bus = Bus::new();
        bus.insert(0x10..0x18, device()).unwrap();
        for address in [0, 0xf, 0x18, u64::MAX] {
            let mut data = [0; 1];
            assert!(!bus.read(address, &mut data), "{address:#x}");
            assert_eq!(data, [0xff]);
            assert!(!bus.write(address, &data));
        }
    }

    #[test]
    fn an_access_that_straddles_an_end_is_nobodys_even_between_neighbours() {
        let bus = Bus::new();
        let (low, high) = (device(), device());
        bus.insert(0x10..0x18, low.clone()).unwrap();
        bus.insert(0x18..0x20, high.clone()).unwrap();
        for address in [0xe, 0x16, 0x1e] {
            assert!(!bus.write(address, &[0; 4]));
        }
        assert!(!bus.write(u64::MAX, &[0; 8]));
        assert!(low.lock().unwrap().last.is_none());
        assert!(high.lock().unwrap().last.is_none());
    }

    #[test]
    fn an_overlapping_or_empty_range_is_refused_by_name() {
        let bus = Bus::new();
        bus.insert(0x10..0x18, device()).unwrap();
        for wanted in [0x10..0x18, 0x17..0x19, 0xf..0x11, 0x0..0x100, 0x12..0x13] {
            let refused = bus.insert(wanted.clone(), device()).unwrap_err();
            assert_eq!(refused, BusError::Overlap { wanted, taken: 0x10..0x18 });
        }
        assert_eq!(bus.insert(5..5, device()), Err(BusError::Empty(5..5)));
        bus.insert(0x8..0x10, device()).unwrap();
        bus.insert(0x18..0x20, device()).unwrap();
    }

    #[test]
    fn a_removed_device_is_gone_and_its_range_is_free() {
        let bus = Bus::new();
        bus.insert(0x10..0x18, device()).unwrap();
        assert!(matches!(bus.remove(&(0x10..0x17)), Err(BusError::Absent(_))));
        bus.remove(&(0x10..0x18)).unwrap();
        assert!(!bus.write(0x10, &[0]));
        bus.insert(0x10..0x18, device()).unwrap();
    }

    #[test]
    fn the_map_is_not_locked_while_a_device_works() {
        /// Reads another device through the bus, which no real device may do, to prove the rule from the inside.
        struct Probe(Arc<Bus>);
        impl BusDevice for Probe {
            fn read(&mut self, _: u64, data: &mut [u8]) {
                self.0.insert(0x100..0x101, device()).unwrap();
                data.fill(0);
            }
            fn write(&mut self, _: u64, _: &[u8]) {}
        }
        let bus = Arc::new(Bus::new());
        bus.insert(0..1, Arc::new(Mutex::new(Probe(bus.clone())))).unwrap();
        assert!(bus.read(0, &mut [0]));
        assert!(bus.write(0x100, &[0]));
    }
}
