//! `--net tap=NAME[,WORD=VALUE]...` and `--net fd=N[,...]`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{ConfigError, NetConfig, NetSource, NetTuning, Rate, SizeError, parse_size};

/// One `--net` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetArg {
    source: NetSource,
    mac: Option<String>,
    id: Option<String>,
    tuning: NetTuning,
}

/// A `--net` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum NetArgError {
    /// It does not say what is behind the device.
    #[error("neither tap=NAME nor fd=N: write tap=NAME[,mac=MAC][,id=ID]")]
    NoSource,
    /// It has a word that means nothing.
    #[error("`{word}` is no option of a network device: use {}", WORDS.map(|word| format!("{word}=")).join(", "))]
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
    /// It says two things that exclude each other.
    #[error("`{0}=` and `{1}=` exclude each other")]
    Both(&'static str, &'static str),
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
    /// A rate is none.
    #[error("{word}: {source}")]
    Rate {
        /// The word.
        word: &'static str,
        /// Why.
        source: SizeError,
    },
}

/// All words; each has a value.
const WORDS: [&str; 10] = ["tap", "fd", "mac", "id", "mtu", "rx_bps", "tx_bps", "rx_pps", "tx_pps", "limit_group"];

impl FromStr for NetArg {
    type Err = NetArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = Words { source: None, mac: None, id: None, tuning: NetTuning::default() };
        let mut given = Vec::new();
        for text in text.split(',') {
            let unknown = || NetArgError::UnknownWord { word: text.to_owned() };
            let (word, value) = text.split_once('=').ok_or_else(unknown)?;
            let word = WORDS.into_iter().find(|known| *known == word).ok_or_else(unknown)?;
            if given.contains(&word) {
                return Err(NetArgError::Twice { word });
            }
            given.push(word);
            words.take(word, value)?;
        }
        if ["tap", "fd"].iter().all(|word| given.contains(word)) {
            return Err(NetArgError::Both("tap", "fd"));
        }
        let Words { source, mac, id, tuning } = words;
        Ok(Self { source: source.ok_or(NetArgError::NoSource)?, mac, id, tuning })
    }
}

/// What the words have said so far.
struct Words {
    source: Option<NetSource>,
    mac: Option<String>,
    id: Option<String>,
    tuning: NetTuning,
}

impl Words {
    /// Takes one word with its value. Numbers are held against their limits where all of the VM's are.
    fn take(&mut self, word: &'static str, value: &str) -> Result<(), NetArgError> {
        let refuse = |allowed| NetArgError::Value { word, value: value.to_owned(), allowed };
        let bytes = || parse_size(value).map(Rate::per_second).map_err(|source| NetArgError::Rate { word, source });
        let frames = || value.parse().map(Rate::per_second).map_err(|_| refuse("a whole number"));
        let tuning = &mut self.tuning;
        match word {
            "tap" => self.source = Some(NetSource::Tap(value.to_owned())),
            "fd" => {
                let number = value.parse().map_err(|_| refuse("the number of a descriptor"))?;
                self.source = Some(NetSource::Fd(number));
            }
            "mac" => self.mac = Some(value.to_owned()),
            "id" => self.id = Some(value.to_owned()),
            "mtu" => tuning.mtu = Some(value.parse().map_err(|_| refuse("68 to 65535"))?),
            "rx_bps" => tuning.limits.inward.bytes = bytes()?,
            "tx_bps" => tuning.limits.outward.bytes = bytes()?,
            "rx_pps" => tuning.limits.inward.operations = frames()?,
            "tx_pps" => tuning.limits.outward.operations = frames()?,
            "limit_group" => tuning.limit_group = Some(value.to_owned()),
            _ => unreachable!("every word of the list is taken"),
        }
        Ok(())
    }
}

impl NetArg {
    /// The device, named `netN` after its place unless it has an id.
    pub(crate) fn into_config(self, index: usize) -> Result<NetConfig, ConfigError> {
        let Self { source, mac, id, tuning } = self;
        let id = id.unwrap_or_else(|| format!("net{index}"));
        match mac.map(|mac| mac.parse()).transpose() {
            Ok(mac) => Ok(NetConfig { id, source, mac, tuning }),
            Err(source) => Err(ConfigError::Mac { id, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::config::{LimiterConfig, Limits, MacAddressError};

    #[test]
    fn options_come_in_any_order_and_a_device_is_named_after_its_place() {
        for text in ["tap=t0,mac=02:00:00:00:00:01", "mac=02:00:00:00:00:01,tap=t0"] {
            let config = text.parse::<NetArg>().unwrap().into_config(2).unwrap();
            assert_eq!((config.id.as_str(), config.source), ("net2", NetSource::Tap("t0".to_owned())));
            assert_eq!(config.mac.unwrap().bytes(), [2, 0, 0, 0, 0, 1]);
        }
        let config = "fd=5,id=lan".parse::<NetArg>().unwrap().into_config(0).unwrap();
        let tuning = NetTuning::default();
        assert_eq!(config, NetConfig { id: "lan".to_owned(), source: NetSource::Fd(5), mac: None, tuning });
    }

    #[test]
    fn every_word_reaches_the_configuration() {
        let text = "tap=t0,mtu=9000,rx_bps=10M,tx_bps=1M,rx_pps=1000,tx_pps=500,limit_group=g";
        let tuning = text.parse::<NetArg>().unwrap().into_config(0).unwrap().tuning;
        let limits =
            |bytes, operations| Limits { bytes: Rate::per_second(bytes), operations: Rate::per_second(operations) };
        let limits =
            LimiterConfig { inward: limits(10 << 20, 1000), outward: limits(1 << 20, 500), ..LimiterConfig::default() };
        assert_eq!(tuning, NetTuning { mtu: Some(9000), limits, limit_group: Some("g".to_owned()) });
        for word in WORDS {
            let taken = format!("{word}=?").parse::<NetArg>();
            assert!(!matches!(taken, Err(NetArgError::UnknownWord { .. })), "{word}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<NetArg>().unwrap_err();
        assert_eq!(refused("mac=02:00:00:00:00:01"), NetArgError::NoSource);
        assert_eq!(refused("fd=x").to_string(), "fd=x: use the number of a descriptor");
        assert_eq!(refused("tap=t0,mtu=65536").to_string(), "mtu=65536: use 68 to 65535");
        assert_eq!(refused("tap=t0,rx_pps=-1").to_string(), "rx_pps=-1: use a whole number");
        assert!(refused("tap=t0,tx_bps=fast").to_string().starts_with("tx_bps: `fast` is not a size"));
        assert_eq!(refused("t0"), NetArgError::UnknownWord { word: "t0".to_owned() });
        assert_eq!(refused("tap=t0,"), NetArgError::UnknownWord { word: String::new() });
        assert_eq!(refused("tap=t0,fd=3"), NetArgError::Both("tap", "fd"));
        assert_eq!(refused("tap=t0,id=a,id=b"), NetArgError::Twice { word: "id" });
        let group = "tap=t0,mac=01:00:00:00:00:01".parse::<NetArg>().unwrap().into_config(0);
        assert!(matches!(group, Err(ConfigError::Mac { source: MacAddressError::Multicast { .. }, .. })));
    }
}
