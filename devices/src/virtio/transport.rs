//! Between a driver's registers and a device: one core, under a thin layer that decodes registers.

mod core;
mod interrupt;
mod mmio;

pub use self::core::{DriverState, RunState, SavedQueue, TransportCore, TransportError, TransportState};
pub use interrupt::{Interrupt, InterruptState};
pub use mmio::{MmioState, MmioTransport};
