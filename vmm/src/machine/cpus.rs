//! The vCPUs and the VM as they are saved: what KVM keeps of a machine.

use arch::vcpu::VcpuState;
use arch::vm::{VmState, VmStateError};
use thiserror::Error;

use super::Machine;
use crate::vcpu::{SaveError, VcpuHandle};

/// What KVM keeps of a machine.
#[derive(Debug)]
pub struct CpuStates {
    /// Every vCPU, the boot CPU first.
    pub vcpus: Vec<VcpuState>,
    /// What there is once: interrupt controllers, timer and clock.
    pub vm: VmState,
}

/// What keeps it from being saved.
#[derive(Debug, Error)]
pub enum CpuSaveError {
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] SaveError),
    /// The VM.
    #[error(transparent)]
    Vm(#[from] VmStateError),
}

impl Machine {
    /// Saves what KVM keeps of the machine, which is parked: each vCPU by its own thread, all at once, and then the VM.
    ///
    /// # Errors
    /// [`CpuSaveError`]; the machine is as it was.
    pub fn save_cpus(&self) -> Result<CpuStates, CpuSaveError> {
        self.vcpus.iter().for_each(|vcpu| vcpu.ask_save(&self.shape));
        // Every answer is taken, also behind one that is an error.
        let vcpus: Vec<_> = self.vcpus.iter().map(VcpuHandle::wait_saved).collect();
        let vcpus = vcpus.into_iter().collect::<Result<_, _>>()?;
        Ok(CpuStates { vcpus, vm: VmState::save(&self.vm)? })
    }
}

#[cfg(test)]
mod tests;
