//! The VM generation: a number of its own for each life of a machine, and the interrupt that tells of a new one.

use std::io;

use arch::GuestMemory;
use arch::acpi::Generation;
use arch::layout::GENERATION_GSI;
use arch::memory::GuestMemoryError;
use kvm_ioctls::VmFd;
use thiserror::Error;

use super::Machine;
use super::irqchip;
use super::kvm::KvmError;
use crate::random;

/// What keeps a machine from its generation.
#[derive(Debug, Error)]
pub enum GenerationError {
    /// The host has no random number.
    #[error("cannot make a VM generation (getrandom)")]
    Random(#[source] io::Error),
    /// It has no place.
    #[error("cannot write the VM generation into guest memory")]
    Memory(#[source] GuestMemoryError),
    /// Its interrupt cannot be raised.
    #[error(transparent)]
    Interrupt(#[from] KvmError),
}

/// Gives a machine that has not run a generation.
pub(super) fn begin(memory: &GuestMemory) -> Result<(), GenerationError> {
    let random = random::bytes().map_err(GenerationError::Random)?;
    Generation::new(random).write(memory).map_err(GenerationError::Memory)
}

/// Gives a machine that has run, in this or another process, a new generation, and tells its guest if it listens: the
/// interrupt is pending in a LAPIC when this returns. Interrupt controllers and vCPUs have their state already.
pub(super) fn renew(vm: &VmFd, memory: &GuestMemory) -> Result<(), GenerationError> {
    begin(memory)?;
    // Where nobody listens the line may be something else: a guest without these ACPI tables may have its two 8259 meet on it.
    if irqchip::is_unmasked(vm, GENERATION_GSI) {
        irqchip::pulse(vm, GENERATION_GSI)?;
    }
    Ok(())
}

impl Machine {
    /// Makes the restored machine another one than that which was saved: a new generation, of which its guest hears before
    /// its first instruction, so that its random numbers are its own. The machine is parked.
    ///
    /// # Errors
    /// [`GenerationError`]; the machine may not run then.
    pub fn renew_generation(&self) -> Result<(), GenerationError> {
        renew(&self.vm, &self.memory)
    }
}
