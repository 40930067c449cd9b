//! The VM as KVM sees it: everything that must be there before the first vCPU.

use arch::cpu_template::{CapabilityCheck, CpuTemplate};
use arch::{VcpuCount, layout};
use kvm_bindings::{KVM_API_VERSION, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

/// What keeps KVM from giving a VM.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The device cannot be opened.
    #[error("cannot open /dev/kvm: {cause}: {hint}")]
    Open {
        /// What the host said.
        cause: std::io::Error,
        /// What would fix it.
        hint: &'static str,
    },
    /// The kernel's KVM is not the one of the last fifteen years.
    #[error(
        "/dev/kvm is not KVM of API version {KVM_API_VERSION} (KVM_GET_API_VERSION says {found}): check that the node is the kernel's, as made by mknod /dev/kvm c 10 232"
    )]
    Version {
        /// What it speaks.
        found: i32,
    },
    /// KVM lacks something that husk stands on.
    #[error("this host's KVM lacks {capability}: use a newer kernel")]
    Lacks {
        /// Its name.
        capability: &'static str,
    },
    /// KVM lacks something that the user's CPU template asks for.
    #[error("cpu-config: this host's KVM lacks capability {number}, which kvm_capabilities asks for: remove it there")]
    LacksNumber {
        /// Its number in KVM's interface.
        number: u32,
    },
    /// More vCPUs than KVM gives.
    #[error("cpus: {asked} is more than the {limit} that this host's KVM gives a VM: use at most {limit}")]
    TooManyVcpus {
        /// What was asked.
        asked: VcpuCount,
        /// What there is.
        limit: usize,
    },
    /// An ioctl failed.
    #[error("cannot {what}")]
    Ioctl {
        /// What was attempted.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
}

/// Wraps an ioctl's error with what was attempted.
pub(super) fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { what, source }
}

/// Opens /dev/kvm and holds it against what husk needs.
pub(super) fn open(count: VcpuCount, template: Option<&CpuTemplate>) -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|error| {
        let cause = std::io::Error::from(error);
        let hint = match cause.kind() {
            std::io::ErrorKind::NotFound => "load kvm_intel or kvm_amd, or enable virtualization in the firmware",
            std::io::ErrorKind::PermissionDenied => "add the user to the group that owns it (usually kvm)",
            _ => "see `dmesg | tail`",
        };
        KvmError::Open { cause, hint }
    })?;
    let found = kvm.get_api_version();
    if u32::try_from(found) != Ok(KVM_API_VERSION) {
        return Err(KvmError::Version { found });
    }
    lacking(&kvm, template)?;
    let limit = kvm.get_max_vcpus();
    if usize::from(count.get()) > limit {
        return Err(KvmError::TooManyVcpus { asked: count, limit });
    }
    Ok(kvm)
}

/// Holds KVM against the capabilities that husk stands on, as the user's CPU template changes their list.
fn lacking(kvm: &Kvm, template: Option<&CpuTemplate>) -> Result<(), KvmError> {
    const NEEDED: [(Cap, &str); 4] = [
        (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
        (Cap::Irqfd, "KVM_CAP_IRQFD"),
        (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
        (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    ];
    let checks = template.map_or(&[][..], CpuTemplate::capabilities);
    for check in checks {
        if let CapabilityCheck::Add(number) = *check
            && kvm.check_extension_raw(number.into()) <= 0
        {
            return Err(KvmError::LacksNumber { number });
        }
    }
    let waived = |cap: Cap| checks.iter().any(|check| matches!(*check, CapabilityCheck::Remove(n) if n == cap as u32));
    match NEEDED.into_iter().find(|(cap, _)| !waived(*cap) && !kvm.check_extension(*cap)) {
        Some((_, capability)) => Err(KvmError::Lacks { capability }),
        None => Ok(()),
    }
}

/// The addresses that KVM uses for itself on some CPUs, and the interrupt controllers. Memory slots come first.
pub(super) fn create_irqchip(vm: &VmFd) -> Result<(), KvmError> {
    let tss = usize::try_from(layout::KVM_TSS.0).expect("the 32-bit hole is below 4 GiB");
    vm.set_tss_address(tss).map_err(failed("set the address of KVM's task state segment"))?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP.0).map_err(failed("set the address of KVM's identity map"))?;
    vm.create_irq_chip().map_err(failed("create the interrupt controllers (KVM_CREATE_IRQCHIP)"))
}

/// The timer of a PC. With the dummy speaker port, reads of port 0x61 stay in the kernel.
pub(super) fn create_pit(vm: &VmFd) -> Result<(), KvmError> {
    let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(config).map_err(failed("create the interval timer (KVM_CREATE_PIT2)"))
}
