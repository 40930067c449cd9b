//! `husk ctl limit ID WORD=N[+BURST]...`, and `husk ctl limit ID none`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{LimiterConfig, Rate, SizeError};

use super::words::{byte_rate, operation_rate};

/// What one word says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitWord {
    /// No bucket has a limit.
    Lifted,
    /// One bucket has this.
    Bucket(LimitFlow, LimitBucket, Option<Rate>),
}

/// A bucket that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum LimitWordError {
    /// It has a word that means nothing.
    #[error("`{word}` is no limit: use none, {}", WORDS.map(|(word, ..)| format!("{word}=")).join(", "))]
    Unknown {
        /// The word.
        word: String,
    },
    /// A number of bytes that is none.
    #[error("{word}: {source}")]
    Bytes {
        /// The word.
        word: &'static str,
        /// Why.
        source: SizeError,
    },
    /// A number of requests or frames that is none.
    #[error("{word}={value}: use a whole number, or two as 1000+5000")]
    Operations {
        /// The word.
        word: &'static str,
        /// Its value.
        value: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitFlow {
    /// Of both ways together.
    Both,
    /// Of what the guest gets.
    ToGuest,
    /// Of what it gives.
    FromGuest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LimitBucket {
    /// Of bytes.
    Bytes,
    /// Of requests or frames.
    Operations,
}

/// The word that lifts all: to name nothing is more likely a mistake.
const LIFTED: &str = "none";

/// The words of `--disk` and `--net`.
const WORDS: [(&str, LimitFlow, LimitBucket); 10] = [
    ("bps", LimitFlow::Both, LimitBucket::Bytes),
    ("iops", LimitFlow::Both, LimitBucket::Operations),
    ("rd_bps", LimitFlow::ToGuest, LimitBucket::Bytes),
    ("rd_iops", LimitFlow::ToGuest, LimitBucket::Operations),
    ("wr_bps", LimitFlow::FromGuest, LimitBucket::Bytes),
    ("wr_iops", LimitFlow::FromGuest, LimitBucket::Operations),
    ("rx_bps", LimitFlow::ToGuest, LimitBucket::Bytes),
    ("rx_pps", LimitFlow::ToGuest, LimitBucket::Operations),
    ("tx_bps", LimitFlow::FromGuest, LimitBucket::Bytes),
    ("tx_pps", LimitFlow::FromGuest, LimitBucket::Operations),
];

impl FromStr for LimitWord {
    type Err = LimitWordError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == LIFTED {
            return Ok(Self::Lifted);
        }
        let unknown = || LimitWordError::Unknown { word: text.to_owned() };
        let (word, value) = text.split_once('=').ok_or_else(unknown)?;
        Self::read(word, value).ok_or_else(unknown)?
    }
}

impl LimitWord {
    /// A word with its value; None if it means no limit.
    pub(super) fn read(word: &str, value: &str) -> Option<Result<Self, LimitWordError>> {
        let (word, flow, bucket) = WORDS.into_iter().find(|(known, ..)| *known == word)?;
        Some(Self::bucket(word, value, flow, bucket))
    }

    fn bucket(word: &'static str, value: &str, flow: LimitFlow, bucket: LimitBucket) -> Result<Self, LimitWordError> {
        let rate = match bucket {
            LimitBucket::Bytes => byte_rate(value).map_err(|source| LimitWordError::Bytes { word, source })?,
            LimitBucket::Operations => {
                operation_rate(value).map_err(|_| LimitWordError::Operations { word, value: value.to_owned() })?
            }
        };
        Ok(Self::Bucket(flow, bucket, rate))
    }

    /// Changes what it is about.
    pub(super) fn put(self, config: &mut LimiterConfig) {
        let (flow, bucket, rate) = match self {
            Self::Lifted => {
                *config = LimiterConfig::default();
                return;
            }
            Self::Bucket(flow, bucket, rate) => (flow, bucket, rate),
        };
        let limits = match flow {
            LimitFlow::Both => &mut config.total,
            LimitFlow::ToGuest => &mut config.inward,
            LimitFlow::FromGuest => &mut config.outward,
        };
        match bucket {
            LimitBucket::Bytes => limits.bytes = rate,
            LimitBucket::Operations => limits.operations = rate,
        }
    }
}

/// All that was named; of a bucket that is named twice, the last.
pub(super) fn limits(words: &[LimitWord]) -> LimiterConfig {
    let mut config = LimiterConfig::default();
    words.iter().for_each(|word| word.put(&mut config));
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::config::Limits;

    #[test]
    fn every_word_reaches_its_bucket() {
        let words = ["bps=1K", "iops=2", "rd_bps=3K+1", "rx_pps=4", "tx_bps=5", "wr_iops=6+7"];
        let words: Vec<LimitWord> = words.iter().map(|word| word.parse().unwrap()).collect();
        let rate = |size, burst| Rate::new(size, burst, 1000);
        let expected = LimiterConfig {
            total: Limits { bytes: rate(1024, 0), operations: rate(2, 0) },
            inward: Limits { bytes: rate(3072, 1), operations: rate(4, 0) },
            outward: Limits { bytes: rate(5, 0), operations: rate(6, 7) },
        };
        assert_eq!(limits(&words), expected);
        let read = |words: &[&str]| limits(&words.iter().map(|word| word.parse().unwrap()).collect::<Vec<_>>());
        assert_eq!(read(&["none"]), LimiterConfig::default());
        assert_eq!(read(&["bps=1K", "none", "iops=2"]), read(&["iops=2"]), "it lifts what stands before it");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<LimitWord>().unwrap_err().to_string();
        assert!(refused("bps").starts_with("`bps` is no limit: use none, bps=, iops="));
        assert_eq!(refused("iops=x"), "iops=x: use a whole number, or two as 1000+5000");
        assert!(refused("rd_bps=1X").starts_with("rd_bps: `1X` is not a size"));
    }
}
