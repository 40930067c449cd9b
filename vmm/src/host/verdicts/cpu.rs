//! Processors and nodes.

use super::{Group, Line, UNKNOWN, Verdict, size};
use crate::host::facts::{Attempt, CpuFacts, Facts, NodeFacts, Virtualization};
use crate::host::id_list::IdList;

pub(super) fn judge(facts: &Facts) -> Vec<Verdict> {
    let cpu = &facts.cpu;
    let mut verdicts = vec![model(cpu), virtualization(facts), online(cpu), node_count(&cpu.nodes)];
    // A host of one node is described by its memory's and its CPUs' own lines.
    if cpu.nodes.len() > 1 {
        verdicts.extend(cpu.nodes.iter().map(node));
    }
    verdicts.push(set_aside(
        "isolated CPUs",
        "vCPUs that share with nobody",
        cpu.isolated.as_ref(),
        "boot with isolcpus=LIST, or make a cpuset partition `isolated`",
    ));
    verdicts.push(set_aside(
        "nohz_full",
        "vCPUs without the host's timer tick",
        cpu.nohz_full.as_ref(),
        "boot with nohz_full=LIST (a kernel with CONFIG_NO_HZ_FULL)",
    ));
    verdicts
}

fn model(cpu: &CpuFacts) -> Verdict {
    let words: Vec<&str> = [&cpu.vendor, &cpu.model].into_iter().flatten().map(String::as_str).collect();
    let found = if words.is_empty() { UNKNOWN.to_owned() } else { words.join(", ") };
    Line::new(Group::Cpu, "processor", "the guest's CPU model").info(found)
}

fn virtualization(facts: &Facts) -> Verdict {
    // A KVM that is there, in reach of this user or not, has something to run on.
    let has_kvm = facts.kvm.device == Attempt::Works || facts.misc_devices.contains_key("kvm");
    let line = Line::new(Group::Cpu, "virtualization", "guest kernels at full speed");
    match facts.cpu.virtualization {
        Some(Virtualization::Vmx) => line.ok("hardware: VT-x (vmx)"),
        Some(Virtualization::Svm) => line.ok("hardware: AMD-V (svm)"),
        None if has_kvm => line.degraded(
            format!("software: neither vmx nor svm ({})", facts.kvm.vendor_modules.join(" ")),
            "use a host with VT-x or AMD-V; in a VM, enable nested virtualization in the hypervisor below",
        ),
        None => line.missing(
            "neither vmx nor svm",
            "enable VT-x or AMD-V in the firmware, or nested virtualization in the hypervisor below",
        ),
    }
}

fn online(cpu: &CpuFacts) -> Verdict {
    let line = Line::new(Group::Cpu, "CPUs online", "vCPU and I/O threads");
    let Some(online) = &cpu.online else {
        return line.info(UNKNOWN);
    };
    match &cpu.present {
        Some(present) if present.len() > online.len() => {
            line.choice(format!("{} of {} ({online})", online.len(), present.len()), format!("chcpu -e {present}"))
        }
        _ => line.ok(format!("{} ({online})", online.len())),
    }
}

fn node_count(nodes: &[NodeFacts]) -> Verdict {
    let line = Line::new(Group::Cpu, "NUMA nodes", "memory and CPUs side by side");
    match nodes {
        [] => line.info(UNKNOWN),
        [_] => line.ok("1: every placement is local"),
        nodes => line.ok(nodes.len().to_string()),
    }
}

fn node(node: &NodeFacts) -> Verdict {
    let line = Line::new(Group::Cpu, format!("node {}", node.id), "where a VM can be placed");
    let cpus = match &node.cpus {
        none if none.is_empty() => "no CPUs".to_owned(),
        cpus => format!("CPUs {cpus}"),
    };
    match (node.total_bytes, node.free_bytes) {
        (Some(0), _) => line.info(format!("{cpus}, no memory")),
        (Some(total), Some(free)) => line.info(format!("{cpus}, {}, {} free", size(total), size(free))),
        _ => line.info(cpus),
    }
}

fn set_aside(name: &str, purpose: &'static str, cpus: Option<&IdList>, fix: &str) -> Verdict {
    let line = Line::new(Group::Cpu, name, purpose);
    match cpus {
        Some(cpus) if !cpus.is_empty() => line.ok(format!("{} ({cpus})", cpus.len())),
        Some(_) => line.choice("none", fix),
        None => line.choice("not in this kernel", fix),
    }
}
