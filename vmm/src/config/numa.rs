//! The guest's NUMA nodes as they are asked for.

use arch::topology::ThreadsPerCore;
use thiserror::Error;

use super::{HostNodes, MIB, MemoryConfig, Pages};
use crate::host::IdList;

/// A NUMA node of the guest. The nodes take guest memory in turn, from its start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNode {
    /// Its vCPUs.
    pub cpus: IdList,
    /// Its memory, in bytes; a whole number of MiB.
    pub bytes: u64,
    /// The host's nodes that its memory comes from, in the place of the whole memory's.
    pub host: Option<HostNodes>,
    /// The ids of devices that are near it: the guest's driver takes memory and interrupts there.
    pub devices: Vec<String>,
    /// How far it is to each node, itself included, as ACPI counts: 10 is here. Empty: 10 here and 20 elsewhere.
    pub distances: Vec<u8>,
}

/// The most nodes: as many as a machine has vCPUs.
pub const GUEST_NODES_MAX: usize = 64;

/// Guest nodes that are none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NumaError {
    /// There are too many.
    #[error("{0} nodes are more than {GUEST_NODES_MAX}")]
    TooMany(usize),
    /// A vCPU that the machine has not.
    #[error("node {node}: the machine has no vCPU {cpu}: its vCPUs are 0 to {last}")]
    NoSuchCpu {
        /// The node.
        node: usize,
        /// The vCPU.
        cpu: u16,
        /// The last that there is.
        last: u64,
    },
    /// A vCPU in two nodes.
    #[error("vCPU {cpu} is in the nodes {first} and {second}: name it in one")]
    CpuTwice {
        /// The vCPU.
        cpu: u16,
        /// A node.
        first: usize,
        /// Another.
        second: usize,
    },
    /// A vCPU in no node.
    #[error("vCPU {0} is in no node: name each in one")]
    CpuNowhere(u16),
    /// A core in two nodes.
    #[error("vCPUs {} and {} are one core's threads (smt) and in the nodes {first} and {second}: put them into one", core.0, core.1)]
    CoreSplit {
        /// Its vCPUs.
        core: (u16, u16),
        /// The first one's node.
        first: usize,
        /// The other's.
        second: usize,
    },
    /// Memory that is not whole.
    #[error("node {node}: {bytes} bytes of memory are not a whole number of {unit} MiB, and more than none")]
    Memory {
        /// The node.
        node: usize,
        /// What was asked.
        bytes: u64,
        /// What it must be a multiple of.
        unit: u64,
    },
    /// Memory that does not sum up.
    #[error("the nodes have {} MiB and the machine {}: make them equal", nodes / MIB, memory / MIB)]
    Sum {
        /// The nodes' together.
        nodes: u64,
        /// The machine's.
        memory: u64,
    },
    /// Distances that ACPI does not have.
    #[error("node {node}: distances: {problem}")]
    Distances {
        /// The node.
        node: usize,
        /// What is wrong.
        problem: String,
    },
    /// A device that the machine has not.
    #[error("node {node}: the machine has no device {id}: its devices are {}", present.join(", "))]
    NoSuchDevice {
        /// The node.
        node: usize,
        /// The device.
        id: String,
        /// What there is.
        present: Vec<String>,
    },
    /// A device in two nodes.
    #[error("device {id} is in the nodes {first} and {second}: name it in one")]
    DeviceTwice {
        /// The device.
        id: String,
        /// A node.
        first: usize,
        /// Another.
        second: usize,
    },
    /// No ACPI to tell it.
    #[error("the guest learns of its nodes by ACPI: leave out --acpi off")]
    NoAcpi,
}

