//! What husk itself is held to. A guest cannot have what husk may not take.

use super::{Group, Line, UNKNOWN, Verdict, size};
use crate::host::facts::Facts;
use crate::host::id_list::IdList;
use crate::host::limits::{IoLimit, Limit};

/// What `husk run` gives a guest that asks for nothing else.
const DEFAULT_GUEST_BYTES: u64 = 512 << 20;

pub(super) fn judge(facts: &Facts) -> Vec<Verdict> {
    let limits = &facts.limits;
    let mut verdicts = vec![affinity(facts), cpuset(facts), memory_nodes(facts), cpu_time(limits.cpu_millis.as_ref())];
    verdicts.push(memory(limits.memory_bytes.as_ref()));
    for (name, limit) in [("memory soft limit", &limits.memory_high_bytes), ("swap limit", &limits.swap_bytes)] {
        if let Some(limit) = limit {
            verdicts.push(Line::new(Group::Limits, name, "guest memory").choice(size(limit.value), lift(limit)));
        }
    }
    let reserved = limits.hugetlb_reserved.iter().map(|limit| (limit, "reservation limit"));
    for (hugetlb, what) in limits.hugetlb.iter().map(|limit| (limit, "limit")).chain(reserved) {
        let name = format!("HugePages {} {what}", size(hugetlb.page_bytes));
        let line = Line::new(Group::Limits, name, "guest memory that is never split");
        let found = size(hugetlb.limit.value);
        verdicts.push(if hugetlb.limit.value < hugetlb.page_bytes {
            line.missing(found, lift(&hugetlb.limit))
        } else {
            line.choice(found, lift(&hugetlb.limit))
        });
    }
    let line = Line::new(Group::Limits, "locked memory limit", "guest memory that is locked");
    verdicts.push(match (limits.memlock_bytes, limits.ipc_lock) {
        (None, _) => line.ok("none"),
        (Some(bytes), Some(true)) => line.ok(format!("{}, and husk is not held to it (CAP_IPC_LOCK)", size(bytes))),
        (Some(bytes), _) => line.choice(size(bytes), "ulimit -l unlimited, or give husk CAP_IPC_LOCK"),
    });
    let line = Line::new(Group::Limits, "tasks limit", "vCPU and I/O threads");
    verdicts.push(match &limits.tasks {
        None => line.ok("none"),
        Some(limit) => line.choice(limit.value.to_string(), lift(limit)),
    });
    if limits.io.is_empty() {
        verdicts.push(Line::new(Group::Limits, "disk limits", "guests' disks").ok("none"));
    }
    verdicts.extend(limits.io.iter().map(|limit| {
        let name = format!("disk limits {} of {}", limit.device, limit.file);
        Line::new(Group::Limits, name, "guests' disks").choice(&limit.limits, lift_io(limit))
    }));
    verdicts
}

/// What the file takes for "no limit".
fn lift(limit: &Limit) -> String {
    let none = if [".max", ".high"].iter().any(|name| limit.file.ends_with(name)) { "max" } else { "-1" };
    format!("echo {none} > {}", limit.file)
}

/// Version 1 takes 0 for "no limit".
fn lift_io(IoLimit { device, limits, file }: &IoLimit) -> String {
    if !file.ends_with(".max") {
        return format!("echo {device} 0 > {file}");
    }
    let lifted = limits.split(' ').filter_map(|limit| Some(format!("{}=max", limit.split_once('=')?.0)));
    format!("echo {device} {} > {file}", lifted.collect::<Vec<_>>().join(" "))
}

/// CPUs that threads start on. Those that `isolcpus=` sets aside are never among them and can be had all the same.
fn affinity(facts: &Facts) -> Verdict {
    let line = Line::new(Group::Limits, "affinity", "CPUs of threads that are placed nowhere");
    let (Some(online), Some(allowed)) = (&facts.cpu.online, &facts.limits.cpus_allowed) else {
        return line.info(UNKNOWN);
    };
    let isolated = facts.cpu.isolated.clone().unwrap_or_default();
    let found = format!("{} of {} ({allowed})", allowed.len(), online.len());
    if online.without(&isolated).without(allowed).is_empty() {
        line.ok(found)
    } else {
        line.choice(found, format!("taskset -c {} husk ...", online.without(&isolated)))
    }
}

/// CPUs that threads can be put on at all.
fn cpuset(facts: &Facts) -> Verdict {
    let line = Line::new(Group::Limits, "cpuset", "CPUs that vCPUs can be placed on");
    match (&facts.cpu.online, &facts.limits.cpuset_cpus) {
        (Some(online), Some(cpus)) if !online.without(cpus).is_empty() => {
            let fix = format!("write {online} into cpuset.cpus of husk's control group and those above it");
            line.choice(format!("{} of {} ({cpus})", cpus.len(), online.len()), fix)
        }
        (Some(online), Some(_) | None) => line.ok(format!("all {} ({online})", online.len())),
        (None, _) => line.info(UNKNOWN),
    }
}

fn memory_nodes(facts: &Facts) -> Verdict {
    let line = Line::new(Group::Limits, "memory nodes", "nodes that memory can be bound to");
    let nodes: IdList = facts.cpu.nodes.iter().map(|node| node.id).collect();
    let allowed = facts.limits.cpuset_mems.as_ref().or(facts.limits.mems_allowed.as_ref());
    match allowed {
        Some(allowed) if !nodes.without(allowed).is_empty() => {
            let fix = format!("write {nodes} into cpuset.mems of husk's control group and those above it");
            line.choice(format!("{} of {} ({allowed})", allowed.len(), nodes.len()), fix)
        }
        _ if nodes.is_empty() => line.info(UNKNOWN),
        _ => line.ok(format!("all {} ({nodes})", nodes.len())),
    }
}

fn cpu_time(limit: Option<&Limit>) -> Verdict {
    let line = Line::new(Group::Limits, "CPU time limit", "vCPUs that run when the guest wants");
    match limit {
        None => line.ok("none"),
        Some(limit) => {
            let (whole, rest) = (limit.value / 1000, limit.value % 1000);
            line.degraded(format!("{whole}.{rest:03} CPUs"), lift(limit))
        }
    }
}

fn memory(limit: Option<&Limit>) -> Verdict {
    let line = Line::new(Group::Limits, "memory limit", "guest memory");
    match limit {
        None => line.ok("none"),
        Some(limit) if limit.value < DEFAULT_GUEST_BYTES => line.degraded(size(limit.value), lift(limit)),
        Some(limit) => line.choice(size(limit.value), lift(limit)),
    }
}
