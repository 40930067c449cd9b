//! What the guest talks to, and what backs it.
//!
//! This crate never names KVM: an interrupt is an eventfd, a doorbell is an eventfd, guest memory is
//! [`arch::GuestMemory`]. So all of it is testable without `/dev/kvm`, by the driver in `testing`.
//!
//! | room | owns |
//! | --- | --- |
//! | [`bus`] | who answers at which port or address |
//! | [`legacy`] | the serial port, i8042, CMOS clock and ACPI registers |
//! | [`virtio`] | what faces the guest, which is hostile |
//! | [`backend`] | what faces the host, which can fail |
//! | [`fault`] | log lines about a guest's or a host's faults, throttled |
//! | [`latency`] | how long things took |
//! | [`limit`] | rates that a device may not exceed |
//! | [`state`] | how devices are saved and restored |

pub mod backend;
pub mod bus;
pub mod fault;
pub mod latency;
pub mod legacy;
pub mod limit;
mod machine;
mod odds;
pub mod state;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod virtio;

pub use machine::{MachineRequest, RequestSink};
