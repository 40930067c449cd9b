//! What keeps a VM apart from the host.

use super::{Group, Line, Verdict};
use crate::host::facts::{Attempt, IsolationFacts};

/// The controllers that bound a VM, in the unified hierarchy's names.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

pub(super) fn judge(isolation: &IsolationFacts) -> Vec<Verdict> {
    vec![cgroup(isolation), seccomp(isolation), landlock(isolation)]
}

fn cgroup(isolation: &IsolationFacts) -> Verdict {
    let line = Line::new(Group::Isolation, "cgroups", "limits on what a VM takes");
    const UNIFIED: &str = "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all";
    match &isolation.cgroup_v2 {
        None if isolation.cgroup_v1.is_empty() => line.missing("not mounted", "mount -t cgroup2 none /sys/fs/cgroup"),
        None => line.degraded(format!("version 1: {}", isolation.cgroup_v1.join(" ")), UNIFIED),
        Some(v2) if !isolation.cgroup_v1.is_empty() => {
            let v1 = isolation.cgroup_v1.join(" ");
            let unified = v2.controllers.join(" ");
            line.degraded(format!("version 1: {v1}; version 2: {unified}"), UNIFIED)
        }
        Some(v2) => {
            let has = |name: &str| v2.controllers.iter().any(|controller| controller == name);
            let absent: Vec<_> = CONTROLLERS.into_iter().filter(|name| !has(name)).collect();
            let found = format!("version 2: {}", v2.controllers.join(" "));
            if absent.is_empty() {
                line.ok(found)
            } else {
                let fix = format!("use a kernel with the controllers {}", absent.join(" "));
                line.degraded(found, fix)
            }
        }
    }
}

fn seccomp(isolation: &IsolationFacts) -> Verdict {
    let line = Line::new(Group::Isolation, "seccomp", "system calls that a thread may make");
    const FILTERS: &str = "use a kernel with CONFIG_SECCOMP_FILTER";
    match &isolation.seccomp {
        None => line.missing("not in this kernel", FILTERS),
        Some(seccomp) if seccomp.actions.is_empty() => line.missing("no filters in this kernel", FILTERS),
        Some(seccomp) if !seccomp.actions.iter().any(|action| action == "kill_process") => {
            line.degraded("no kill_process action", "use Linux 4.14 or newer")
        }
        Some(seccomp) if seccomp.mode == 0 => line.ok("filters"),
        Some(_) => line.ok("filters; husk is already under one"),
    }
}

fn landlock(isolation: &IsolationFacts) -> Verdict {
    let line = Line::new(Group::Isolation, "landlock", "files that husk may reach");
    let fix = match (isolation.landlock, isolation.landlock_abi) {
        (Attempt::Works, Some(abi)) => return line.ok(format!("ABI {abi}")),
        (Attempt::Fails { errno: libc::EOPNOTSUPP }, _) => "boot with landlock among lsm=",
        (Attempt::Fails { errno: libc::ENOSYS }, _) => "use a kernel with CONFIG_SECURITY_LANDLOCK",
        _ => "allow landlock_create_ruleset in the seccomp filter that husk is started under",
    };
    line.missing(isolation.landlock.describe(), fix)
}
