//! What a device may ask of the machine it sits in.
//!
//! The request is made on the thread of the vCPU that touched the register, so the sink must only pass it on.

use std::sync::Arc;

/// What a guest asked for through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRequest {
    /// Enter the soft-off state S5.
    PowerOff,
    /// Start again from the reset vector.
    Reset,
}

/// Where a device puts its requests. It is called with the device's lock held: it must not block and must not touch
/// a bus.
pub type RequestSink = Arc<dyn Fn(MachineRequest) + Send + Sync>;
