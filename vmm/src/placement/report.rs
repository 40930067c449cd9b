//! Asked against is.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};

use arch::GuestMemory;
use schemars::JsonSchema;
use serde::Serialize;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::apply::Span;
use super::check::Settled;
use super::residency::{self, ByNode};
use super::threads::{self, PlacedThread, ThreadError, ThreadReport};
use crate::config::{HostNodes, MemoryPart, MemoryPlacement, NodePolicy, Pages, VmConfig};
use crate::machine::MemorySlots;

/// What was asked and what is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PlacementReport {
    /// Guest memory.
    pub memory: MemoryReport,
    /// husk's threads, by name.
    pub threads: Vec<ThreadReport>,
    /// What is not where it was asked to be now.
    pub drift: Vec<String>,
    /// What the host could not honour at the start, where the best effort was asked for.
    pub differences: Vec<String>,
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryReport {
    /// What it was given; that is what was asked, but for the differences.
    pub given: MemoryTerms,
    /// Its size, without what is plugged.
    pub bytes: u64,
    /// What is there of it, and of what is plugged.
    pub resident_bytes: u64,
    /// What is swapped out.
    pub swapped_bytes: u64,
    /// What is made of transparent HugePages.
    pub transparent_bytes: u64,
    /// What is made of pages of a HugePage pool.
    pub pool_bytes: u64,
    /// What is locked.
    pub locked_bytes: u64,
    /// What is merged with equal pages (KSM).
    pub merged_bytes: u64,
    /// What the kernel was told that it may merge.
    pub mergeable_bytes: u64,
    /// What is part of a core dump.
    pub dumpable_bytes: u64,
    /// What is on other nodes than those that were asked for; with the policy `preferred` that is no drift.
    pub elsewhere_bytes: u64,
    /// Its regions, in the order of their guest addresses.
    pub regions: Vec<RegionReport>,
}

impl PlacementReport {
    /// Of a machine that has not been started: nothing is anywhere yet.
    #[must_use]
    pub fn planned(config: &VmConfig) -> Self {
        let VmConfig { memory, threads, .. } = config;
        let asked = Settled::as_asked(&memory.placement, config.memory_parts());
        let planned = |(start, bytes, nodes): (GuestAddress, u64, Option<&HostNodes>)| {
            RegionReport::new(start.0, bytes, nodes, Residents::default())
        };
        Self {
            memory: MemoryReport {
                given: MemoryTerms::from(&memory.placement),
                bytes: memory.size_bytes,
                resident_bytes: 0,
                swapped_bytes: 0,
                transparent_bytes: 0,
                pool_bytes: 0,
                locked_bytes: 0,
                merged_bytes: 0,
                mergeable_bytes: 0,
                dumpable_bytes: 0,
                elsewhere_bytes: 0,
                regions: asked.ranges().into_iter().map(planned).collect(),
            },
            threads: threads.terms.iter().map(|(name, terms)| ThreadReport::planned(name, terms)).collect(),
            drift: Vec::new(),
            differences: Vec::new(),
        }
    }
}

/// What memory was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct MemoryTerms {
    /// `none` (the host's choice), `transparent`, `2M` or `1G`.
    pages: &'static str,
    /// Host nodes, as in `0-1`; null for any.
    nodes: Option<String>,
    /// `bind`, `preferred` or `interleave`; null without nodes.
    policy: Option<&'static str>,
    prefault: bool,
    lock: bool,
    merge: bool,
    dump: bool,
}

/// A region of guest memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RegionReport {
    /// Where it begins for the guest.
    pub guest_address: u64,
    /// Its size.
    pub bytes: u64,
    /// The host's nodes that it shall be on; null for any.
    pub nodes: Option<String>,
    /// How they are used; null without nodes.
    pub policy: Option<&'static str>,
    /// Whether the guest has plugged it, or a part of it.
    pub plugged: bool,
    /// What is on other nodes than those that were asked for; with the policy `preferred` that is no drift.
    pub elsewhere_bytes: u64,
    /// The bytes that are there, by host node.
    pub resident_by_node: BTreeMap<u16, u64>,
    /// The same by the size of the pages (`4K`, `2M` or `1G`), and of these by host node; null from a kernel that does not tell
    /// it of transparent HugePages (before Linux 6.7).
    pub resident_by_size: Option<BTreeMap<&'static str, BTreeMap<u16, u64>>>,
}

/// What is there of a region.
#[derive(Debug, Default)]
struct Residents {
    by_node: ByNode,
    by_size: Option<BTreeMap<&'static str, ByNode>>,
}

