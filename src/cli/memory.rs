//! `--memory SIZE[,WORD[=VALUE]]...`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{Honour, MemoryBacking, MemoryConfig, MemoryPlacement, NodePolicy, SizeError, parse_size};
use vmm::host::{IdList, IdListError};

use super::words::{colon_list, host_nodes};

/// The `--memory` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryArg(pub(crate) MemoryConfig);

/// A `--memory` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum MemoryArgError {
    /// Its size is none.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// It has a word that means nothing.
    #[error("`{word}` is no option of memory: use {}", WORDS.join(", "))]
    UnknownWord {
        /// The word.
        word: String,
    },
    /// It says something twice.
    #[error("`{word}` is given twice")]
    Twice {
        /// What is said twice.
        word: &'static str,
    },
    /// A word has a value that it cannot have.
    #[error("{word}={value}: use {allowed}")]
    Value {
        /// The word.
        word: &'static str,
        /// Its value.
        value: String,
        /// What it can have.
        allowed: &'static str,
    },
    /// The nodes are no list.
    #[error("nodes: {0}")]
    Nodes(#[from] IdListError),
    /// A way to use nodes that are not named.
    #[error("policy={0}: name the nodes with nodes=")]
    PolicyWithoutNodes(&'static str),
}

/// The words; those that end in `=` have a value.
const WORDS: [&str; 10] =
    ["shared", "pages=", "nodes=", "policy=", "prefault", "lock", "merge", "dump", "track", "best_effort"];

impl FromStr for MemoryArg {
    type Err = MemoryArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(',');
        let mut memory = MemoryConfig::new(parse_size(words.next().unwrap_or_default())?);
        let (mut nodes, mut policy) = (None, None);
        let mut given = Vec::new();
        for text in words {
            let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
            let word = WORDS
                .into_iter()
                .find(|word| word.trim_end_matches('=') == name && word.ends_with('=') == value.is_some())
                .ok_or_else(|| MemoryArgError::UnknownWord { word: text.to_owned() })?;
            if given.contains(&word) {
                return Err(MemoryArgError::Twice { word });
            }
            given.push(word);
            take(&mut memory, (&mut nodes, &mut policy), word, value.unwrap_or_default())?;
        }
        memory.placement.nodes =
            host_nodes(nodes, policy).map_err(|policy| MemoryArgError::PolicyWithoutNodes(policy.name()))?;
        Ok(Self(memory))
    }
}

fn take(
    memory: &mut MemoryConfig,
    (nodes, policy): (&mut Option<IdList>, &mut Option<NodePolicy>),
    word: &'static str,
    value: &str,
) -> Result<(), MemoryArgError> {
    let MemoryPlacement { pages, prefault, lock, merge, dump, honour, .. } = &mut memory.placement;
    let wrong = |word, allowed| move |()| MemoryArgError::Value { word, value: value.to_owned(), allowed };
    match word {
        "shared" => memory.backing = MemoryBacking::Memfd,
        "pages=" => *pages = value.parse().map_err(wrong("pages", "none, transparent, 2M or 1G"))?,
        "nodes=" => *nodes = Some(colon_list(value)?),
        "policy=" => *policy = Some(value.parse().map_err(wrong("policy", "bind, preferred or interleave"))?),
        "prefault" => *prefault = true,
        "lock" => *lock = true,
        "merge" => *merge = true,
        "dump" => *dump = true,
        "track" => memory.track_dirty_pages = true,
        "best_effort" => *honour = Honour::BestEffort,
        _ => unreachable!("the caller looks it up in WORDS"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vmm::config::{HostNodes, Pages};

    use super::*;

    fn read(text: &str) -> Result<MemoryConfig, String> {
        text.parse().map(|MemoryArg(config)| config).map_err(|error: MemoryArgError| error.to_string())
    }

    #[test]
    fn every_word_has_its_meaning() {
        assert_eq!(read("1G"), Ok(MemoryConfig::new(1 << 30)));
        assert_eq!(
            read("2G,shared,pages=2M,nodes=0-1:3,policy=interleave,prefault,lock,dump,track,best_effort"),
            Ok(MemoryConfig {
                size_bytes: 2 << 30,
                backing: MemoryBacking::Memfd,
                placement: MemoryPlacement {
                    pages: Pages::Huge2M,
                    hotplug_node: None,
                    nodes: Some(HostNodes { nodes: "0-1,3".parse().unwrap(), policy: NodePolicy::Interleave }),
                    prefault: true,
                    lock: true,
                    merge: false,
                    dump: true,
                    honour: Honour::BestEffort,
                },
                track_dirty_pages: true,
            })
        );
        assert!(read("64M,merge").unwrap().placement.merge);
    }

    #[test]
    fn what_cannot_be_read_is_named_with_what_can() {
        assert_eq!(
            read("1G,huge").unwrap_err(),
            "`huge` is no option of memory: use shared, pages=, nodes=, policy=, prefault, lock, merge, dump, track, best_effort"
        );
        assert_eq!(read("1G,pages=4M").unwrap_err(), "pages=4M: use none, transparent, 2M or 1G");
        assert_eq!(read("1G,nodes=0:x").unwrap_err(), "nodes: `x` is neither a number up to 65535 nor a range of them");
        assert_eq!(read("1G,policy=bind").unwrap_err(), "policy=bind: name the nodes with nodes=");
        assert_eq!(read("1G,nodes=0,policy=near").unwrap_err(), "policy=near: use bind, preferred or interleave");
        assert_eq!(read("1G,lock,lock").unwrap_err(), "`lock` is given twice");
        assert!(read("1G,lock=on").unwrap_err().starts_with("`lock=on` is no option"));
        assert!(read("1G,pages").unwrap_err().starts_with("`pages` is no option"));
    }
}
