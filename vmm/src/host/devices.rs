//! The disks and network interfaces that a user asks about: queues, schedulers, interrupts, nodes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::linux::fs::MetadataExt;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use serde::Serialize;
use thiserror::Error;

use super::id_list::IdList;
use super::tree::Tree;

/// What a user asks about beside the host itself.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// Files and block devices.
    pub disks: Vec<PathBuf>,
    /// Names of network interfaces.
    pub nets: Vec<String>,
}

/// Something asked about that is not there.
#[derive(Debug, Error)]
pub enum AskedError {
    /// A disk.
    #[error("disk `{}`", path.display())]
    Disk {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A network interface.
    #[error("net `{name}`: this host has no such interface: use one of {known}")]
    Net {
        /// Its name.
        name: String,
        /// Those that there are.
        known: String,
    },
}

/// A disk and the numbers of the block device that it is, or lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AskedDisk {
    pub(super) path: PathBuf,
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// A disk asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskFacts {
    /// What was asked.
    pub path: PathBuf,
    /// The whole disk that it is, or lies on, such as `nvme0n1`; null where no block device is behind it (tmpfs, NFS).
    pub device: Option<String>,
    /// Whether it is told to have moving parts; a virtual disk may say so too.
    pub rotational: Option<u64>,
    /// The I/O scheduler.
    pub scheduler: Option<String>,
    /// Those that there are.
    pub schedulers: Vec<String>,
    /// Requests that the kernel queues, by hardware queue.
    pub queue_requests: Option<u64>,
    /// Requests that the device itself takes, where its driver tells.
    pub device_requests: Option<u64>,
    /// Hardware queues.
    pub queues: usize,
    /// The node that it hangs on.
    pub node: Option<u16>,
    /// Its interrupts.
    pub irqs: Vec<IrqFacts>,
}

/// A network interface asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetFacts {
    /// Its name.
    pub name: String,
    /// `up`, `down`, `unknown`, ...
    pub state: Option<String>,
    /// Largest packet, in bytes.
    pub mtu_bytes: Option<u64>,
    /// Receive queues.
    pub rx_queues: usize,
    /// Transmit queues.
    pub tx_queues: usize,
    /// The node that it hangs on.
    pub node: Option<u16>,
    /// Its interrupts; none for an interface in software.
    pub irqs: Vec<IrqFacts>,
}

/// An interrupt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IrqFacts {
    /// Linux's number.
    pub irq: u32,
    /// What its driver calls it.
    pub name: String,
    /// CPUs that may take it.
    pub allowed: IdList,
    /// CPUs that do.
    pub effective: IdList,
}

impl Asked {
    /// Finds the block devices.
    pub(super) fn probe(&self) -> Result<Vec<AskedDisk>, AskedError> {
        let disk = |path: &PathBuf| {
            let metadata = fs::metadata(path).map_err(|source| AskedError::Disk { path: path.clone(), source })?;
            let device = if metadata.file_type().is_block_device() { metadata.st_rdev() } else { metadata.st_dev() };
            Ok(AskedDisk { path: path.clone(), major: libc::major(device), minor: libc::minor(device) })
        };
        self.disks.iter().map(disk).collect()
    }
}

/// The facts of the disks.
pub(super) fn disks(tree: &Tree, asked: Vec<AskedDisk>) -> Vec<DiskFacts> {
    asked.into_iter().map(|asked| disk(tree, asked)).collect()
}

/// The facts of the network interfaces.
pub(super) fn nets(tree: &Tree, names: &[String]) -> Result<Vec<NetFacts>, AskedError> {
    let known = tree.names("sys/class/net");
    let net = |name: &String| {
        if known.contains(name) {
            Ok(net(tree, name))
        } else {
            Err(AskedError::Net { name: name.clone(), known: known.join(", ") })
        }
    };
    names.iter().map(net).collect()
}

