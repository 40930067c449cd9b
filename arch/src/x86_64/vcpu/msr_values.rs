//! The MSRs of a vCPU's saved state, read and written in batches.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::VcpuStateError;
use crate::topology::VcpuIndex;

/// How many MSRs go through one ioctl; KVM takes fewer than 256 (KVM api: KVM_SET_MSRS).
const BATCH: usize = 128;
/// More than any KVM lists. A saved state with more is not one.
pub(super) const MSRS_MAX: usize = 1024;

/// An MSR and what it held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MsrValue {
    pub(super) index: u32,
    pub(super) value: u64,
}

impl MsrValue {
    fn entry(self) -> kvm_msr_entry {
        kvm_msr_entry { index: self.index, data: self.value, ..Default::default() }
    }
}

/// What the MSRs of these numbers hold, without those that KVM does not let be read: a list of MSRs is of the host, and a
/// vCPU has not all that the host knows.
pub(super) fn read(fd: &VcpuFd, index: VcpuIndex, numbers: &[u32]) -> Result<Vec<MsrValue>, VcpuStateError> {
    let failed = |source| VcpuStateError::Save { index, ioctl: "KVM_GET_MSRS", source };
    let mut values = Vec::with_capacity(numbers.len());
    let mut rest = numbers;
    while !rest.is_empty() {
        let asked: Vec<_> = rest.iter().take(BATCH).map(|&index| MsrValue { index, value: 0 }.entry()).collect();
        let mut msrs = Msrs::from_entries(&asked).expect("a batch is fewer than KVM takes");
        let read = fd.get_msrs(&mut msrs).map_err(failed)?;
        values.extend(msrs.as_slice()[..read].iter().map(|msr| MsrValue { index: msr.index, value: msr.data }));
        // KVM stops at the one that it refuses.
        let refused = usize::from(read < asked.len());
        rest = &rest[read + refused..];
    }
    Ok(values)
}

/// Sets the MSRs, in their order. One that KVM does not let be written is no loss where it already holds the value.
pub(super) fn write(fd: &VcpuFd, index: VcpuIndex, values: &[MsrValue]) -> Result<(), VcpuStateError> {
    let mut rest = values;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().take(BATCH).map(|msr| msr.entry()).collect();
        let msrs = Msrs::from_entries(&entries).expect("a batch is fewer than KVM takes");
        let written =
            fd.set_msrs(&msrs).map_err(|source| VcpuStateError::Restore { index, ioctl: "KVM_SET_MSRS", source })?;
        let mut done = written;
        if written < entries.len() {
            let refused = rest[written];
            if read(fd, index, &[refused.index])? != [refused] {
                return Err(VcpuStateError::Msr { index, msr: refused.index, value: refused.value });
            }
            done += 1;
        }
        rest = &rest[done..];
    }
    Ok(())
}
