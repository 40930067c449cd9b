//! How what a device has come to is saved, and given to another one of the same make.
//!
//! A saved type is a type of its own, apart from the one at run time; the code between them names every field of both,
//! so that a new field does not compile before somebody has decided what becomes of it. What bytes it is written in is
//! its owner's affair: all are types of serde without a count that is believed before its elements are there.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Something whose state can outlive it. The contract:
///
/// 1. [`Self::save`] is called while nothing changes the device: no vCPU runs, and a virtio device is paused or was never
///    started. It changes nothing, and may be called again.
/// 2. [`Self::restore`] is called on a device that was just made, of the same configuration, after the interrupt
///    controller's state was restored: an interrupt that the guest has not answered is raised again, since nobody knows
///    whether the saved controller has it. A driver takes one that is too many for nothing.
/// 3. A state is not to be believed: what no device could have come to is an error, or ends in a device that its driver
///    must reset. It is never a panic, and never more memory than the state itself takes.
/// 4. After an error a device is good only for being dropped.
/// 5. What was restored and is saved again is equal, but for limits: time fills their buckets, and a device that is no
///    longer limited has none.
pub trait SaveState {
    /// What is saved.
    type State: Serialize + DeserializeOwned;
    /// Why it cannot be taken over.
    type Error: std::error::Error;

    /// What the device has come to.
    fn save(&self) -> Self::State;

    /// Takes over what another one had come to.
    ///
    /// # Errors
    /// The state is no such device's, or of one that was configured in another way.
    fn restore(&mut self, state: Self::State) -> Result<(), Self::Error>;
}
