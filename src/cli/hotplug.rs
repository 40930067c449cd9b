//! `--hotplug SIZE[,WORD=VALUE]...`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{HotplugConfig, SizeError, parse_size};

/// The `--hotplug` argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HotplugArg {
    pub(crate) config: HotplugConfig,
    /// The guest's NUMA node that it belongs to.
    pub(crate) node: Option<u16>,
}

/// A `--hotplug` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum HotplugArgError {
    /// A size is none.
    #[error("{word}: {source}")]
    Size {
        /// Of what.
        word: &'static str,
        /// Why.
        source: SizeError,
    },
    /// A node that is no number.
    #[error("node={0}: use the number of a --numa, from 0 on")]
    Node(String),
    /// It has a word that means nothing.
    #[error("`{0}` is no option of memory that is plugged: use block=, slot=, requested= or node=")]
    UnknownWord(String),
    /// It says something twice.
    #[error("`{0}` is given twice")]
    Twice(String),
}

impl FromStr for HotplugArg {
    type Err = HotplugArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let size = |word, value: &str| parse_size(value).map_err(|source| HotplugArgError::Size { word, source });
        let (total, words) = text.split_once(',').map_or((text, None), |(total, words)| (total, Some(words)));
        let mut config = HotplugConfig::new(size("size", total)?);
        let (mut block, mut slot, mut requested, mut node) = (None, None, None, None);
        for text in words.into_iter().flat_map(|words| words.split(',')) {
            let unknown = || HotplugArgError::UnknownWord(text.to_owned());
            let (word, value) = text.split_once('=').ok_or_else(unknown)?;
            let twice = match word {
                "block" => block.replace(size("block", value)?).is_some(),
                "slot" => slot.replace(size("slot", value)?).is_some(),
                "requested" => requested.replace(size("requested", value)?).is_some(),
                "node" => {
                    let number = value.parse().map_err(|_| HotplugArgError::Node(value.to_owned()))?;
                    node.replace(number).is_some()
                }
                _ => return Err(unknown()),
            };
            if twice {
                return Err(HotplugArgError::Twice(word.to_owned()));
            }
        }
        config.block_bytes = block.unwrap_or(config.block_bytes);
        config.slot_bytes = slot.unwrap_or(config.slot_bytes);
        config.requested_bytes = requested.unwrap_or(config.requested_bytes);
        Ok(Self { config, node })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<HotplugArg, String> {
        text.parse().map_err(|error: HotplugArgError| error.to_string())
    }

    #[test]
    fn every_word_has_its_meaning() {
        let config = HotplugConfig {
            total_bytes: 8 << 30,
            block_bytes: 4 << 20,
            slot_bytes: 256 << 20,
            requested_bytes: 512 << 20,
        };
        assert_eq!(read("8G,block=4M,slot=256M,requested=512M,node=1"), Ok(HotplugArg { config, node: Some(1) }));
        assert_eq!(read("1G"), Ok(HotplugArg { config: HotplugConfig::new(1 << 30), node: None }));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert!(read("").unwrap_err().starts_with("size: "));
        assert!(read("1G,block=x").unwrap_err().starts_with("block: "));
        assert_eq!(read("1G,slot=1G,slot=1G").unwrap_err(), "`slot` is given twice");
        assert_eq!(read("1G,node=a").unwrap_err(), "node=a: use the number of a --numa, from 0 on");
        assert!(read("1G,blocks=2M").unwrap_err().starts_with("`blocks=2M` is no option"));
        assert!(read("1G,").unwrap_err().starts_with("`` is no option"));
    }
}
