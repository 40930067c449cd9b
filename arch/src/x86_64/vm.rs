//! What is saved of a VM beside its vCPUs and devices: the interrupt controllers, the interval timer and kvm-clock.

use std::time::{Duration, SystemTime};

use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::clock::{ClockPolicy, TimeAway};
use crate::x86_64::exact;

/// A VM's state cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VmStateError {
    /// A part cannot be read.
    #[error("cannot save the VM: {ioctl}")]
    Save {
        /// What was attempted.
        ioctl: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// KVM does not take a part.
    #[error("cannot restore the VM: {ioctl}")]
    Restore {
        /// What was attempted.
        ioctl: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// A counter of the interval timer that has more bits than there are.
    #[error(
        "cannot restore the VM: channel {channel} of its interval timer counts from {count}, and the most is 65536"
    )]
    PitCount {
        /// The channel.
        channel: usize,
        /// Its initial count.
        count: u32,
    },
    /// The clock would be beyond what KVM and guests can count.
    #[error("cannot restore the VM: its clock of {clock_ns} ns, advanced by {away_ns} ns, is beyond 292 years")]
    Clock {
        /// What it showed.
        clock_ns: u64,
        /// How far it has to advance.
        away_ns: u64,
    },
}

/// The interrupt controllers and clocks that KVM keeps for a VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VmState {
    #[serde(with = "exact")]
    pic_master: kvm_irqchip,
    #[serde(with = "exact")]
    pic_slave: kvm_irqchip,
    #[serde(with = "exact")]
    ioapic: kvm_irqchip,
    #[serde(with = "exact")]
    pit: kvm_pit_state2,
    clock: ClockState,
}

/// kvm-clock, and what time of day it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ClockState {
    guest_ns: u64,
    /// Since 1970.
    realtime_ns: u64,
}

impl VmState {
    /// Reads the state of a VM whose vCPUs are all out of the guest.
    ///
    /// # Errors
    /// [`VmStateError::Save`].
    pub fn save(vm: &VmFd) -> Result<Self, VmStateError> {
        let failed = |ioctl| move |source| VmStateError::Save { ioctl, source };
        let clock = ClockState::save(vm)?;
        let chip = |chip_id| {
            let mut chip = kvm_irqchip { chip_id, ..Default::default() };
            vm.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
            Ok(chip)
        };
        Ok(Self {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: vm.get_pit2().map_err(failed("KVM_GET_PIT2"))?,
            clock,
        })
    }

    /// How far the clocks advance under `policy`, if the guest is restored `now`.
    #[must_use]
    pub fn time_away(&self, policy: ClockPolicy, now: SystemTime) -> TimeAway {
        policy.time_away(self.saved_at(), now)
    }

    /// When the state was taken, as the host's clock told.
    #[must_use]
    pub fn saved_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_nanos(self.clock.realtime_ns)
    }

    /// Restores the interrupt controllers and the interval timer. The vCPUs have their state already: an interrupt that was on
    /// its way goes on to their LAPICs.
    ///
    /// # Errors
    /// [`VmStateError`] names what KVM does not take.
    pub fn restore_interrupts(&self, vm: &VmFd) -> Result<(), VmStateError> {
        let Self { pic_master, pic_slave, ioapic, pit, clock: _ } = self;
        let failed = |ioctl| move |source| VmStateError::Restore { ioctl, source };
        for (channel, state) in pit.channels.iter().enumerate() {
            if state.count > PIT_COUNT_MAX {
                return Err(VmStateError::PitCount { channel, count: state.count });
            }
        }
        let chips =
            [(KVM_IRQCHIP_PIC_MASTER, pic_master), (KVM_IRQCHIP_PIC_SLAVE, pic_slave), (KVM_IRQCHIP_IOAPIC, ioapic)];
        for (chip_id, &chip) in chips {
            // Whatever the state says of itself, it is for this one.
            vm.set_irqchip(&kvm_irqchip { chip_id, ..chip }).map_err(failed("KVM_SET_IRQCHIP"))?;
        }
        vm.set_pit2(pit).map_err(failed("KVM_SET_PIT2"))
    }

    /// Sets kvm-clock to what it showed, `away` later. Last of all, as it goes on at once.
    ///
    /// # Errors
    /// [`VmStateError`], also if the clock says what no clock can.
    pub fn restore_clock(&self, vm: &VmFd, away: TimeAway) -> Result<(), VmStateError> {
        let ClockState { guest_ns, realtime_ns: _ } = self.clock;
        let away_ns = away.nanoseconds();
        let clock = guest_ns
            .checked_add(away_ns)
            .filter(|&clock| i64::try_from(clock).is_ok())
            .ok_or(VmStateError::Clock { clock_ns: guest_ns, away_ns })?;
        // Without flags KVM takes the value as it is (KVM api: KVM_SET_CLOCK).
        vm.set_clock(&kvm_clock_data { clock, ..Default::default() })
            .map_err(|source| VmStateError::Restore { ioctl: "KVM_SET_CLOCK", source })
    }
}

/// A counter has 16 bits, and 0 stands for one more than they hold (8254 data sheet).
const PIT_COUNT_MAX: u32 = 1 << 16;

impl ClockState {
    fn save(vm: &VmFd) -> Result<Self, VmStateError> {
        let clock = vm.get_clock().map_err(|source| VmStateError::Save { ioctl: "KVM_GET_CLOCK", source })?;
        let realtime_ns = if clock.flags & KVM_CLOCK_REALTIME != 0 {
            clock.realtime
        } else {
            // A host whose own clock is not the time stamp counter does not tell the two of one instant.
            let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        Ok(Self { guest_ns: clock.clock, realtime_ns })
    }
}

#[cfg(test)]
mod tests;
