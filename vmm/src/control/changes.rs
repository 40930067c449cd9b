//! Changes to the devices of a machine that is in use. The machine takes them first; then its description follows, so that
//! who reads that, and a restart of the guest, find what is.

use std::time::Duration;

use devices::virtio::balloon::{BALLOON_PAGE_BYTES, HintingStatus};

use super::command::{BalloonAsk, CommandError, HotplugAsk, NetChange, Reply};
use crate::config::firecracker::balloon::{Balloon, BalloonHintingStatus, BalloonStats};
use crate::config::firecracker::bodies::RateLimiter;
use crate::config::firecracker::hotplug::MemoryHotplugStatus;
use crate::config::{DiskSource, LimiterConfig, MIB, VmConfig};
use crate::machine::{DiskChangeError, Machine, NetChangeError, OpenedFile};

/// Puts what was opened behind a disk.
pub(super) fn disk_file(
    machine: &Machine,
    config: &mut VmConfig,
    id: &str,
    file: OpenedFile,
) -> Result<(), DiskChangeError> {
    let disk = config.disks.iter_mut().find(|disk| disk.id == id);
    let disk = disk.ok_or_else(|| DiskChangeError::Unknown(id.to_owned()))?;
    let path = file.path().to_owned();
    machine.replace_disk(id, file)?;
    disk.source = DiskSource::Path(path);
    Ok(())
}

/// Holds a disk to what is there of these limits.
pub(super) fn disk_limits(
    machine: &Machine,
    config: &mut VmConfig,
    id: &str,
    limits: Option<RateLimiter>,
) -> Result<(), CommandError> {
    let disk = config.disks.iter().find(|disk| disk.id == id);
    let mut changed = disk.ok_or_else(|| DiskChangeError::Unknown(id.to_owned()))?.tuning.limits;
    let Some(limits) = limits else { return Ok(()) };
    changed.total = limits.onto(changed.total);
    self::limits(machine, config, id, changed)
}

/// Holds a disk or a network to other limits. Those of a group are one set of buckets, so all of it has them.
pub(super) fn limits(
    machine: &Machine,
    config: &mut VmConfig,
    id: &str,
    limits: LimiterConfig,
) -> Result<(), CommandError> {
    let disk = config.disks.iter_mut().find(|disk| disk.id == id);
    let net = config.nets.iter_mut().find(|net| net.id == id);
    let (own, group) = match (disk, net) {
        (Some(disk), _) => {
            machine.limit_disk(id, limits)?;
            (&mut disk.tuning.limits, disk.tuning.limit_group.clone())
        }
        (None, Some(net)) => {
            machine.limit_net(id, limits)?;
            (&mut net.tuning.limits, net.tuning.limit_group.clone())
        }
        (None, None) => return Err(CommandError::NothingToLimit(id.to_owned())),
    };
    *own = limits;
    if let Some(group) = group {
        config.share_limits(&group, limits);
    }
    Ok(())
}

/// Looks at the balloon, or changes it; whether that was a change.
pub(super) fn balloon(
    machine: &Machine,
    config: &mut VmConfig,
    ask: BalloonAsk,
) -> Result<(Reply, Option<&'static str>), CommandError> {
    let (Some(control), Some(described)) = (machine.balloon(), &mut config.balloon) else {
        return Err(CommandError::NoBalloon);
    };
    Ok(match ask {
        BalloonAsk::Read => (Reply::Balloon(Balloon::describe(described)), None),
        BalloonAsk::Statistics => {
            let told = control.statistics()?;
            let statistics = BalloonStats::new(control.target_pages(), control.actual_pages(), told.iter());
            (Reply::BalloonStatistics(Box::new(statistics)), None)
        }
        BalloonAsk::Hinting => {
            let HintingStatus { host_command: host_cmd, guest_command: guest_cmd } = control.hinting()?;
            (Reply::BalloonHinting(BalloonHintingStatus { host_cmd, guest_cmd }), None)
        }
        BalloonAsk::Target { mib } => {
            let target_bytes = u64::from(mib) * MIB;
            control.set_target(target_bytes / BALLOON_PAGE_BYTES)?;
            described.target_bytes = target_bytes;
            (Reply::Done, Some("size"))
        }
        BalloonAsk::Interval { seconds } => {
            let interval = Duration::from_secs(seconds.into());
            control.set_interval(interval)?;
            described.statistics = Some(interval);
            (Reply::Done, Some("statistics"))
        }
        BalloonAsk::StartHinting { acknowledge } => {
            control.start_hinting(acknowledge)?;
            (Reply::Done, Some("hinting"))
        }
        BalloonAsk::StopHinting => {
            control.stop_hinting()?;
            (Reply::Done, Some("hinting"))
        }
    })
}

/// Looks at the memory that can be plugged, or asks the guest to have so much plugged; whether that was a change.
pub(super) fn hotplug(
    machine: &Machine,
    config: &mut VmConfig,
    ask: HotplugAsk,
) -> Result<(Reply, Option<&'static str>), CommandError> {
    let (Some(control), Some(described)) = (machine.pluggable_memory(), &mut config.hotplug) else {
        return Err(CommandError::NoHotplug);
    };
    Ok(match ask {
        HotplugAsk::Read => (Reply::Hotplug(MemoryHotplugStatus::new(described, control.plugged_bytes())), None),
        HotplugAsk::Request { mib } => {
            let requested_bytes = u64::from(mib) * MIB;
            control.request(requested_bytes)?;
            described.requested_bytes = requested_bytes;
            (Reply::Done, Some("size"))
        }
    })
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
            limits(machine, config, id, changed)?;
            Ok("limits")
        }
    }
}
