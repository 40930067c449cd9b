//! Network devices: what stands behind one, and Ethernet addresses.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::str::FromStr;

use devices::virtio::net::{MTU_MIN, PAIRS_MAX};
use thiserror::Error;

use super::tuning::{IoThreads, LimiterConfig, TuningError, validate_name, validate_poll};

/// One virtio-net device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// The name in messages and thread names: letters, digits, `_` and `-`.
    pub id: String,
    /// Where its frames go.
    pub source: NetSource,
    /// Its address. Without one the guest chooses its own.
    pub mac: Option<MacAddress>,
    /// How it is served.
    pub tuning: NetTuning,
}

/// How a network device is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetTuning {
    /// Pairs of queues, of which the guest uses as many as it likes.
    pub queues: usize,
    /// Where they are served.
    pub threads: IoThreads,
    /// How long these threads look for more work before they sleep, in microseconds.
    pub poll_us: u32,
    /// The MTU that the guest is told. Its tap's must not be smaller.
    pub mtu: Option<u16>,
    /// What it is held to: inward is what it receives, outward what it transmits.
    pub limits: LimiterConfig,
    /// The devices of the same name are held to their limits together.
    pub limit_group: Option<String>,
    /// What its frames may say of their source.
    pub filter: NetFilter,
}

impl Default for NetTuning {
    fn default() -> Self {
        Self {
            queues: 1,
            threads: IoThreads::Own(1),
            poll_us: 0,
            mtu: None,
            limits: LimiterConfig::default(),
            limit_group: None,
            filter: NetFilter::Off,
        }
    }
}

/// What a guest's frames may say of their source. Others do not go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetFilter {
    /// Anything.
    #[default]
    Off,
    /// The device's address.
    Mac,
    /// That, and in ARP, IPv4 and IPv6, which alone go, one of these addresses.
    MacAndIp(Vec<IpAddr>),
}

/// The most addresses of a filter: each frame is held against all of them.
pub const FILTER_ADDRESSES_MAX: usize = 64;

impl NetConfig {
    pub(super) fn validate_tuning(&self) -> Result<(), TuningError> {
        let NetTuning { queues, threads, poll_us, mtu, limit_group, filter, limits: _ } = &self.tuning;
        if !(1..=PAIRS_MAX).contains(queues) {
            return Err(TuningError::Pairs(*queues));
        }
        match &self.source {
            NetSource::Fds(numbers) if numbers.len() != *queues => {
                return Err(TuningError::Descriptors { queues: *queues, descriptors: numbers.len() });
            }
            NetSource::Fds(_) | NetSource::Tap(_) => {}
        }
        threads.validate(*queues)?;
        validate_poll(*poll_us)?;
        match mtu {
            Some(mtu) if *mtu < MTU_MIN => return Err(TuningError::Mtu(*mtu)),
            _ => limit_group.iter().try_for_each(|name| validate_name("limit_group", name))?,
        }
        match (filter, self.mac) {
            (NetFilter::Off, _) => Ok(()),
            (filter, None) => Err(TuningError::FilterWithoutMac(filter.name())),
            (filter, Some(_)) => filter.validate(),
        }
    }
}

impl NetFilter {
    /// As it is written: `off`, `mac` or `mac+ip`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Mac => "mac",
            Self::MacAndIp(_) => "mac+ip",
        }
    }

    /// The addresses that are allowed, if there is a choice.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        match self {
            Self::Off | Self::Mac => &[],
            Self::MacAndIp(addresses) => addresses,
        }
    }

    fn validate(&self) -> Result<(), TuningError> {
        let Self::MacAndIp(addresses) = self else { return Ok(()) };
        if !(1..=FILTER_ADDRESSES_MAX).contains(&addresses.len()) {
            return Err(TuningError::FilterAddresses(addresses.len()));
        }
        let is_no_source = |address: &&IpAddr| match address {
            IpAddr::V4(v4) => v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast(),
        };
        addresses.iter().find(is_no_source).map_or(Ok(()), |address| Err(TuningError::FilterAddress(*address)))
    }
}

/// Where a network device's frames go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetSource {
    /// A tap that exists, by its name.
    Tap(String),
    /// Queues of a tap that whoever started this process has attached, by the numbers of their descriptors, which stay
    /// open.
    Fds(Vec<RawFd>),
}

impl NetSource {
    /// Whether one queue is of both.
    pub(super) fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tap(one), Self::Tap(other)) => one == other,
            (Self::Fds(some), Self::Fds(others)) => some.iter().any(|number| others.contains(number)),
            _ => false,
        }
    }

    /// Whether it names one queue twice.
    pub(super) fn repeats(&self) -> bool {
        match self {
            Self::Tap(_) => false,
            Self::Fds(numbers) => (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at])),
        }
    }
}

impl fmt::Display for NetSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(name) => write!(f, "tap `{name}`"),
            Self::Fds(numbers) => {
                f.write_str(if numbers.len() == 1 { "descriptor " } else { "descriptors " })?;
                numbers.iter().enumerate().try_for_each(|(at, number)| match at {
                    0 => write!(f, "{number}"),
                    _ => write!(f, ", {number}"),
                })
            }
        }
    }
}

/// An Ethernet address of one station: not of a group, and not all zeroes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

/// A text that is no such address.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MacAddressError {
    /// It has another form.
    #[error("`{text}` is no MAC address: write six pairs of hexadecimal digits, as in 02:00:00:00:00:01")]
    Form {
        /// The text.
        text: String,
    },
    /// It addresses a group.
    #[error("{text} is the address of a group: make its first byte even, as in 02:00:00:00:00:01")]
    Multicast {
        /// The text.
        text: String,
    },
    /// It is all zeroes.
    #[error("{text} is no station's address: use one as in 02:00:00:00:00:01")]
    Zero {
        /// The text.
        text: String,
    },
}

