//! The VM generation: a number of its own for each life of a machine, and the interrupt that tells of a new one.

use std::io;

use arch::acpi::Generation;
use arch::memory::GuestMemoryError;
use arch::{Gsi, GuestMemory};
use kvm_ioctls::VmFd;
use thiserror::Error;

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
/// interrupt of `line` ([`arch::layout::generation_gsi`]) is pending in a LAPIC when this returns. Interrupt controllers and
/// vCPUs have their state already.
pub(super) fn renew(vm: &VmFd, memory: &GuestMemory, line: Option<Gsi>) -> Result<(), GenerationError> {
    begin(memory)?;
    match line {
        Some(gsi) if irqchip::is_unmasked(vm, gsi) => Ok(irqchip::pulse(vm, gsi)?),
        Some(_) => Ok(()),
        None => {
            log::warn!("generation: devices have every interrupt: the guest is not told that it has a new one");
            Ok(())
        }
    }
}
