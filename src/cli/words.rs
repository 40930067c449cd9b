//! What the options that are made of words have in common.

use vmm::config::{HostNodes, NodePolicy};
use vmm::host::{IdList, IdListError};

/// A list inside a list of words: its commas are colons.
pub(super) fn colon_list(text: &str) -> Result<IdList, IdListError> {
    text.replace(':', ",").parse()
}

/// The host's nodes and how they are used.
///
/// # Errors
/// The policy, where nodes are not named.
pub(super) fn host_nodes(nodes: Option<IdList>, policy: Option<NodePolicy>) -> Result<Option<HostNodes>, NodePolicy> {
    match (nodes, policy) {
        (Some(nodes), policy) => Ok(Some(HostNodes { nodes, policy: policy.unwrap_or_default() })),
        (None, Some(policy)) => Err(policy),
        (None, None) => Ok(None),
    }
}