impl Residents {
    /// Looks at every page.
    fn look(span: Span, placement: &MemoryPlacement) -> io::Result<Self> {
        let (by_node, by_size) = match placement.pages {
            Pages::Huge2M | Pages::Huge1G => {
                let by_node = residency::by_node(span, page_bytes(placement))?;
                (by_node.clone(), Some(BTreeMap::from([(placement.pages.name(), by_node)])))
            }
            Pages::HostsChoice | Pages::Transparent => match residency::by_size(span)? {
                None => (residency::by_node(span, page_bytes(placement))?, None),
                Some([small, huge]) => {
                    let mut by_node = small.clone();
                    huge.iter().for_each(|(node, bytes)| *by_node.entry(*node).or_default() += bytes);
                    (by_node, Some(BTreeMap::from([("4K", small), (Pages::Huge2M.name(), huge)])))
                }
            },
        };
        let by_size = by_size.map(|sizes| sizes.into_iter().filter(|(_, nodes)| !nodes.is_empty()).collect());
        Ok(Self { by_node, by_size })
    }
}

impl RegionReport {
    fn new(guest_address: u64, bytes: u64, nodes: Option<&HostNodes>, residents: Residents) -> Self {
        Self {
            guest_address,
            bytes,
            nodes: nodes.map(|nodes| nodes.nodes.to_string()),
            policy: nodes.map(|nodes| nodes.policy.name()),
            plugged: false,
            elsewhere_bytes: elsewhere(nodes, &residents.by_node),
            resident_by_node: residents.by_node,
            resident_by_size: residents.by_size,
        }
    }
}

/// What a report is made from. To look at every page takes a while: it is the reader's thread that does.
#[derive(Debug, Clone)]
pub struct PlacementSource {
    /// All of it, what can be plugged with it.
    memory: Arc<GuestMemory>,
    /// While there is a VM: a report outlives it, and must not keep it.
    slots: Weak<MemorySlots>,
    settled: Arc<Settled>,
    threads: Arc<[PlacedThread]>,
    differences: Arc<[String]>,
}

impl PlacementSource {
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        slots: Weak<MemorySlots>,
        settled: Settled,
        threads: (Vec<PlacedThread>, Vec<ThreadError>),
    ) -> Self {
        let (threads, left_out) = threads;
        let memory_differences = settled.differences.iter().map(ToString::to_string);
        Self {
            memory: Arc::clone(memory),
            slots,
            differences: memory_differences.chain(left_out.iter().map(ToString::to_string)).collect(),
            settled: Arc::new(settled),
            threads: threads.into(),
        }
    }

    /// Whether there is a place that memory or a thread could drift from.
    pub(crate) fn can_drift(&self) -> bool {
        let fixed = |part: &MemoryPart| part.nodes.as_ref().is_some_and(HostNodes::is_strict);
        self.settled.parts.iter().any(fixed) || !self.threads.is_empty()
    }

    /// What is not where it was asked to be now, by a look at the threads that have a place, and at some pages of the memory that has. What the kernel does not tell
    /// has not drifted.
    pub(crate) fn drift(&self) -> Vec<String> {
        let mut drift = threads::drift(&threads::placed_reports(&self.threads));
        let placement = &self.settled.placement;
        let some = |span| residency::by_node_of_some(span, page_bytes(placement)).unwrap_or_default();
        let ram = self.memory.iter().map(Span::of).zip(self.settled.ranges()).map(|(span, (.., nodes))| (span, nodes));
        let plugged = self.plugged().into_iter().map(|span| (span, self.settled.hotplug_nodes()));
        let mut strict = ram.chain(plugged).filter(|(_, nodes)| nodes.is_some_and(HostNodes::is_strict));
        if strict.any(|(span, nodes)| elsewhere(nodes, &some(span)) > 0) {
            drift.push(MEMORY_DRIFT.to_owned());
        }
        drift
    }

    /// Looks at every page.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn report(&self) -> io::Result<PlacementReport> {
        let placement = &self.settled.placement;
        let (ranges, plugged) = (self.settled.ranges(), self.plugged());
        let ram: Vec<Span> = self.memory.iter().map(Span::of).take(ranges.len()).collect();
        let kinds = residency::kinds(&[&ram[..], &plugged].concat())?;
        let look = |span: Span, nodes: Option<&HostNodes>| {
            Ok(RegionReport::new(span.guest, span.bytes, nodes, Residents::look(span, placement)?))
        };
        let of_ram = ram.iter().zip(&ranges).map(|(span, (.., nodes))| look(*span, *nodes));
        let of_plugged = plugged.iter().map(|span| {
            look(*span, self.settled.hotplug_nodes()).map(|region| RegionReport { plugged: true, ..region })
        });
        let regions = of_ram.chain(of_plugged).collect::<io::Result<Vec<_>>>()?;
        let threads = threads::reports(&self.threads);
        let mut drift = threads::drift(&threads);
        let is_strict = |region: &RegionReport| region.policy != Some(NodePolicy::Preferred.name());
        if regions.iter().any(|region| is_strict(region) && region.elsewhere_bytes > 0) {
            drift.push(MEMORY_DRIFT.to_owned());
        }
        Ok(PlacementReport {
            memory: MemoryReport {
                given: MemoryTerms::from(placement),
                bytes: ram.iter().map(|span| span.bytes).sum(),
                resident_bytes: regions.iter().flat_map(|region| region.resident_by_node.values()).sum(),
                swapped_bytes: kinds.swapped,
                transparent_bytes: kinds.transparent,
                pool_bytes: kinds.pool,
                locked_bytes: kinds.locked,
                merged_bytes: kinds.merged,
                mergeable_bytes: kinds.mergeable,
                dumpable_bytes: kinds.dumpable,
                elsewhere_bytes: regions.iter().map(|region| region.elsewhere_bytes).sum(),
                regions,
            },
            threads,
            drift,
            differences: self.differences.to_vec(),
        })
    }

    /// The slots of what can be plugged that the guest has now, joined as far as they adjoin.
    fn plugged(&self) -> Vec<Span> {
        let end = self.settled.ranges().last().map_or(0, |(start, bytes, _)| start.0 + bytes);
        let mut spans: Vec<Span> = Vec::new();
        for slot in self.slots.upgrade().into_iter().flat_map(|slots| slots.present()) {
            match spans.last_mut() {
                _ if slot.guest.0 < end => {}
                Some(last) if last.guest + last.bytes == slot.guest.0 => last.bytes += slot.bytes,
                _ => spans.push(Span { guest: slot.guest.0, host: slot.host, bytes: slot.bytes }),
            }
        }
        spans
    }
}

