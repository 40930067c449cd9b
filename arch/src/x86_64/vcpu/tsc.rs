//! The time stamp counter of a saved vCPU: how fast it counted, what it showed, and how it goes on.
//!
//! Where KVM tells a vCPU's offset from the host's counter (KVM_VCPU_TSC_OFFSET, Linux 5.16), all vCPUs of a machine move by
//! one and the same distance: what the guest sees between its CPUs stays to the cycle, however long each takes to be restored.
//! Elsewhere each counter is set by itself, and KVM takes values less than a second apart for those of one counter.
#![expect(unsafe_code, reason = "kvm-ioctls has no vCPU attributes on x86")]

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::VcpuStateError;
use super::msr_values::{self, MsrValue};
use crate::clock::TimeAway;
use crate::msrs::IA32_TSC;
use crate::topology::VcpuIndex;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// The counter of one vCPU, as it was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TscState {
    /// Its frequency, if KVM knows it.
    pub(super) khz: Option<u32>,
    /// What it showed.
    pub(super) value: u64,
    /// How far it was from the host's, if KVM tells.
    pub(super) offset: Option<u64>,
}

/// How the counters of a restored machine go on; the same for all its vCPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscResume(How);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Every offset moves by this, modulo 2^64.
    Moved(u64),
    /// Every counter is set to what it showed, and the time that is to have passed.
    Set(TimeAway),
}

impl TscState {
    pub(super) fn save(fd: &VcpuFd, index: VcpuIndex) -> Result<Self, VcpuStateError> {
        // The offset first: between the two the counter only goes on.
        let offset = read_offset(fd);
        Ok(Self { khz: fd.get_tsc_khz().ok(), value: read_counter(fd, index)?, offset })
    }

    /// Measures how far the counters have to be moved so that this one, of the boot CPU, goes on where it stopped, `away`
    /// later. Changes this vCPU's counter, which [`Self::restore`] sets.
    pub(super) fn resume(&self, fd: &VcpuFd, index: VcpuIndex, away: TimeAway) -> Result<TscResume, VcpuStateError> {
        self.set_frequency(fd, index)?;
        let Some(offset) = self.offset.filter(|_| read_offset(fd).is_some()) else {
            return Ok(TscResume(How::Set(away)));
        };
        write_offset(fd, index, offset)?;
        Ok(TscResume(How::Moved(self.distance(read_counter(fd, index)?, away))))
    }

    /// Sets the counter.
    pub(super) fn restore(&self, fd: &VcpuFd, index: VcpuIndex, resume: TscResume) -> Result<(), VcpuStateError> {
        self.set_frequency(fd, index)?;
        match (resume.0, self.offset) {
            (How::Moved(distance), Some(offset)) => write_offset(fd, index, offset.wrapping_add(distance)),
            (How::Moved(_), None) => Err(VcpuStateError::TscOffset { index }),
            (How::Set(away), _) => {
                msr_values::write(fd, index, &[MsrValue { index: IA32_TSC, value: self.after(away) }])
            }
        }
    }

    /// How far the counter is from where it goes on, if at the saved offset it now shows `shown`.
    fn distance(&self, shown: u64, away: TimeAway) -> u64 {
        self.after(away).wrapping_sub(shown)
    }

    /// What the counter shows when it has gone on for `away`. Without a known frequency it has stood.
    fn after(&self, away: TimeAway) -> u64 {
        self.value.wrapping_add(away.cycles(self.khz.unwrap_or(0)))
    }

    /// A host of the same frequency needs nothing; another one needs a processor that scales the counter.
    fn set_frequency(&self, fd: &VcpuFd, index: VcpuIndex) -> Result<(), VcpuStateError> {
        let Some(saved_khz) = self.khz else { return Ok(()) };
        let host_khz = fd.get_tsc_khz().ok();
        if host_khz == Some(saved_khz) {
            return Ok(());
        }
        fd.set_tsc_khz(saved_khz).map_err(|source| VcpuStateError::TscFrequency {
            index,
            saved_khz,
            host_khz: host_khz.unwrap_or(0),
            source,
        })
    }
}

fn read_counter(fd: &VcpuFd, index: VcpuIndex) -> Result<u64, VcpuStateError> {
    match msr_values::read(fd, index, &[IA32_TSC])?[..] {
        [MsrValue { value, .. }] => Ok(value),
        _ => Err(VcpuStateError::Save { index, ioctl: "KVM_GET_MSRS", source: kvm_ioctls::Error::new(libc::EINVAL) }),
    }
}

fn read_offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let attribute = attribute((&raw mut offset).expose_provenance());
    // SAFETY: KVM reads the structure, and writes the 8 bytes at `addr` = `offset`, which lives until after the call.
    let read = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) };
    (read == 0).then_some(offset)
}

fn write_offset(fd: &VcpuFd, index: VcpuIndex, offset: u64) -> Result<(), VcpuStateError> {
    let attribute = attribute((&raw const offset).expose_provenance());
    // SAFETY: KVM reads the structure, and the 8 bytes at `addr` = `offset`, which lives until after the call.
    match unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) } {
        0 => Ok(()),
        _ => {
            let ioctl = "KVM_SET_DEVICE_ATTR, KVM_VCPU_TSC_OFFSET";
            Err(VcpuStateError::Restore { index, ioctl, source: kvm_ioctls::Error::last() })
        }
    }
}

fn attribute(address: usize) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: u64::try_from(address).expect("a 64-bit host addresses 64 bits"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::clock::ClockPolicy;

    /// 2 GHz.
    const KHZ: u32 = 2_000_000;

    fn away(seconds: u64) -> TimeAway {
        ClockPolicy::Realtime.time_away(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    /// A host's counter and a guest's offset from it make what the guest sees.
    fn seen(host: u64, offset: u64) -> u64 {
        host.wrapping_add(offset)
    }

    #[test]
    fn counters_go_on_where_they_stopped_or_later_and_keep_their_distance() {
        let cycles = |seconds: u64| seconds * u64::from(KHZ) * 1000;
        // The host's counter when the guest is saved and when it is restored: later, as much, earlier after the host's start,
        // and about to wrap.
        for (then, now) in [(500, 900), (500, 500), (1 << 50, 3), (7, u64::MAX - 1)] {
            for (boot_offset, seconds) in [(0, 0), (0_u64.wrapping_sub(400), 0), (u64::MAX / 2, 0), (77, 3600)] {
                let boot = TscState { khz: Some(KHZ), value: seen(then, boot_offset), offset: Some(boot_offset) };
                let distance = boot.distance(seen(now, boot_offset), away(seconds));
                assert_eq!(seen(now, boot_offset.wrapping_add(distance)), boot.value.wrapping_add(cycles(seconds)));
                // Another vCPU of which the guest has moved the counter by 12 cycles is moved by as much.
                let other = boot_offset.wrapping_add(12).wrapping_add(distance);
                assert_eq!(seen(now, other), boot.value.wrapping_add(cycles(seconds)).wrapping_add(12));
            }
        }
    }

    #[test]
    fn a_counter_of_unknown_frequency_stands() {
        let state = TscState { khz: None, value: 5, offset: None };
        assert_eq!(state.after(away(3600)), 5);
    }
}
