//! Processors and nodes.

use super::{Group, Line, UNKNOWN, Verdict, size};
use crate::host::facts::{Attempt, CpuFacts, Facts, NodeFacts, Virtualization};
use crate::host::id_list::IdList;

pub(super) fn judge(facts: &Facts) -> Vec<Verdict> {
    let cpu = &facts.cpu;
    let mut verdicts = vec![model(cpu), virtualization(facts), online(cpu), smt(cpu), l3(&cpu.l3), governor(cpu)];
    verdicts.push(node_count(&cpu.nodes));
    // A host of one node is described by its memory's and its CPUs' own lines.
    if cpu.nodes.len() > 1 {
        verdicts.extend(cpu.nodes.iter().map(node));
        verdicts.push(distances(&cpu.nodes));
        verdicts.push(numa_balancing(cpu.numa_balancing));
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

fn smt(cpu: &CpuFacts) -> Verdict {
    let line = Line::new(Group::Cpu, "SMT", "vCPUs of two VMs on one core's threads");
    match cpu.cores.iter().map(IdList::len).max() {
        None => line.info(UNKNOWN),
        Some(1) => line.ok(format!("1 thread a core, cores: {}", cpu.cores.len())),
        Some(threads) => line.choice(
            format!("{threads} threads a core, cores: {}", cpu.cores.len()),
            "echo off > /sys/devices/system/cpu/smt/control",
        ),
    }
}

fn l3(domains: &[IdList]) -> Verdict {
    let line = Line::new(Group::Cpu, "L3 domains", "CPUs that share a cache");
    let sizes: Vec<usize> = domains.iter().map(IdList::len).collect();
    match (sizes.iter().min(), sizes.iter().max()) {
        (Some(least), Some(most)) if least == most => line.info(format!("{} of {least} CPUs", domains.len())),
        (Some(least), Some(most)) => line.info(format!("{} of {least} to {most} CPUs", domains.len())),
        _ => line.info(UNKNOWN),
    }
}

fn governor(cpu: &CpuFacts) -> Verdict {
    let line = Line::new(Group::Cpu, "governor", "CPUs at full speed when a vCPU wakes");
    let mut slow = cpu.governors.iter().filter(|(governor, _)| governor.as_str() != "performance").peekable();
    if cpu.governors.is_empty() {
        line.info("not the kernel's to choose")
    } else if slow.peek().is_none() {
        line.ok("performance")
    } else {
        let found: Vec<String> = slow.map(|(governor, cpus)| format!("{governor} (CPUs {cpus})")).collect();
        let fix = "echo performance | tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor";
        line.degraded(found.join(", "), fix)
    }
}

fn distances(nodes: &[NodeFacts]) -> Verdict {
    let line = Line::new(Group::Cpu, "NUMA distances", "which other node is nearest");
    if nodes.iter().any(|node| node.distances.is_empty()) {
        return line.info(UNKNOWN);
    }
    let row = |node: &NodeFacts| {
        let words: Vec<String> = node.distances.values().map(u16::to_string).collect();
        format!("{}: {}", node.id, words.join(" "))
    };
    line.info(nodes.iter().map(row).collect::<Vec<_>>().join("; "))
}

fn numa_balancing(mode: Option<u64>) -> Verdict {
    let line = Line::new(Group::Cpu, "NUMA balancing", "pages that stay where they are");
    match mode {
        None => line.ok("not in this kernel"),
        Some(0) => line.ok("off"),
        Some(_) => line.choice("on: pages of VMs that are bound nowhere move", "sysctl kernel.numa_balancing=0"),
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
        (Some(0), _) if node.cpus.is_empty() => line.info("no CPUs, no memory"),
        (Some(0), _) => line.degraded(
            format!("{cpus}, no memory"),
            "put memory into its channels; until then vCPUs there have another node's memory",
        ),
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
