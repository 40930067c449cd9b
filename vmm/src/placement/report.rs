//! Asked against is.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use arch::GuestMemory;
use schemars::JsonSchema;
use serde::Serialize;
use vm_memory::GuestMemoryBackend;

use super::apply::Span;
use super::check::Settled;
use super::residency::{self, ByNode};
use super::threads::{self, PlacedThread, ThreadError, ThreadReport};
use crate::config::{HostNodes, MemoryConfig, MemoryPart, MemoryPlacement};

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
    /// Its size.
    pub bytes: u64,
    /// What is there of it.
    pub resident_bytes: u64,
    /// What is swapped out.
    pub swapped_bytes: u64,
    /// What is made of transparent HugePages.
    pub transparent_bytes: u64,
    /// What is made of pages of a HugePage pool.
    pub pool_bytes: u64,
    /// What is locked.
    pub locked_bytes: u64,
    /// What is on nodes that it shall not be on. With the policy `preferred` or without nodes that is none.
    pub elsewhere_bytes: u64,
    /// Its regions, in the order of their guest addresses.
    pub regions: Vec<RegionReport>,
}

impl PlacementReport {
    /// Of a machine that has not been started: nothing is anywhere yet.
    #[must_use]
    pub fn planned(config: &MemoryConfig) -> Self {
        Self {
            memory: MemoryReport {
                given: MemoryTerms::from(&config.placement),
                bytes: config.size_bytes,
                resident_bytes: 0,
                swapped_bytes: 0,
                transparent_bytes: 0,
                pool_bytes: 0,
                locked_bytes: 0,
                elsewhere_bytes: 0,
                regions: Vec::new(),
            },
            threads: Vec::new(),
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
    /// What is on other nodes. With the policy `preferred` or without nodes that is none.
    pub elsewhere_bytes: u64,
    /// The bytes that are there, by host node.
    pub resident_by_node: BTreeMap<u16, u64>,
}

/// What a report is made from. To look at every page takes a while: it is the reader's thread that does.
#[derive(Debug, Clone)]
pub struct PlacementSource {
    memory: Arc<GuestMemory>,
    settled: Arc<Settled>,
    threads: Arc<[PlacedThread]>,
    differences: Arc<[String]>,
}

impl PlacementSource {
    pub(crate) fn new(
        memory: &Arc<GuestMemory>,
        settled: Settled,
        threads: (Vec<PlacedThread>, Vec<ThreadError>),
    ) -> Self {
        let (threads, left_out) = threads;
        let memory_differences = settled.differences.iter().map(ToString::to_string);
        Self {
            memory: Arc::clone(memory),
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
        let regions = self.memory.iter().map(Span::of).zip(self.settled.ranges());
        let mut strict = regions.filter(|(_, (.., nodes))| nodes.is_some_and(HostNodes::is_strict));
        if strict.any(|(span, (.., nodes))| elsewhere(nodes, &some(span)) > 0) {
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
        let page_bytes = page_bytes(placement);
        let spans: Vec<Span> = self.memory.iter().map(Span::of).collect();
        let kinds = residency::kinds(&spans)?;
        let regions = spans
            .iter()
            .zip(self.settled.ranges())
            .map(|(&span, (.., nodes))| {
                let resident_by_node = residency::by_node(span, page_bytes)?;
                Ok(RegionReport {
                    guest_address: span.guest,
                    bytes: span.bytes,
                    nodes: nodes.map(|nodes| nodes.nodes.to_string()),
                    policy: nodes.map(|nodes| nodes.policy.name()),
                    elsewhere_bytes: elsewhere(nodes, &resident_by_node),
                    resident_by_node,
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        let threads = threads::reports(&self.threads);
        let elsewhere_bytes = regions.iter().map(|region| region.elsewhere_bytes).sum();
        let mut drift = threads::drift(&threads);
        if elsewhere_bytes > 0 {
            drift.push(MEMORY_DRIFT.to_owned());
        }
        Ok(PlacementReport {
            memory: MemoryReport {
                given: MemoryTerms::from(placement),
                bytes: spans.iter().map(|span| span.bytes).sum(),
                resident_bytes: regions.iter().flat_map(|region| region.resident_by_node.values()).sum(),
                swapped_bytes: kinds.swapped,
                transparent_bytes: kinds.transparent,
                pool_bytes: kinds.pool,
                locked_bytes: kinds.locked,
                elsewhere_bytes,
                regions,
            },
            threads,
            drift,
            differences: self.differences.to_vec(),
        })
    }
}

/// How much, `elsewhere_bytes` tells.
const MEMORY_DRIFT: &str = "a part of guest memory is on other nodes";

fn page_bytes(placement: &MemoryPlacement) -> u64 {
    placement.pages.pool_page_bytes().unwrap_or(arch::layout::PAGE_SIZE)
}

/// What is on nodes where it shall not be.
fn elsewhere(nodes: Option<&HostNodes>, by_node: &ByNode) -> u64 {
    let Some(asked) = nodes.filter(|nodes| nodes.is_strict()) else { return 0 };
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
    use crate::config::NodePolicy;

    #[test]
    fn bytes_on_other_nodes_than_those_asked_for_are_counted() {
        let on = |nodes: &str, policy| HostNodes { nodes: nodes.parse().unwrap(), policy };
        let by_node = ByNode::from([(0, 10), (1, 5), (3, 2)]);
        assert_eq!(elsewhere(Some(&on("0", NodePolicy::Bind)), &by_node), 7);
        assert_eq!(elsewhere(Some(&on("0-1", NodePolicy::Interleave)), &by_node), 2);
        assert_eq!(elsewhere(Some(&on("0", NodePolicy::Preferred)), &by_node), 0);
        assert_eq!(elsewhere(None, &by_node), 0);
    }
}
