//! `--net tap=NAME[,WORD=VALUE]...` and `--net fd=N[,...]`.

use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;
use vmm::config::{ConfigError, IoThreads, NetConfig, NetFilter, NetSource, NetTuning};

use super::limit::{LimitWord, LimitWordError};

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
    /// It says something that means nothing without something else.
    #[error("`{0}=` means nothing without `{1}`")]
    Needs(&'static str, &'static str),
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
    /// A limit is none.
    #[error(transparent)]
    Limit(#[from] LimitWordError),
}

/// All words; each has a value.
const WORDS: [&str; 16] = [
    "tap",
    "fd",
    "mac",
    "id",
    "queues",
    "iothread",
    "iothreads",
    "poll_us",
    "mtu",
    "rx_bps",
    "tx_bps",
    "rx_pps",
    "tx_pps",
    "limit_group",
    "filter",
    "ip",
];

impl FromStr for NetArg {
    type Err = NetArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words =
            Words { source: None, mac: None, id: None, addresses: Vec::new(), tuning: NetTuning::default() };
        let mut given = Vec::new();
        for text in split_words(text) {
            let unknown = || NetArgError::UnknownWord { word: text.clone() };
            let (word, value) = text.split_once('=').ok_or_else(unknown)?;
            let word = WORDS.into_iter().find(|known| *known == word).ok_or_else(unknown)?;
            if given.contains(&word) {
                return Err(NetArgError::Twice { word });
            }
            given.push(word);
            words.take(word, value)?;
        }
        for [one, other] in [["tap", "fd"], ["iothread", "iothreads"]] {
            if given.contains(&one) && given.contains(&other) {
                return Err(NetArgError::Both(one, other));
            }
        }
        let Words { source, mac, id, addresses, mut tuning } = words;
        match &source {
            Some(NetSource::Fds(numbers)) if !given.contains(&"queues") => tuning.queues = numbers.len(),
            _ => {}
        }
        match &mut tuning.filter {
            NetFilter::MacAndIp(allowed) => *allowed = addresses,
            _ if given.contains(&"ip") => return Err(NetArgError::Needs("ip", "filter=mac+ip")),
            NetFilter::Off | NetFilter::Mac => {}
        }
        Ok(Self { source: source.ok_or(NetArgError::NoSource)?, mac, id, tuning })
    }
}

/// What is between commas, in which a doubled one stands for one.
fn split_words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        match words.last_mut() {
            Some(word) if char != ',' || rest.next_if_eq(&',').is_some() => word.push(char),
            _ => words.push(String::new()),
        }
    }
    words
}

/// What the words have said so far.
struct Words {
    source: Option<NetSource>,
    mac: Option<String>,
    id: Option<String>,
    addresses: Vec<IpAddr>,
    tuning: NetTuning,
}

