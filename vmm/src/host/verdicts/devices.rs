//! The disks and network interfaces asked about.

use super::{Group, Line, Verdict};
use crate::host::devices::{DiskFacts, IrqFacts, NetFacts};
use crate::host::facts::{CpuFacts, Facts};
use crate::host::id_list::IdList;

/// Fewer requests than one guest's queue holds (virtio-blk's 256 is four times this) wait in the kernel's stead.
const QUEUE_REQUESTS_LEAST: u64 = 64;

pub(super) fn judge(facts: &Facts) -> Vec<Verdict> {
    let disks = facts.io.disks.iter().flat_map(|asked| disk(asked, &facts.cpu));
    let nets = facts.io.nets.iter().flat_map(|asked| net(asked, &facts.cpu));
    disks.chain(nets).collect()
}

fn disk(disk: &DiskFacts, cpu: &CpuFacts) -> Vec<Verdict> {
    let name = format!("disk {}", disk.path.display());
    let Some(device) = &disk.device else {
        return vec![Line::new(Group::Io, name, "a guest's disk").info("no block device is behind it")];
    };
    vec![
        scheduler(disk, &name, device),
        queue(disk, &name, device),
        interrupts(&name, &Hung { node: disk.node, irqs: &disk.irqs }, cpu),
    ]
}

fn scheduler(disk: &DiskFacts, name: &str, device: &str) -> Verdict {
    let line = Line::new(Group::Io, format!("{name} scheduler"), "what orders requests that guests ordered already");
    let fix = || format!("echo none > /sys/block/{device}/queue/scheduler");
    match disk.scheduler.as_deref() {
        None => line.info(format!("{device} has none to choose")),
        Some("none") => line.ok(format!("{device}: none")),
        // Where heads move, ordering pays; a virtual disk that says they do does not know.
        Some(other) if disk.rotational == Some(1) => line.choice(format!("{device}: {other}, rotational"), fix()),
        Some(other) => line.degraded(format!("{device}: {other}"), fix()),
    }
}

fn queue(disk: &DiskFacts, name: &str, device: &str) -> Verdict {
    let line = Line::new(Group::Io, format!("{name} queue"), "requests under way at once");
    let Some(requests) = disk.queue_requests else {
        return line.info(format!("{device} has none"));
    };
    let device_requests = disk.device_requests.map(|depth| format!(", the device takes {depth}")).unwrap_or_default();
    let found = format!("{device}: {requests} requests, hardware queues: {}{device_requests}", disk.queues);
    if requests < QUEUE_REQUESTS_LEAST {
        line.degraded(found, format!("echo {QUEUE_REQUESTS_LEAST} > /sys/block/{device}/queue/nr_requests"))
    } else {
        line.ok(found)
    }
}

fn net(net: &NetFacts, cpu: &CpuFacts) -> Vec<Verdict> {
    let name = format!("net {}", net.name);
    let line = Line::new(Group::Io, format!("{name} link"), "where guests' frames go");
    let state = net.state.as_deref().unwrap_or("unknown");
    let mtu = net.mtu_bytes.map(|bytes| format!(", MTU {bytes}")).unwrap_or_default();
    let found = format!("{state}{mtu}, receive queues: {}, transmit queues: {}", net.rx_queues, net.tx_queues);
    let link =
        if state == "down" { line.degraded(found, format!("ip link set {} up", net.name)) } else { line.ok(found) };
    vec![link, interrupts(&name, &Hung { node: net.node, irqs: &net.irqs }, cpu)]
}

/// Where a device hangs, and its interrupts.
struct Hung<'a> {
    node: Option<u16>,
    irqs: &'a [IrqFacts],
}

fn interrupts(name: &str, device: &Hung, cpu: &CpuFacts) -> Verdict {
    let line = Line::new(Group::Io, format!("{name} interrupts"), "away from CPUs set aside, near the device");
    if device.irqs.is_empty() {
        return line.info("none of its own");
    }
    let none = IdList::default();
    let isolated = cpu.isolated.as_ref().unwrap_or(&none);
    let near = device.node.and_then(|id| cpu.nodes.iter().find(|node| node.id == id)).map(|node| &node.cpus);
    let taking: IdList = device.irqs.iter().flat_map(|irq| irq.effective.iter()).collect();
    let count = device.irqs.len();
    let node = device.node.map(|node| format!(", device on node {node}")).unwrap_or_default();
    let disturbed = |irq: &&IrqFacts| !irq.effective.and(isolated).is_empty();
    let away = |irq: &&IrqFacts| near.is_some_and(|near| !near.is_empty() && irq.effective.and(near).is_empty());
    let bad: Vec<&IrqFacts> = device.irqs.iter().filter(|irq| disturbed(irq) || away(irq)).collect();
    if bad.is_empty() {
        return line.ok(format!("{count} on CPUs {taking}{node}"));
    }
    let wrong = match (bad.iter().any(disturbed), bad.iter().any(away)) {
        (true, false) => "on isolated CPUs",
        (false, _) => "on another node's CPUs",
        (true, true) => "on isolated CPUs or another node's",
    };
    let found = format!("{} of {count} {wrong} (CPUs {taking}{node})", bad.len());
    // NVMe's queues have interrupts whose affinity the kernel alone sets.
    if bad.iter().any(|irq| irq.name.starts_with("nvme")) {
        return line.degraded(found, format!("boot with isolcpus=managed_irq,domain,{isolated}"));
    }
    let online = cpu.online.as_ref().unwrap_or(&none);
    let housekeeping = online.without(isolated);
    let close = near.map(|near| near.and(&housekeeping)).filter(|cpus| !cpus.is_empty());
    let numbers: Vec<String> = bad.iter().map(|irq| irq.irq.to_string()).collect();
    let cpus = close.unwrap_or(housekeeping);
    let fix = format!("for i in {}; do echo {cpus} > /proc/irq/$i/smp_affinity_list; done", numbers.join(" "));
    line.degraded(found, fix)
}
