//! Changes to the devices of a machine that is in use. The machine takes them first; then its description follows, so that
//! who reads that, and a restart of the guest, find what is.

use super::command::{CommandError, DiskChange};
use crate::config::{DiskSource, VmConfig};
use crate::machine::{DiskChangeError, Machine};

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