impl Words {
    /// Takes one word with its value. Numbers are held against their limits where all of the VM's are.
    fn take(&mut self, word: &'static str, value: &str) -> Result<(), NetArgError> {
        let refuse = |allowed| NetArgError::Value { word, value: value.to_owned(), allowed };
        let tuning = &mut self.tuning;
        match word {
            "tap" => self.source = Some(NetSource::Tap(value.to_owned())),
            "fd" => {
                let numbers = value.split(',').map(str::parse).collect::<Result<_, _>>();
                let numbers = numbers.map_err(|_| refuse("the number of a descriptor, or of several as 5,,6"))?;
                self.source = Some(NetSource::Fds(numbers));
            }
            "mac" => self.mac = Some(value.to_owned()),
            "id" => self.id = Some(value.to_owned()),
            "queues" => tuning.queues = value.parse().map_err(|_| refuse("a whole number"))?,
            "iothread" => tuning.threads = IoThreads::Shared(value.to_owned()),
            "iothreads" => tuning.threads = IoThreads::Own(value.parse().map_err(|_| refuse("a whole number"))?),
            "poll_us" => tuning.poll_us = value.parse().map_err(|_| refuse("a whole number"))?,
            "mtu" => tuning.mtu = Some(value.parse().map_err(|_| refuse("68 to 65535"))?),
            "filter" => {
                tuning.filter = match value {
                    "off" => NetFilter::Off,
                    "mac" => NetFilter::Mac,
                    "mac+ip" => NetFilter::MacAndIp(Vec::new()),
                    _ => return Err(refuse("off, mac or mac+ip")),
                }
            }
            "ip" => {
                let addresses = value.split(',').map(str::parse).collect::<Result<_, _>>();
                self.addresses = addresses.map_err(|_| refuse("addresses, as 192.0.2.2 or 192.0.2.2,,2001:db8::2"))?;
            }
            "limit_group" => tuning.limit_group = Some(value.to_owned()),
            _ => match LimitWord::read(word, value) {
                Some(limit) => limit?.put(&mut tuning.limits),
                None => unreachable!("every word of the list is taken"),
            },
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
    use vmm::config::{LimiterConfig, Limits, MacAddressError, Rate};

    #[test]
    fn options_come_in_any_order_and_a_device_is_named_after_its_place() {
        for text in ["tap=t0,mac=02:00:00:00:00:01", "mac=02:00:00:00:00:01,tap=t0"] {
            let config = text.parse::<NetArg>().unwrap().into_config(2).unwrap();
            assert_eq!((config.id.as_str(), config.source), ("net2", NetSource::Tap("t0".to_owned())));
            assert_eq!(config.mac.unwrap().bytes(), [2, 0, 0, 0, 0, 1]);
        }
        let config = "fd=5,id=lan".parse::<NetArg>().unwrap().into_config(0).unwrap();
        let tuning = NetTuning::default();
        assert_eq!(config, NetConfig { id: "lan".to_owned(), source: NetSource::Fds(vec![5]), mac: None, tuning });
    }

    #[test]
    fn every_word_reaches_the_configuration() {
        let text = "tap=t0,mtu=9000,rx_bps=10M,tx_bps=1M,rx_pps=1000,tx_pps=500,limit_group=g,filter=mac,\
                    queues=4,iothreads=2,poll_us=50";
        let tuning = text.parse::<NetArg>().unwrap().into_config(0).unwrap().tuning;
        let limits =
            |bytes, operations| Limits { bytes: Rate::per_second(bytes), operations: Rate::per_second(operations) };
        let limits =
            LimiterConfig { inward: limits(10 << 20, 1000), outward: limits(1 << 20, 500), ..LimiterConfig::default() };
        let (limit_group, filter) = (Some("g".to_owned()), NetFilter::Mac);
        let (queues, threads, poll_us) = (4, IoThreads::Own(2), 50);
        assert_eq!(tuning, NetTuning { queues, threads, poll_us, mtu: Some(9000), limits, limit_group, filter });
        let several = "fd=5,,6,,7,iothread=fast".parse::<NetArg>().unwrap().into_config(0).unwrap();
        assert_eq!((several.source, several.tuning.queues), (NetSource::Fds(vec![5, 6, 7]), 3));
        assert_eq!(several.tuning.threads, IoThreads::Shared("fast".to_owned()));
        for word in WORDS {
            let taken = format!("{word}=?").parse::<NetArg>();
            assert!(!matches!(taken, Err(NetArgError::UnknownWord { .. })), "{word}");
        }
    }

    #[test]
    fn addresses_are_parted_by_doubled_commas() {
        let filter = |text: &str| text.parse::<NetArg>().unwrap().into_config(0).unwrap().tuning.filter;
        let some =
            |addresses: &[&str]| NetFilter::MacAndIp(addresses.iter().map(|text| text.parse().unwrap()).collect());
        assert_eq!(filter("tap=t0,filter=mac+ip,ip=192.0.2.2"), some(&["192.0.2.2"]));
        let three = "ip=192.0.2.2,,2001:db8::2,,192.0.2.3,filter=mac+ip,fd=5";
        assert_eq!(filter(three), some(&["192.0.2.2", "2001:db8::2", "192.0.2.3"]));
        assert_eq!(filter("tap=t0,filter=mac+ip"), some(&[]), "the configuration's to refuse");
        assert_eq!(filter("tap=t0,filter=off"), NetFilter::Off);
        let refused = |text: &str| text.parse::<NetArg>().unwrap_err();
        for filter in ["", "filter=mac,", "filter=off,"] {
            let alone = refused(&format!("tap=t0,{filter}ip=192.0.2.2"));
            assert_eq!(alone, NetArgError::Needs("ip", "filter=mac+ip"));
        }
        for bad in ["", "192.0.2", "192.0.2.2/24", "192.0.2.2,,", "192.0.2.2,,,,192.0.2.3", "host"] {
            let refused = refused(&format!("tap=t0,filter=mac+ip,ip={bad}"));
            assert!(matches!(refused, NetArgError::Value { word: "ip", .. }), "{bad}: {refused}");
        }
        assert_eq!(refused("tap=t0,filter=ip").to_string(), "filter=ip: use off, mac or mac+ip");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<NetArg>().unwrap_err();
        assert_eq!(refused("mac=02:00:00:00:00:01"), NetArgError::NoSource);
        assert_eq!(refused("fd=x").to_string(), "fd=x: use the number of a descriptor, or of several as 5,,6");
        assert_eq!(refused("tap=t0,mtu=65536").to_string(), "mtu=65536: use 68 to 65535");
        assert_eq!(refused("tap=t0,rx_pps=-1").to_string(), "rx_pps=-1: use a whole number, or two as 1000+5000");
        assert!(refused("tap=t0,tx_bps=fast").to_string().starts_with("tx_bps: `fast` is not a size"));
        assert_eq!(refused("t0"), NetArgError::UnknownWord { word: "t0".to_owned() });
        assert_eq!(refused("tap=t0,"), NetArgError::UnknownWord { word: String::new() });
        assert_eq!(refused("tap=t0,fd=3"), NetArgError::Both("tap", "fd"));
        assert_eq!(refused("tap=t0,iothread=a,iothreads=1"), NetArgError::Both("iothread", "iothreads"));
        assert_eq!(refused("tap=t0,id=a,id=b"), NetArgError::Twice { word: "id" });
        let group = "tap=t0,mac=01:00:00:00:00:01".parse::<NetArg>().unwrap().into_config(0);
        assert!(matches!(group, Err(ConfigError::Mac { source: MacAddressError::Multicast { .. }, .. })));
    }
}