/// How much, `elsewhere_bytes` tells.
const MEMORY_DRIFT: &str = "a part of guest memory is on other nodes";

fn page_bytes(placement: &MemoryPlacement) -> u64 {
    placement.pages.pool_page_bytes().unwrap_or(arch::layout::PAGE_SIZE)
}

/// What is on other nodes than those that were asked for.
fn elsewhere(nodes: Option<&HostNodes>, by_node: &ByNode) -> u64 {
    let Some(asked) = nodes else { return 0 };
    by_node.iter().filter(|(node, _)| !asked.nodes.contains(**node)).map(|(_, bytes)| bytes).sum()
}

impl From<&MemoryPlacement> for MemoryTerms {
    fn from(placement: &MemoryPlacement) -> Self {
        Self {
            pages: placement.pages.name(),
            nodes: placement.nodes.as_ref().map(|nodes| nodes.nodes.to_string()),
            policy: placement.nodes.as_ref().map(|nodes| nodes.policy.name()),
            prefault: placement.is_prefaulted(placement.nodes.as_ref()),
            lock: placement.lock,
            merge: placement.merge,
            dump: placement.dump,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn bytes_on_other_nodes_than_those_asked_for_are_counted() {
        let on = |nodes: &str, policy| HostNodes { nodes: nodes.parse().unwrap(), policy };
        let by_node = ByNode::from([(0, 10), (1, 5), (3, 2)]);
        assert_eq!(elsewhere(Some(&on("0", NodePolicy::Bind)), &by_node), 7);
        assert_eq!(elsewhere(Some(&on("0-1", NodePolicy::Interleave)), &by_node), 2);
        assert_eq!(elsewhere(Some(&on("0", NodePolicy::Preferred)), &by_node), 7);
        assert_eq!(elsewhere(None, &by_node), 0);
    }

    /// The report of 4 MiB that are here, on node 0, and were asked to be on another, with the drift that the watch finds.
    fn astray(policy: NodePolicy) -> (PlacementReport, Vec<String>, bool) {
        let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap());
        memory.write_slice(&[7; 4 << 20], GuestAddress(0)).unwrap();
        let nodes = Some(HostNodes { nodes: "1".parse().unwrap(), policy });
        let placement = MemoryPlacement { nodes: nodes.clone(), ..MemoryPlacement::default() };
        let settled = Settled::as_asked(&placement, vec![MemoryPart { bytes: 4 << 20, nodes }]);
        let source = PlacementSource::new(&memory, Weak::new(), settled, (Vec::new(), Vec::new()));
        (source.report().unwrap(), source.drift(), source.can_drift())
    }

    #[test]
    fn memory_on_other_nodes_has_drifted_where_it_was_bound_and_is_told_anyway() {
        let (report, drift, watched) = astray(NodePolicy::Bind);
        assert_eq!((report.memory.elsewhere_bytes, report.drift, watched), (4 << 20, drift.clone(), true));
        assert_eq!(drift, [MEMORY_DRIFT]);
        let (report, drift, watched) = astray(NodePolicy::Preferred);
        assert_eq!((report.memory.elsewhere_bytes, report.drift, watched), (4 << 20, drift, false));
        // Nobody said of this memory what is said of a machine's.
        assert_eq!((report.memory.dumpable_bytes, report.memory.mergeable_bytes), (4 << 20, 0));
        let sizes = report.memory.regions[0].resident_by_size.as_ref().unwrap();
        assert_eq!(sizes.values().flat_map(BTreeMap::values).sum::<u64>(), 4 << 20, "{sizes:?}");
    }
}
