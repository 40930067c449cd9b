//! `--net tap=NAME[,mac=MAC][,id=ID]` and `--net fd=N[,...]`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{ConfigError, NetConfig, NetSource};

/// One `--net` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NetArg {
    source: NetSource,
    mac: Option<String>,
    id: Option<String>,
}

/// A `--net` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum NetArgError {
    /// It does not say what is behind the device.
    #[error("neither tap=NAME nor fd=N: write tap=NAME[,mac=MAC][,id=ID]")]
    NoSource,
    /// A descriptor is a number.
    #[error("fd=`{text}` is no number of a descriptor")]
    Number {
        /// What was given.
        text: String,
    },
    /// It has a word that means nothing.
    #[error("`{word}` is no option of a network device: use tap=NAME or fd=N, mac=MAC and id=ID")]
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
}

impl FromStr for NetArg {
    type Err = NetArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (mut source, mut mac, mut id) = (None, None, None);
        for word in text.split(',') {
            match word.split_once('=') {
                Some(("tap", name)) => set(&mut source, "tap or fd", NetSource::Tap(name.to_owned()))?,
                Some(("fd", number)) => {
                    let parsed = number.parse().map_err(|_| NetArgError::Number { text: number.to_owned() })?;
                    set(&mut source, "tap or fd", NetSource::Fd(parsed))?;
                }
                Some(("mac", address)) => set(&mut mac, "mac", address.to_owned())?,
                Some(("id", name)) => set(&mut id, "id", name.to_owned())?,
                _ => return Err(NetArgError::UnknownWord { word: word.to_owned() }),
            }
        }
        Ok(Self { source: source.ok_or(NetArgError::NoSource)?, mac, id })
    }
}

fn set<T>(place: &mut Option<T>, word: &'static str, value: T) -> Result<(), NetArgError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(NetArgError::Twice { word }),
    }
}

impl NetArg {
    /// The device, named `netN` after its place unless it has an id.
    pub(crate) fn into_config(self, index: usize) -> Result<NetConfig, ConfigError> {
        let id = self.id.unwrap_or_else(|| format!("net{index}"));
        match self.mac.map(|mac| mac.parse()).transpose() {
            Ok(mac) => Ok(NetConfig { id, source: self.source, mac }),
            Err(source) => Err(ConfigError::Mac { id, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::config::MacAddressError;

    #[test]
    fn options_come_in_any_order_and_a_device_is_named_after_its_place() {
        for text in ["tap=t0,mac=02:00:00:00:00:01", "mac=02:00:00:00:00:01,tap=t0"] {
            let config = text.parse::<NetArg>().unwrap().into_config(2).unwrap();
            assert_eq!((config.id.as_str(), config.source), ("net2", NetSource::Tap("t0".to_owned())));
            assert_eq!(config.mac.unwrap().bytes(), [2, 0, 0, 0, 0, 1]);
        }
        let config = "fd=5,id=lan".parse::<NetArg>().unwrap().into_config(0).unwrap();
        assert_eq!(config, NetConfig { id: "lan".to_owned(), source: NetSource::Fd(5), mac: None });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| text.parse::<NetArg>().unwrap_err();
        assert_eq!(refused("mac=02:00:00:00:00:01"), NetArgError::NoSource);
        assert_eq!(refused("fd=x"), NetArgError::Number { text: "x".to_owned() });
        assert_eq!(refused("t0"), NetArgError::UnknownWord { word: "t0".to_owned() });
        assert_eq!(refused("tap=t0,"), NetArgError::UnknownWord { word: String::new() });
        assert_eq!(refused("tap=t0,fd=3"), NetArgError::Twice { word: "tap or fd" });
        assert_eq!(refused("tap=t0,id=a,id=b"), NetArgError::Twice { word: "id" });
        let group = "tap=t0,mac=01:00:00:00:00:01".parse::<NetArg>().unwrap().into_config(0);
        assert!(matches!(group, Err(ConfigError::Mac { source: MacAddressError::Multicast { .. }, .. })));
    }
}
