//! Changes to the devices of a machine that is in use. The machine takes them first; then its description follows, so that
//! who reads that, and a restart of the guest, find what is.

use super::command::{CommandError, DiskChange, NetChange};
use crate::config::{DiskSource, VmConfig};
use crate::machine::{DiskChangeError, Machine, NetChangeError};

/// Changes a disk, and says in what.
pub(super) fn disk(
    machine: &Machine,
    config: &mut VmConfig,
    id: &str,
    change: DiskChange,
) -> Result<&'static str, CommandError> {
    let disk = config.disks.iter_mut().find(|disk| disk.id == id);
    let disk = disk.ok_or_else(|| DiskChangeError::Unknown(id.to_owned()))?;
    match change {
        DiskChange::Resize(bytes) => {
            machine.resize_disk(id, bytes)?;
            Ok("size")
        }
        DiskChange::Part { path, limits } => {
            let mut what = "limits";
            if let Some(path) = path {
                machine.replace_disk(id, Some(&path))?;
                disk.source = DiskSource::Path(path);
                what = "path";
            }
            if let Some(limits) = limits {
                let mut changed = disk.tuning.limits;
                changed.total = limits.onto(changed.total);
                machine.limit_disk(id, changed)?;
                disk.tuning.limits = changed;
            }
            Ok(what)
        }
    }
}

/// Changes a network, and says in what.
pub(super) fn net(
    machine: &Machine,
    config: &mut VmConfig,
    id: &str,
    change: NetChange,
) -> Result<&'static str, CommandError> {
    let net = config.nets.iter_mut().find(|net| net.id == id);
    let net = net.ok_or_else(|| NetChangeError::Unknown(id.to_owned()))?;
    match change {
        NetChange::Link(link) => {
            machine.set_link(id, link)?;
            Ok("link")
        }
        NetChange::Limits { receive, transmit } => {
            let mut changed = net.tuning.limits;
            changed.inward = receive.unwrap_or_default().onto(changed.inward);
            changed.outward = transmit.unwrap_or_default().onto(changed.outward);
            machine.limit_net(id, changed)?;
            net.tuning.limits = changed;
            Ok("limits")
        }
    }
}
