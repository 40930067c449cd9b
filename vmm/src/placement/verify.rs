//! Memory that is bound and all there is held against its nodes before anything runs in it: neither a reservation nor a policy
//! proves where a page came from.

use arch::GuestMemory;
use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use super::apply::Span;
use super::check::Settled;
use super::residency;
use crate::config::{HostNodes, MIB};
use crate::host::IdList;

/// Memory that came from other nodes than it was bound to.
#[derive(Debug, Error)]
#[error(
    "memory: nodes: {} MiB of what was looked at at guest address {address:#x} are on node {found} and not on {nodes}: \
     free memory there, or use policy=preferred",
    bytes.div_ceil(MIB)
)]
pub struct Elsewhere {
    /// Where the region begins.
    address: u64,
    /// What is elsewhere of it, in bytes.
    bytes: u64,
    found: IdList,
    nodes: IdList,
}

/// Looks where memory is that is bound and prefaulted: every page of a pool, and of small ones so many that a look takes no
/// longer than milliseconds. What the kernel does not tell is taken to be where its policy says.
///
/// # Errors
/// A region is not all on its nodes.
pub(crate) fn verify(memory: &GuestMemory, settled: &Settled) -> Result<(), Elsewhere> {
    let placement = &settled.placement;
    let look = |span| match placement.pages.pool_page_bytes() {
        Some(page_bytes) => residency::by_node(span, page_bytes),
        None => residency::by_node_of_some(span, arch::layout::PAGE_SIZE),
    };
    for (region, (.., nodes)) in memory.iter().zip(settled.ranges()) {
        let bound = nodes.filter(|nodes| nodes.is_strict() && placement.is_prefaulted(Some(*nodes)));
        let Some(HostNodes { nodes, .. }) = bound else { continue };
        let span = Span::of(region);
        let mut there = look(span).unwrap_or_default();
        there.retain(|node, _| !nodes.contains(*node));
        let bytes = there.values().sum();
        if bytes > 0 {
            let found = there.into_keys().collect();
            return Err(Elsewhere { address: span.guest, bytes, found, nodes: nodes.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MemoryPart, MemoryPlacement, NodePolicy};
    use vm_memory::{Bytes, GuestAddress};

    /// What is said of 2 MiB on this host's node that were asked to be on `nodes`.
    fn said(nodes: &str, policy: NodePolicy, prefault: bool) -> Option<String> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        memory.write_slice(&[7; 2 << 20], GuestAddress(0)).unwrap();
        let nodes = Some(HostNodes { nodes: nodes.parse().unwrap(), policy });
        let placement = MemoryPlacement { nodes: nodes.clone(), prefault, ..MemoryPlacement::default() };
        let settled = Settled::as_asked(&placement, vec![MemoryPart { bytes: 2 << 20, nodes }]);
        verify(&memory, &settled).err().map(|error| error.to_string())
    }

    #[test]
    fn memory_that_came_from_another_node_is_found_before_anything_runs_in_it() {
        let error = said("1,3", NodePolicy::Bind, true).unwrap();
        assert!(error.contains("2 MiB") && error.contains("on node 0 and not on 1,3"), "{error}");
        assert!(said("1", NodePolicy::Interleave, true).is_some());
        assert_eq!(said("0-1", NodePolicy::Bind, true), None);
        assert_eq!(said("1", NodePolicy::Preferred, true), None);
        assert_eq!(said("1", NodePolicy::Bind, false), None, "it is not all there yet");
    }
}