/// Holds the nodes against the machine's vCPUs and memory.
pub(super) fn validate(nodes: &[GuestNode], cpus: u64, memory: &MemoryConfig) -> Result<(), NumaError> {
    if nodes.is_empty() {
        return Ok(());
    }
    if nodes.len() > GUEST_NODES_MAX {
        return Err(NumaError::TooMany(nodes.len()));
    }
    let unit = memory.placement.pages.pool_page_bytes().unwrap_or(MIB);
    for (number, node) in nodes.iter().enumerate() {
        if let Some(cpu) = node.cpus.iter().find(|cpu| u64::from(*cpu) >= cpus) {
            return Err(NumaError::NoSuchCpu { node: number, cpu, last: cpus.saturating_sub(1) });
        }
        for (first, other) in nodes[..number].iter().enumerate() {
            if let Some(cpu) = node.cpus.iter().find(|cpu| other.cpus.contains(*cpu)) {
                return Err(NumaError::CpuTwice { cpu, first, second: number });
            }
        }
        if node.bytes == 0 || !node.bytes.is_multiple_of(unit) {
            return Err(NumaError::Memory { node: number, bytes: node.bytes, unit: unit / MIB });
        }
        validate_distances(number, &node.distances, nodes.len())?;
    }
    let homeless = (0..u16::try_from(cpus).unwrap_or(u16::MAX)).find(|cpu| home(nodes, *cpu).is_none());
    if let Some(cpu) = homeless {
        return Err(NumaError::CpuNowhere(cpu));
    }
    let sum = nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(node.bytes));
    if sum == memory.size_bytes { Ok(()) } else { Err(NumaError::Sum { nodes: sum, memory: memory.size_bytes }) }
}

/// Holds the devices of the nodes against those that there are.
pub(super) fn validate_devices(nodes: &[GuestNode], present: &[&str]) -> Result<(), NumaError> {
    for (node, id) in nodes.iter().enumerate().flat_map(|(node, of)| of.devices.iter().map(move |id| (node, id))) {
        if !present.contains(&id.as_str()) {
            let present = present.iter().map(|&id| id.to_owned()).collect();
            return Err(NumaError::NoSuchDevice { node, id: id.clone(), present });
        }
        let first = nodes[..node].iter().position(|other| other.devices.contains(id));
        if let Some(first) = first {
            return Err(NumaError::DeviceTwice { id: id.clone(), first, second: node });
        }
    }
    Ok(())
}

/// Holds nodes that fit together against what no host has: a core in two nodes, a huge page across two.
pub(super) fn validate_shape(
    nodes: &[GuestNode],
    cpus: u64,
    threads: ThreadsPerCore,
    pages: Pages,
) -> Result<(), NumaError> {
    if pages == Pages::Transparent {
        let followed = nodes.split_last().map_or(&[][..], |(_, followed)| followed);
        // No huge page forms where a node begins within it.
        let odd = followed.iter().enumerate().find(|(_, node)| !node.bytes.is_multiple_of(HUGE_PAGE_BYTES));
        if let Some((number, node)) = odd {
            return Err(NumaError::Memory { node: number, bytes: node.bytes, unit: HUGE_PAGE_BYTES / MIB });
        }
    }
    if threads == ThreadsPerCore::One {
        return Ok(());
    }
    let cores = (0..u16::try_from(cpus).unwrap_or(u16::MAX)).step_by(2).map(|cpu| (cpu, cpu.saturating_add(1)));
    let mut homes = cores.filter_map(|core| Some((core, home(nodes, core.0)?, home(nodes, core.1)?)));
    match homes.find(|(_, first, second)| first != second) {
        Some((core, first, second)) => Err(NumaError::CoreSplit { core, first, second }),
        None => Ok(()),
    }
}

/// What a transparent HugePage covers.
const HUGE_PAGE_BYTES: u64 = 2 * MIB;

/// The node of a vCPU.
fn home(nodes: &[GuestNode], cpu: u16) -> Option<usize> {
    nodes.iter().position(|node| node.cpus.contains(cpu))
}

