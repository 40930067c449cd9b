//! `--memory SIZE[,shared]`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{MemoryBacking, MemoryConfig, SizeError, parse_size};

/// The `--memory` argument.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryArg(pub(crate) MemoryConfig);

/// A `--memory` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum MemoryArgError {
    /// Its size is none.
    #[error(transparent)]
    Size(#[from] SizeError),
    /// It has a word that means nothing.
    #[error("`{word}` is no option of memory: use shared")]
    UnknownWord {
        /// The word.
        word: String,
    },
}

impl FromStr for MemoryArg {
    type Err = MemoryArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (size, backing) = match text.split_once(',') {
            None => (text, MemoryBacking::Anonymous),
            Some((size, "shared")) => (size, MemoryBacking::Memfd),
            Some((_, word)) => return Err(MemoryArgError::UnknownWord { word: word.to_owned() }),
        };
        Ok(Self(MemoryConfig { size_bytes: parse_size(size)?, backing }))
    }
}