impl MacAddress {
    /// Its bytes, in the order in which they are sent.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || MacAddressError::Form { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair =
                pairs.next().filter(|pair| pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(pair.ok_or_else(form)?, 16).map_err(|_| form())?;
        }
        match pairs.next() {
            Some(_) => Err(form()),
            None => Self::try_from(bytes),
        }
    }
}

impl TryFrom<[u8; 6]> for MacAddress {
    type Error = MacAddressError;

    fn try_from(bytes: [u8; 6]) -> Result<Self, Self::Error> {
        let address = Self(bytes);
        match bytes {
            [0, 0, 0, 0, 0, 0] => Err(MacAddressError::Zero { text: address.to_string() }),
            [first, ..] if first & 1 != 0 => Err(MacAddressError::Multicast { text: address.to_string() }),
            _ => Ok(address),
        }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let address: MacAddress = "02:aB:00:ff:10:9c".parse().unwrap();
        assert_eq!(address.bytes(), [2, 0xab, 0, 0xff, 0x10, 0x9c]);
        assert_eq!(address.to_string(), "02:ab:00:ff:10:9c");
    }

    #[test]
    fn queues_threads_and_descriptors_fit_each_other() {
        let verdict = |source: NetSource, queues, threads| {
            let tuning = NetTuning { queues, threads, ..NetTuning::default() };
            NetConfig { id: "n".to_owned(), source, mac: None, tuning }.validate_tuning()
        };
        let tap = || NetSource::Tap("t".to_owned());
        for (queues, fits) in [(0, false), (1, true), (PAIRS_MAX, true), (PAIRS_MAX + 1, false)] {
            assert_eq!(verdict(tap(), queues, IoThreads::Own(1)).is_ok(), fits, "{queues}");
        }
        for (threads, fits) in [(0, false), (1, true), (4, true), (5, false)] {
            assert_eq!(verdict(tap(), 4, IoThreads::Own(threads)).is_ok(), fits, "{threads}");
        }
        assert_eq!(verdict(tap(), 4, IoThreads::Shared("fast".to_owned())), Ok(()));
        assert_eq!(verdict(NetSource::Fds(vec![5, 6]), 2, IoThreads::Own(2)), Ok(()));
        let few = TuningError::Descriptors { queues: 3, descriptors: 2 };
        assert_eq!(verdict(NetSource::Fds(vec![5, 6]), 3, IoThreads::Own(1)), Err(few));
        let fds = |numbers: &[RawFd]| NetSource::Fds(numbers.to_vec());
        assert!(fds(&[5, 6]).meets(&fds(&[6, 7])) && !fds(&[5, 6]).meets(&fds(&[7])) && !fds(&[5]).meets(&tap()));
        assert!(fds(&[5, 6, 5]).repeats() && !fds(&[5, 6]).repeats() && !tap().repeats());
        assert_eq!(
            (fds(&[5]).to_string(), fds(&[5, 6]).to_string()),
            ("descriptor 5".into(), "descriptors 5, 6".into())
        );
    }

    #[test]
    fn a_filter_knows_the_address_and_those_that_a_station_can_have() {
        let verdict = |mac: Option<&str>, filter| {
            let tuning = NetTuning { filter, ..NetTuning::default() };
            let mac = mac.map(|mac| mac.parse().unwrap());
            NetConfig { id: "n".to_owned(), source: NetSource::Fds(vec![5]), mac, tuning }.validate_tuning()
        };
        let mac = Some("02:00:00:00:00:01");
        let ip = |addresses: &[&str]| NetFilter::MacAndIp(addresses.iter().map(|text| text.parse().unwrap()).collect());
        assert_eq!(verdict(None, NetFilter::Off), Ok(()));
        assert_eq!(verdict(None, NetFilter::Mac), Err(TuningError::FilterWithoutMac("mac")));
        assert_eq!(verdict(None, ip(&["192.0.2.1"])), Err(TuningError::FilterWithoutMac("mac+ip")));
        assert_eq!((verdict(mac, NetFilter::Mac), verdict(mac, ip(&["192.0.2.1", "2001:db8::1"]))), (Ok(()), Ok(())));
        assert_eq!(verdict(mac, ip(&[])), Err(TuningError::FilterAddresses(0)));
        assert_eq!(verdict(mac, ip(&["192.0.2.1"; 64])), Ok(()));
        assert_eq!(verdict(mac, ip(&["192.0.2.1"; 65])), Err(TuningError::FilterAddresses(65)));
        for text in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "::", "ff02::1"] {
            assert_eq!(verdict(mac, ip(&[text])), Err(TuningError::FilterAddress(text.parse().unwrap())));
        }
    }

    #[test]
    fn what_no_station_has_is_refused() {
        let refused = |text: &str| text.parse::<MacAddress>().unwrap_err();
        for text in ["", "02", "02:00:00:00:00", "02:00:00:00:00:00:00", "02-00-00-00-00-00", "2:0:0:0:0:0"] {
            assert_eq!(refused(text), MacAddressError::Form { text: text.to_owned() });
        }
        for text in
            ["02:00:00:00:00:0g", "02:00:00:00:00:+1", " 02:00:00:00:00:01", "02:00:00:00:00:01:", "é2:00:00:00:00:0"]
        {
            assert_eq!(refused(text), MacAddressError::Form { text: text.to_owned() });
        }
        for text in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "03:00:00:00:00:00"] {
            assert_eq!(refused(text), MacAddressError::Multicast { text: text.to_owned() });
        }
        assert!(matches!(refused("00:00:00:00:00:00"), MacAddressError::Zero { .. }));
    }
}
