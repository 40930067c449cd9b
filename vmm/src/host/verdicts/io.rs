//! What disks and networks are served with.

use super::{Group, Line, Verdict};
use crate::host::facts::{Attempt, Facts, IoFacts};

pub(super) fn judge(facts: &Facts) -> Vec<Verdict> {
    let io = &facts.io;
    let tun = Device { path: "/dev/net/tun", misc: "tun", module: "tun", option: "CONFIG_TUN" };
    let vhost_net =
        Device { path: "/dev/vhost-net", misc: "vhost-net", module: "vhost_net", option: "CONFIG_VHOST_NET" };
    let vhost_vsock =
        Device { path: "/dev/vhost-vsock", misc: "vhost-vsock", module: "vhost_vsock", option: "CONFIG_VHOST_VSOCK" };
    let judge = |device: Device, purpose, opening: Attempt, absent: fn(Line, String, String) -> Verdict| {
        let line = Line::new(Group::Io, device.path, purpose);
        match opening {
            Attempt::Works => line.ok("opens"),
            Attempt::Fails { errno } => absent(line, opening.describe(), device.fix(errno, facts)),
        }
    };
    vec![
        io_uring(io),
        judge(tun, "networks over tap", io.tun, Line::missing),
        judge(vhost_net, "network queues served in the kernel", io.vhost_net, Line::degraded),
        judge(vhost_vsock, "vsock served in the kernel", io.vhost_vsock, Line::degraded),
    ]
}

/// A device that is a way into a driver.
struct Device {
    path: &'static str,
    /// Its name in /proc/misc.
    misc: &'static str,
    module: &'static str,
    option: &'static str,
}

impl Device {
    fn fix(&self, errno: i32, facts: &Facts) -> String {
        let Self { path, misc, module, option } = self;
        match errno {
            libc::EACCES => format!("setfacl -m u:$USER:rw {path}"),
            libc::EPERM => format!("allow {path} in this process's device cgroup"),
            libc::ENOENT | libc::ENODEV | libc::ENXIO => {
                let driver = || match facts.loadable_modules {
                    true => format!("modprobe {module}"),
                    false => format!("use a kernel with {option}"),
                };
                facts.mknod(misc, path).unwrap_or_else(driver)
            }
            _ => format!("dmesg | grep -i {module}"),
        }
    }
}

fn io_uring(io: &IoFacts) -> Verdict {
    let line = Line::new(Group::Io, "io_uring", "many disk requests at once");
    let fix = match (io.io_uring, io.io_uring_disabled) {
        (Attempt::Works, _) => return line.ok("works"),
        (Attempt::Fails { errno: libc::EPERM }, Some(1 | 2)) => "sysctl kernel.io_uring_disabled=0",
        (Attempt::Fails { errno: libc::ENOSYS }, _) => "use a kernel with CONFIG_IO_URING",
        (Attempt::Fails { errno: libc::ENOMEM }, _) => "raise the limit on locked memory (ulimit -l)",
        _ => "allow io_uring_setup in the seccomp filter that husk is started under",
    };
    line.degraded(io.io_uring.describe(), fix)
}
