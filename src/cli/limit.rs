//! `husk ctl limit ID WORD=N[+BURST]...`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{LimiterConfig, Rate, SizeError};

use super::words::{byte_rate, operation_rate};

/// One bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LimitWord {
    flow: LimitFlow,
    bucket: LimitBucket,
    rate: Option<Rate>,
}

/// A bucket that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum LimitWordError {
    /// It has a word that means nothing.
    #[error("`{word}` is no limit: use {}", WORDS.map(|(word, ..)| format!("{word}=")).join(", "))]
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
enum LimitFlow {
    Both,
    ToGuest,
    FromGuest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LimitBucket {
    Bytes,
    Operations,
}

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
        let unknown = || LimitWordError::Unknown { word: text.to_owned() };
        let (name, value) = text.split_once('=').ok_or_else(unknown)?;
        let (word, flow, bucket) = WORDS.into_iter().find(|(word, ..)| *word == name).ok_or_else(unknown)?;
        let rate = match bucket {
            LimitBucket::Bytes => byte_rate(value).map_err(|source| LimitWordError::Bytes { word, source })?,
            LimitBucket::Operations => {
                operation_rate(value).map_err(|_| LimitWordError::Operations { word, value: value.to_owned() })?
            }
        };
        Ok(Self { flow, bucket, rate })
    }
}

/// All that was named; of a bucket that is named twice, the last.
pub(super) fn limits(words: &[LimitWord]) -> LimiterConfig {
    let mut config = LimiterConfig::default();
    for LimitWord { flow, bucket, rate } in words {
        let limits = match flow {
            LimitFlow::Both => &mut config.total,
            LimitFlow::ToGuest => &mut config.inward,
            LimitFlow::FromGuest => &mut config.outward,
        };
        match bucket {
            LimitBucket::Bytes => limits.bytes = *rate,
            LimitBucket::Operations => limits.operations = *rate,
        }
    }
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
        assert_eq!(limits(&[]), LimiterConfig::default());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<LimitWord>().unwrap_err().to_string();
        assert!(refused("bps").starts_with("`bps` is no limit: use bps=, iops="));
        assert_eq!(refused("iops=x"), "iops=x: use a whole number, or two as 1000+5000");
        assert!(refused("rd_bps=1X").starts_with("rd_bps: `1X` is not a size"));
    }
}
