//! What the options that are made of words have in common.

use std::num::ParseIntError;

use vmm::config::{HostNodes, NodePolicy, Rate, SizeError, parse_size};
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

/// A rate in bytes: so many a second, and behind a `+` those that may go beside them, once.
pub(super) fn byte_rate(text: &str) -> Result<Option<Rate>, SizeError> {
    let (rate, burst) = with_burst(text);
    Ok(Rate::new(parse_size(rate)?, parse_size(burst)?, SECOND_MS))
}

/// As [`byte_rate`], of requests or frames.
pub(super) fn operation_rate(text: &str) -> Result<Option<Rate>, ParseIntError> {
    let (rate, burst) = with_burst(text);
    Ok(Rate::new(rate.parse()?, burst.parse()?, SECOND_MS))
}

const SECOND_MS: u64 = 1000;

fn with_burst(text: &str) -> (&str, &str) {
    text.split_once('+').unwrap_or((text, "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_may_have_a_burst() {
        assert_eq!(byte_rate("10M"), Ok(Rate::new(10 << 20, 0, 1000)));
        assert_eq!(byte_rate("10M+1G"), Ok(Rate::new(10 << 20, 1 << 30, 1000)));
        assert_eq!(operation_rate("5+7"), Ok(Rate::new(5, 7, 1000)));
        assert_eq!(operation_rate("0"), Ok(None), "no limit");
        for text in ["", "+", "5+", "+5", "5+5+5", "5-1"] {
            assert!(byte_rate(text).is_err() && operation_rate(text).is_err(), "{text}");
        }
    }
}