/// ACPI 6.5 §5.2.17: 10 is here, 0 to 9 mean nothing, 255 cannot be reached.
fn validate_distances(node: usize, distances: &[u8], nodes: usize) -> Result<(), NumaError> {
    let wrong = |problem: String| Err(NumaError::Distances { node, problem });
    if distances.is_empty() {
        return Ok(());
    }
    if distances.len() != nodes {
        return wrong(format!("there are {} for {nodes} nodes: give one for each", distances.len()));
    }
    for (other, &distance) in distances.iter().enumerate() {
        match (other == node, distance) {
            (true, 10) | (false, 11..) => {}
            (true, _) => return wrong(format!("{distance} to itself: use 10")),
            (false, _) => return wrong(format!("{distance} to node {other}: use 11 to 255")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cpus: &str, mib: u64, distances: &[u8]) -> GuestNode {
        GuestNode {
            cpus: cpus.parse().unwrap(),
            bytes: mib * MIB,
            host: None,
            devices: Vec::new(),
            distances: distances.to_vec(),
        }
    }

    fn refused(nodes: &[GuestNode]) -> String {
        validate(nodes, 4, &MemoryConfig::new(64 * MIB)).unwrap_err().to_string()
    }

    #[test]
    fn nodes_that_hold_every_cpu_once_and_all_memory_are_taken() {
        let memory = MemoryConfig::new(64 * MIB);
        let taken = |nodes: &[GuestNode]| assert_eq!(validate(nodes, 4, &memory), Ok(()), "{nodes:?}");
        taken(&[]);
        taken(&[node("0-3", 64, &[])]);
        taken(&[node("0,2", 24, &[10, 11]), node("1,3", 40, &[255, 10])]);
        taken(&[node("0-3", 24, &[]), node("", 40, &[])]);
    }

    #[test]
    fn a_node_begins_where_a_transparent_huge_page_can() {
        let shape = |nodes: &[GuestNode], pages| validate_shape(nodes, 4, ThreadsPerCore::One, pages);
        let odd = [node("0-1", 33, &[]), node("2-3", 31, &[])];
        assert_eq!(shape(&odd, Pages::HostsChoice), Ok(()));
        let error = shape(&odd, Pages::Transparent).unwrap_err().to_string();
        assert_eq!(error, "node 0: 34603008 bytes of memory are not a whole number of 2 MiB, and more than none");
        let odd_last = [node("0-1", 32, &[]), node("2-3", 33, &[])];
        assert_eq!(shape(&odd_last, Pages::Transparent), Ok(()), "nothing follows it");
        assert_eq!(shape(&[], Pages::Transparent), Ok(()));
    }

    #[test]
    fn a_device_that_is_not_there_or_in_two_nodes_is_named() {
        let near = |devices: &[&str]| GuestNode {
            devices: devices.iter().map(|&id| id.to_owned()).collect(),
            ..node("", 32, &[])
        };
        let refused =
            |nodes: &[GuestNode]| validate_devices(nodes, &["root", "rng"]).map_err(|error| error.to_string());
        assert_eq!(refused(&[near(&["root"]), near(&["rng"])]), Ok(()));
        let absent = "node 1: the machine has no device eth0: its devices are root, rng";
        assert_eq!(refused(&[near(&[]), near(&["eth0"])]), Err(absent.to_owned()));
        let twice = "device root is in the nodes 0 and 1: name it in one";
        assert_eq!(refused(&[near(&["root"]), near(&["root"])]), Err(twice.to_owned()));
    }

    #[test]
    fn the_threads_of_a_core_are_in_one_node() {
        let shape = |nodes: &[GuestNode], threads| validate_shape(nodes, 4, threads, Pages::HostsChoice);
        let (split, whole) = ([node("0-2", 32, &[]), node("3", 32, &[])], [node("2-3", 32, &[]), node("0-1", 32, &[])]);
        assert_eq!(shape(&split, ThreadsPerCore::One), Ok(()));
        assert_eq!(shape(&whole, ThreadsPerCore::Two), Ok(()));
        let refused = shape(&split, ThreadsPerCore::Two).unwrap_err().to_string();
        assert_eq!(refused, "vCPUs 2 and 3 are one core's threads (smt) and in the nodes 0 and 1: put them into one");
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert_eq!(refused(&[node("0-4", 64, &[])]), "node 0: the machine has no vCPU 4: its vCPUs are 0 to 3");
        let twice = refused(&[node("0-2", 32, &[]), node("2-3", 32, &[])]);
        assert_eq!(twice, "vCPU 2 is in the nodes 0 and 1: name it in one");
        assert_eq!(refused(&[node("0,2-3", 64, &[])]), "vCPU 1 is in no node: name each in one");
        assert!(refused(&[node("0-3", 0, &[])]).starts_with("node 0: 0 bytes of memory"));
        let sum = refused(&[node("0-1", 32, &[]), node("2-3", 31, &[])]);
        assert_eq!(sum, "the nodes have 63 MiB and the machine 64: make them equal");
        assert_eq!(
            refused(&[node("0-3", 64, &[10, 20])]),
            "node 0: distances: there are 2 for 1 nodes: give one for each"
        );
        let near = refused(&[node("0-1", 32, &[10, 10]), node("2-3", 32, &[])]);
        assert_eq!(near, "node 0: distances: 10 to node 1: use 11 to 255");
        let far = refused(&[node("0-1", 32, &[]), node("2-3", 32, &[20, 12])]);
        assert_eq!(far, "node 1: distances: 12 to itself: use 10");
        assert_eq!(refused(&vec![node("0-3", 1, &[]); 65]), "65 nodes are more than 64");
    }
}
