//! `--numa cpus=LIST,memory=SIZE[,WORD=VALUE]...`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{GuestNode, NodePolicy, SizeError, parse_size};
use vmm::host::IdListError;

use super::words::{colon_list, host_nodes};

/// One `--numa` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NumaArg(pub(crate) GuestNode);

/// A `--numa` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum NumaArgError {
    /// It has a word that means nothing.
    #[error("`{word}` is no option of a NUMA node: use cpus=, memory=, nodes=, policy=, devices= or distances=")]
    UnknownWord {
        /// The word.
        word: String,
    },
    /// It says something twice.
    #[error("`{word}` is given twice")]
    Twice {
        /// What is said twice.
        word: String,
    },
    /// A list is none.
    #[error("{word}: {source}")]
    List {
        /// Which.
        word: &'static str,
        /// What is wrong.
        source: IdListError,
    },
    /// The memory has no size.
    #[error("memory: {0}")]
    Size(#[from] SizeError),
    /// Nothing is said of its memory.
    #[error("it has no memory: give memory=SIZE")]
    NoMemory,
    /// A policy that is none, or of no nodes.
    #[error("policy={0}: use bind, preferred or interleave, and name nodes=")]
    Policy(String),
    /// Distances that are none.
    #[error("distances={0}: use numbers up to 255 with colons between them")]
    Distances(String),
}

impl FromStr for NumaArg {
    type Err = NumaArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let list = |word, value: &str| colon_list(value).map_err(|source| NumaArgError::List { word, source });
        let (mut cpus, mut memory, mut nodes, mut policy) = (None, None, None, None);
        let (mut devices, mut distances) = (None, None);
        for text in text.split(',') {
            let unknown = || NumaArgError::UnknownWord { word: text.to_owned() };
            let (word, value) = text.split_once('=').ok_or_else(unknown)?;
            let twice = match word {
                "cpus" => cpus.replace(list("cpus", value)?).is_some(),
                "memory" => memory.replace(parse_size(value)?).is_some(),
                "nodes" => nodes.replace(list("nodes", value)?).is_some(),
                "policy" => {
                    let parsed: NodePolicy = value.parse().map_err(|()| NumaArgError::Policy(value.to_owned()))?;
                    policy.replace(parsed).is_some()
                }
                "devices" => devices.replace(value.split(':').map(str::to_owned).collect()).is_some(),
                "distances" => {
                    let parsed: Result<Vec<u8>, _> = value.split(':').map(str::parse).collect();
                    distances.replace(parsed.map_err(|_| NumaArgError::Distances(value.to_owned()))?).is_some()
                }
                _ => return Err(unknown()),
            };
            if twice {
                return Err(NumaArgError::Twice { word: word.to_owned() });
            }
        }
        let host = host_nodes(nodes, policy).map_err(|policy| NumaArgError::Policy(policy.name().to_owned()))?;
        Ok(Self(GuestNode {
            cpus: cpus.unwrap_or_default(),
            bytes: memory.ok_or(NumaArgError::NoMemory)?,
            host,
            devices: devices.unwrap_or_default(),
            distances: distances.unwrap_or_default(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use vmm::config::HostNodes;

    use super::*;

    fn read(text: &str) -> Result<GuestNode, String> {
        text.parse().map(|NumaArg(node)| node).map_err(|error: NumaArgError| error.to_string())
    }

    #[test]
    fn every_word_has_its_meaning() {
        assert_eq!(
            read("cpus=0-1:4,memory=1G,nodes=0:2,policy=interleave,devices=root:eth0,distances=10:21"),
            Ok(GuestNode {
                cpus: "0-1,4".parse().unwrap(),
                bytes: 1 << 30,
                host: Some(HostNodes { nodes: "0,2".parse().unwrap(), policy: NodePolicy::Interleave }),
                devices: vec!["root".to_owned(), "eth0".to_owned()],
                distances: vec![10, 21],
            })
        );
        let alone = read("memory=64M").unwrap();
        assert!(alone.cpus.is_empty() && alone.host.is_none() && alone.distances.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert_eq!(read("cpus=0").unwrap_err(), "it has no memory: give memory=SIZE");
        assert!(read("").unwrap_err().starts_with("`` is no option of a NUMA node"));
        assert!(read("cpu=0,memory=1G").unwrap_err().starts_with("`cpu=0` is no option"));
        assert!(read("memory=1G,cpus=a").unwrap_err().starts_with("cpus: `a` is neither"));
        assert_eq!(read("memory=1G,memory=1G").unwrap_err(), "`memory` is given twice");
        assert!(read("memory=1G,policy=bind").unwrap_err().starts_with("policy=bind: "));
        assert!(read("memory=1G,distances=10:256").unwrap_err().starts_with("distances=10:256: "));
    }
}
