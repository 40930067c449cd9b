//! The registers that XSAVE writes, as KVM hands them over (KVM api: KVM_GET_XSAVE2): 4 KiB, and more where the host lets
//! guests have components beyond.
#![expect(unsafe_code, reason = "KVM reads and writes as many bytes as its capability says, whatever the buffer is")]

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use super::VcpuStateError;
use crate::topology::VcpuIndex;

/// What KVM_GET_XSAVE reads, in bytes.
const LEGACY_BYTES: usize = size_of::<kvm_xsave>();
/// More than any processor has: AMX's tiles end below 12 KiB.
pub(super) const XSAVE_BYTES_MAX: usize = 64 << 10;
const WORD: usize = size_of::<u32>();

/// How many bytes KVM keeps of this VM's vCPUs. The same for the VM's life: husk asks for no component beyond those that
/// every process has, which is what would change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct XsaveBytes(usize);

impl XsaveBytes {
    pub(super) fn of(vm: &VmFd) -> Self {
        let told = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Self(told.max(LEGACY_BYTES).next_multiple_of(WORD))
    }

    fn buffer(self) -> Xsave {
        Xsave::new((self.0 - LEGACY_BYTES) / WORD).expect("a few KiB can be described")
    }

    /// The registers, as bytes.
    pub(super) fn read(self, fd: &VcpuFd) -> Result<Vec<u8>, kvm_ioctls::Error> {
        let mut xsave = self.buffer();
        if self.0 == LEGACY_BYTES {
            let legacy = fd.get_xsave()?;
            return Ok(legacy.region.iter().flat_map(|word| word.to_le_bytes()).collect());
        }
        // SAFETY: KVM writes as many bytes as KVM_CAP_XSAVE2 says = at most what `of` was told, which `buffer` has.
        unsafe { fd.get_xsave2(&mut xsave) }?;
        let region = &xsave.as_fam_struct_ref().xsave.region;
        Ok(region.iter().chain(xsave.as_slice()).flat_map(|word| word.to_le_bytes()).collect())
    }

    /// Sets the registers to what [`Self::read`] gave, on this host or another. Which components there may be, KVM checks.
    pub(super) fn write(self, fd: &VcpuFd, index: VcpuIndex, saved: &[u8]) -> Result<(), VcpuStateError> {
        let (words, odd) = saved.as_chunks::<WORD>();
        if saved.len() < LEGACY_BYTES || saved.len() > self.0 || !odd.is_empty() {
            let (found, least, most) = (saved.len(), LEGACY_BYTES, self.0);
            return Err(VcpuStateError::XsaveBytes { index, found, least, most });
        }
        let mut xsave = self.buffer();
        let (region, extra) = words.split_at(LEGACY_BYTES / WORD);
        for (word, &bytes) in xsave.as_mut_slice().iter_mut().zip(extra) {
            *word = u32::from_le_bytes(bytes);
        }
        // SAFETY: the length of the flexible array must stay what it is = only `region` is written below.
        let header = unsafe { xsave.as_mut_fam_struct() };
        for (word, &bytes) in header.xsave.region.iter_mut().zip(region) {
            *word = u32::from_le_bytes(bytes);
        }
        // SAFETY: KVM reads as many bytes as KVM_CAP_XSAVE2 says = at most what `of` was told, which `buffer` has.
        unsafe { fd.set_xsave2(&xsave) }.map_err(|source| VcpuStateError::Restore {
            index,
            ioctl: "KVM_SET_XSAVE",
            source,
        })
    }
}
