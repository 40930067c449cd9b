//! Questions to, and messages through, KVM's interrupt controllers.
#![expect(unsafe_code, reason = "KVM_GET_IRQCHIP answers with unions")]

use arch::Gsi;
use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip, kvm_msi};
use kvm_ioctls::VmFd;

use super::kvm::{KvmError, failed};

/// Bit of an I/O APIC's redirection entry (82093AA §3.2.4): it delivers nothing.
const MASKED: u64 = 1 << 16;

/// Where a message-signalled interrupt to the local APIC with id 0 is written, and the place of the id (SDM 3A §11.11.1).
const MSI_ADDRESS: u32 = 0xfee0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
/// Delivery mode NMI (SDM 3A §11.11.2).
const MSI_DATA_NMI: u32 = 0b100 << 8;

/// Whether the guest lets the interrupt `gsi` through its I/O APIC.
pub(super) fn is_unmasked(vm: &VmFd, gsi: Gsi) -> bool {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    if let Err(error) = vm.get_irqchip(&mut chip) {
        log::warn!("cannot read the I/O APIC (KVM_GET_IRQCHIP): {error}");
        return false;
    }
    // SAFETY: KVM answers chip_id KVM_IRQCHIP_IOAPIC with this member, and any bytes are one.
    let ioapic = unsafe { chip.chip.ioapic };
    let entry = usize::try_from(gsi.get()).ok().and_then(|pin| ioapic.redirtbl.get(pin));
    // SAFETY: `bits` is the whole entry as a number, and any bytes are one.
    entry.is_some_and(|entry| unsafe { entry.bits } & MASKED == 0)
}

/// Raises an edge-triggered line once.
pub(super) fn pulse(vm: &VmFd, gsi: Gsi) -> Result<(), KvmError> {
    for level in [true, false] {
        vm.set_irq_line(gsi.get(), level).map_err(failed("raise an interrupt (KVM_IRQ_LINE)"))?;
    }
    Ok(())
}

/// Sends the vCPU with this APIC id what it cannot mask, whether it runs or not.
pub(super) fn send_nmi(vm: &VmFd, apic_id: u8) -> Result<(), KvmError> {
    let address_lo = MSI_ADDRESS | u32::from(apic_id) << MSI_DESTINATION_SHIFT;
    let message = kvm_msi { address_lo, data: MSI_DATA_NMI, ..Default::default() };
    vm.signal_msi(message).map(|_| ()).map_err(failed("send an NMI (KVM_SIGNAL_MSI)"))
}