fn disk(tree: &Tree, AskedDisk { path, major, minor }: AskedDisk) -> DiskFacts {
    let folder = tree.resolve(&format!("sys/dev/block/{major}:{minor}"));
    // A partition's folder lies in that of its disk, which is what has queues.
    let folder = folder.map(|folder| match folder.rsplit_once('/') {
        Some((disk, _)) if tree.has(&format!("{folder}/partition")) => disk.to_owned(),
        _ => folder,
    });
    let Some(folder) = folder else {
        return DiskFacts {
            path,
            device: None,
            rotational: None,
            scheduler: None,
            schedulers: Vec::new(),
            queue_requests: None,
            device_requests: None,
            queues: 0,
            node: None,
            irqs: Vec::new(),
        };
    };
    let schedulers = tree.words(&format!("{folder}/queue/scheduler")).unwrap_or_default();
    DiskFacts {
        path,
        device: folder.rsplit('/').next().map(str::to_owned),
        rotational: tree.value(&format!("{folder}/queue/rotational")),
        scheduler: tree.choice(&format!("{folder}/queue/scheduler")),
        schedulers: schedulers.iter().map(|name| name.trim_matches(['[', ']']).to_owned()).collect(),
        queue_requests: tree.value(&format!("{folder}/queue/nr_requests")),
        device_requests: tree.value(&format!("{folder}/device/queue_depth")),
        queues: tree.names(&format!("{folder}/mq")).len(),
        node: node(tree, &folder),
        irqs: irqs(tree, &folder),
    }
}

fn net(tree: &Tree, name: &str) -> NetFacts {
    let class = format!("sys/class/net/{name}");
    let folder = tree.resolve(&class).unwrap_or(class);
    let queues = tree.names(&format!("{folder}/queues"));
    let count = |kind| queues.iter().filter(|name| name.starts_with(kind)).count();
    NetFacts {
        name: name.to_owned(),
        state: tree.text(&format!("{folder}/operstate")),
        mtu_bytes: tree.value(&format!("{folder}/mtu")),
        rx_queues: count("rx-"),
        tx_queues: count("tx-"),
        node: node(tree, &folder),
        irqs: irqs(tree, &folder),
    }
}

/// The folders of a device and of what it hangs on, from the inside out, down to /sys/devices.
fn ancestors<'f>(folder: &'f str) -> impl Iterator<Item = &'f str> {
    let above = |folder: &&'f str| folder.rsplit_once('/').map(|(above, _)| above);
    std::iter::successors(Some(folder), above).take_while(|folder| folder.starts_with("sys/devices/"))
}

/// The node of the nearest device that tells one; -1 is none.
fn node(tree: &Tree, folder: &str) -> Option<u16> {
    let told = ancestors(folder).find_map(|folder| tree.value::<i32>(&format!("{folder}/numa_node")));
    told.and_then(|node| u16::try_from(node).ok())
}

/// The interrupts of the nearest device that has message-signalled ones; else those that carry a virtio device's name
/// (virtio-mmio).
fn irqs(tree: &Tree, folder: &str) -> Vec<IrqFacts> {
    let names = irq_names(tree);
    let signalled =
        ancestors(folder).map(|folder| tree.names(&format!("{folder}/msi_irqs"))).find(|irqs| !irqs.is_empty());
    let mut irqs: Vec<u32> = match signalled {
        Some(irqs) => irqs.iter().filter_map(|irq| irq.parse().ok()).collect(),
        None => {
            let virtio = ancestors(folder)
                .filter_map(|folder| folder.rsplit('/').next())
                .find(|name| name.starts_with("virtio"));
            names.iter().filter(|(_, name)| Some(name.as_str()) == virtio).map(|(&irq, _)| irq).collect()
        }
    };
    irqs.sort_unstable();
    let irq = |irq| {
        let list = |file| tree.value::<IdList>(&format!("proc/irq/{irq}/{file}"));
        let allowed = list("smp_affinity_list")?;
        let effective = list("effective_affinity_list").unwrap_or_else(|| allowed.clone());
        Some(IrqFacts { irq, name: names.get(&irq).cloned().unwrap_or_default(), allowed, effective })
    };
    irqs.into_iter().filter_map(irq).collect()
}

/// Interrupts in use and the last word of each one's line, the name that its driver gave.
fn irq_names(tree: &Tree) -> BTreeMap<u32, String> {
    let text = tree.text("proc/interrupts").unwrap_or_default();
    let name = |line: &str| {
        let (irq, rest) = line.trim_start().split_once(':')?;
        Some((irq.parse().ok()?, rest.split_whitespace().next_back()?.to_owned()))
    };
    text.lines().filter_map(name).collect()
}
