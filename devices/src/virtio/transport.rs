//! Between a driver's registers and a device: one core, under a thin layer that decodes registers.

mod core;
mod interrupt;
mod mmio;

pub use self::core::{DriverState, TransportCore, TransportError};
pub use interrupt::Interrupt;
pub use mmio::MmioTransport;
