//! Memory and how it can be had.

use super::{Group, Line, UNKNOWN, Verdict, size};
use crate::host::facts::{Attempt, MemoryFacts, NodeFacts, PoolFacts};

/// What `husk run` gives a guest that asks for nothing else.
const DEFAULT_GUEST_BYTES: u64 = 512 << 20;

pub(super) fn judge(memory: &MemoryFacts, nodes: &[NodeFacts]) -> Vec<Verdict> {
    let mut verdicts = vec![total(memory)];
    if memory.pools.is_empty() {
        let line = Line::new(Group::Memory, "HugePages", "guest memory that is never split");
        verdicts.push(line.missing("not in this kernel", "use a kernel with CONFIG_HUGETLBFS"));
    }
    verdicts.extend(memory.pools.iter().map(|whole| pool(whole, nodes)));
    verdicts.extend([
        thp(memory),
        thp_defrag(memory),
        thp_sizes(memory),
        shmem_thp(memory),
        memfd(memory),
        userfaultfd(memory),
        overcommit(memory),
        swap(memory),
        ksm(memory),
    ]);
    verdicts
}

fn total(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "memory", "guest memory");
    let (Some(total), Some(available)) = (memory.total_bytes, memory.available_bytes) else {
        return line.info(UNKNOWN);
    };
    let found = format!("{}, {} available", size(total), size(available));
    if available < DEFAULT_GUEST_BYTES {
        line.degraded(found, "stop what uses it, or give guests less than the default (--memory 128M)")
    } else {
        line.ok(found)
    }
}

fn pool(whole: &PoolFacts, nodes: &[NodeFacts]) -> Verdict {
    let kib = whole.page_bytes / 1024;
    let line =
        Line::new(Group::Memory, format!("HugePages {}", size(whole.page_bytes)), "guest memory that is never split");
    let shares = || {
        nodes.iter().filter_map(|node| {
            let share = node.pools.iter().find(|pool| pool.page_bytes == whole.page_bytes)?;
            Some((node, share))
        })
    };
    let mut found = format!("{} of {} free", whole.available(), whole.total);
    if whole.total > 0 && shares().count() > 1 {
        let shares: Vec<_> =
            shares().map(|(node, share)| format!("node {}: {} of {}", node.id, share.free, share.total)).collect();
        found = format!("{found} ({})", shares.join(", "));
    }
    if let Some(reserved) = whole.reserved.filter(|pages| *pages > 0) {
        found = format!("{found}, {reserved} reserved");
    }
    if let Some(surplus) = whole.surplus.filter(|pages| *pages > 0) {
        found = format!("{found}, {surplus} of them surplus");
    }
    let grows = whole.overcommit.filter(|pages| *pages > 0);
    if let Some(pages) = grows {
        found = format!("{found}, grows by {pages} on demand");
    }
    let bare = shares().find(|(node, share)| share.total == 0 && node.total_bytes.is_some_and(|bytes| bytes > 0));
    // Enough for one guest more.
    let more = DEFAULT_GUEST_BYTES.div_ceil(whole.page_bytes.max(1));
    let grown = whole.total.saturating_add(more);
    let everywhere = format!("echo {grown} > /sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages");
    match bare {
        _ if whole.total == 0 && grows.is_none() => line.missing(found, everywhere),
        _ if whole.available() == 0 => line.degraded(found, everywhere),
        Some((NodeFacts { id, .. }, _)) => {
            let folder = format!("/sys/devices/system/node/node{id}/hugepages/hugepages-{kib}kB");
            line.degraded(found, format!("echo {more} > {folder}/nr_hugepages"))
        }
        None => line.ok(found),
    }
}

fn thp(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "THP", "large pages for anonymous guest memory");
    match memory.thp.as_deref() {
        Some(mode @ ("always" | "madvise")) => line.ok(mode),
        Some(mode) => line.degraded(mode, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"),
        None => line.degraded("not in this kernel", "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE"),
    }
}

fn thp_defrag(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "THP defrag", "first touches that do not wait for compaction");
    const FIX: &str = "echo defer+madvise > /sys/kernel/mm/transparent_hugepage/defrag";
    match memory.thp_defrag.as_deref() {
        None => line.info(UNKNOWN),
        Some("always") => line.degraded("always: any process's fault may wait", FIX),
        Some("never") => line.choice("never: large pages only when some are free", FIX),
        Some(mode) => line.ok(mode),
    }
}

fn thp_sizes(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "THP sizes", "pages between 4 KiB and the largest");
    let used: Vec<String> = (memory.thp_sizes.iter().filter(|(_, mode)| mode.as_str() != "never"))
        .map(|(kib, mode)| format!("{}: {mode}", size(kib.saturating_mul(1024))))
        .collect();
    match used.as_slice() {
        _ if memory.thp_sizes.is_empty() => line.info(UNKNOWN),
        [] => line.info("all never"),
        used => line.info(used.join(", ")),
    }
}

fn shmem_thp(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "THP of shared memory", "large pages for `--memory SIZE,shared`");
    match memory.shmem_thp.as_deref() {
        Some(mode @ ("always" | "within_size" | "advise" | "force")) => line.ok(mode),
        Some(mode) => line.degraded(mode, "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled"),
        None => line.degraded("not in this kernel", "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE"),
    }
}

fn memfd(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "memfd", "shared guest memory, the demo's disk");
    match memory.memfd {
        Attempt::Works => line.ok("works"),
        failure => line.missing(failure.describe(), "use a newer kernel, or allow memfd_create"),
    }
}

fn userfaultfd(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "userfaultfd", "guest memory loaded on first touch");
    let fix = match (memory.userfaultfd, memory.unprivileged_userfaultfd) {
        (Attempt::Works, _) => return line.ok("works"),
        (Attempt::Fails { errno: libc::EPERM }, Some(0)) => "sysctl vm.unprivileged_userfaultfd=1",
        (Attempt::Fails { errno: libc::ENOSYS }, _) => "use a kernel with CONFIG_USERFAULTFD",
        _ => "allow the userfaultfd system call in the seccomp filter that husk is started under",
    };
    line.missing(memory.userfaultfd.describe(), fix)
}

fn overcommit(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "overcommit", "promising guests more than there is");
    match memory.overcommit {
        Some(0) => line.ok("0: heuristic"),
        Some(1) => line.ok("1: always"),
        Some(2) => line.degraded("2: strict, all of a guest's memory counts", "sysctl vm.overcommit_memory=0"),
        Some(mode) => line.info(mode.to_string()),
        None => line.info(UNKNOWN),
    }
}

fn swap(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "swap", "none keeps guest memory resident");
    match (memory.swap_total_bytes, memory.swap_free_bytes) {
        (Some(0), _) => line.ok("none"),
        (Some(total), Some(free)) => {
            let used = total.saturating_sub(free);
            line.choice(format!("{}, {} used", size(total), size(used)), "swapoff -a")
        }
        _ => line.info(UNKNOWN),
    }
}

fn ksm(memory: &MemoryFacts) -> Verdict {
    let line = Line::new(Group::Memory, "KSM", "off keeps tenants from telling of each other");
    match &memory.ksm {
        None => line.ok("not in this kernel"),
        Some(ksm) if ksm.run == 1 => {
            let across = if ksm.merge_across_nodes == Some(1) { ", also of other nodes" } else { "" };
            let shared = ksm.pages_sharing.unwrap_or(0);
            line.choice(format!("on, {shared} pages shared{across}"), "echo 2 > /sys/kernel/mm/ksm/run")
        }
        Some(_) => line.ok("off"),
    }
}
