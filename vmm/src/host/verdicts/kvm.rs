//! /dev/kvm and what it can.

use kvm_bindings::KVM_API_VERSION;

use super::{Group, Line, UNKNOWN, Verdict};
use crate::host::capabilities::{CAPABILITIES, Capability, Need};
use crate::host::facts::{Attempt, Facts, KvmFacts, Virtualization};

pub(super) fn judge(facts: &Facts) -> Vec<Verdict> {
    let kvm = &facts.kvm;
    let mut verdicts = vec![
        Line::new(Group::Kvm, "kernel", "KVM comes with it").info(facts.kernel.as_deref().unwrap_or(UNKNOWN)),
        device(facts),
    ];
    if kvm.device == Attempt::Works {
        verdicts.push(create_vm(kvm));
        verdicts.extend(CAPABILITIES.iter().map(|capability| judge_capability(kvm, capability)));
    } else {
        let line = Line::new(Group::Kvm, "capabilities", "what KVM does for a VM");
        verdicts.push(line.info("not known while /dev/kvm does not open"));
    }
    verdicts
}

fn device(facts: &Facts) -> Verdict {
    let kvm = &facts.kvm;
    let line = Line::new(Group::Kvm, "/dev/kvm", "running guests").required();
    match (kvm.device, kvm.api_version) {
        (Attempt::Works, Some(version)) if u32::try_from(version) == Ok(KVM_API_VERSION) => {
            line.ok(format!("opens, API version {version}"))
        }
        (Attempt::Works, version) => {
            let version = version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
            line.missing(format!("API version {version}, not {KVM_API_VERSION}"), "use a newer kernel")
        }
        (Attempt::Fails { errno }, _) => line.missing(kvm.device.describe(), device_fix(errno, facts)),
    }
}

fn device_fix(errno: i32, facts: &Facts) -> String {
    let fix = match errno {
        libc::EACCES => "setfacl -m u:$USER:rw /dev/kvm",
        libc::EPERM => "allow device 10:232 in this process's device cgroup",
        libc::ENOENT | libc::ENODEV | libc::ENXIO => {
            return facts.mknod("kvm", "/dev/kvm").unwrap_or_else(|| driver_fix(facts).to_owned());
        }
        _ => "dmesg | grep -i kvm",
    };
    fix.to_owned()
}

fn driver_fix(facts: &Facts) -> &'static str {
    match facts.cpu.virtualization {
        None => "enable VT-x or AMD-V in the firmware, or nested virtualization in the hypervisor below",
        Some(_) if !facts.loadable_modules => "use a kernel with CONFIG_KVM",
        Some(Virtualization::Vmx) => "modprobe kvm_intel",
        Some(Virtualization::Svm) => "modprobe kvm_amd",
    }
}

fn create_vm(kvm: &KvmFacts) -> Verdict {
    let line = Line::new(Group::Kvm, "KVM_CREATE_VM", "the VM itself").required();
    match kvm.create_vm {
        Some(Attempt::Works) => line.ok("works"),
        Some(Attempt::Fails { errno: libc::EBUSY }) => {
            line.missing("busy", "stop the other hypervisor (VirtualBox, VMware) that holds the CPUs")
        }
        Some(failure) => line.missing(failure.describe(), "dmesg | grep -i kvm"),
        None => line.missing("not tried", "dmesg | grep -i kvm"),
    }
}

fn judge_capability(kvm: &KvmFacts, capability: &Capability) -> Verdict {
    let value = kvm.capabilities.get(capability.name).copied().unwrap_or(0);
    let found = match value {
        1 if capability.least == 1 => "yes".to_owned(),
        ..=0 => "no".to_owned(),
        value => value.to_string(),
    };
    let line = Line::new(Group::Kvm, capability.name, capability.purpose);
    match capability.need {
        Need::Figure => line.info(found),
        Need::Required if value >= capability.least => line.required().ok(found),
        Need::Required => line.required().missing(found, capability.fix),
        _ if value >= capability.least => line.ok(found),
        Need::Feature => line.missing(found, capability.fix),
        Need::Better => line.degraded(found, capability.fix),
    }
}
