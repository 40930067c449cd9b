//! The machine's networks: attached to their taps, given threads and limits.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use devices::backend::net::{InterfaceName, Tap};
use devices::limit::Limiter;
use devices::virtio::net::{LinkState, Net, NetControl, NetOptions, NetQueue, SourceFilter};
use thiserror::Error;

use super::devices::DeviceError;
use super::pool::IoPool;
use crate::config::{LimiterConfig, MacAddress, NetConfig, NetFilter, NetSource};

/// What cannot be done to a network that is in use.
#[derive(Debug, Error)]
pub enum NetChangeError {
    /// The machine has no such network.
    #[error("there is no network `{0}`")]
    Unknown(String),
}

/// A network of a machine, for what is done to it while it is in use.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) id: String,
    control: NetControl,
    limiter: Arc<Limiter>,
    filter: &'static str,
}

impl Network {
    pub(super) fn limit(&self, limits: LimiterConfig) {
        self.limiter.change(limits);
    }

    pub(super) fn set_link(&self, state: LinkState) {
        self.control.set_link(state);
    }

    pub(super) fn link(&self) -> LinkState {
        self.control.link()
    }

    pub(super) fn filter(&self) -> &'static str {
        self.filter
    }
}

/// Attaches to the queues of a network's tap.
pub(super) fn open(net: &NetConfig) -> Result<Vec<Tap>, DeviceError> {
    let taps = match &net.source {
        NetSource::Tap(name) => {
            let name = InterfaceName::new(name).expect("validate() holds names to their form");
            Tap::open_queues(&name, net.tuning.queues)
        }
        NetSource::Fds(numbers) => Tap::from_fds(numbers),
    };
    let taps = taps.map_err(|source| DeviceError::Net { id: net.id.clone(), source })?;
    match (net.tuning.mtu, taps.first().and_then(Tap::mtu)) {
        (Some(mtu), Some(tap_mtu)) if tap_mtu < mtu.into() => {
            Err(DeviceError::Mtu { id: net.id.clone(), mtu, tap: net.source.clone(), tap_mtu })
        }
        _ => Ok(taps),
    }
}

/// Makes a network over its tap's queues.
pub(super) fn make(net: &NetConfig, taps: Vec<Tap>, pool: &mut IoPool) -> Result<(Net, Network), DeviceError> {
    let NetConfig { id, mac, tuning, .. } = net;
    let limiter = pool.limiter(tuning.limits, tuning.limit_group.as_deref());
    let threads = pool.threads(id, &tuning.threads, Duration::from_micros(tuning.poll_us.into()))?;
    let queues = taps.into_iter().zip(threads.iter().cycle());
    let queues = queues.map(|(tap, thread)| NetQueue { backend: Arc::new(tap), thread: thread.clone() }).collect();
    let options = NetOptions {
        mac: mac.map(MacAddress::bytes),
        mtu: tuning.mtu,
        filter: mac.and_then(|mac| filter(mac, &tuning.filter)),
        limiter: Some(Arc::clone(&limiter)),
    };
    let device = Net::new(id, queues, options);
    let device =
        device.map_err(|source| DeviceError::Host { what: format!("the queues of network `{id}`"), source })?;
    let control = device.control();
    Ok((device, Network { id: id.clone(), control, limiter, filter: tuning.filter.name() }))
}

/// Where there is a filter, validate() has seen to it that there is an address.
fn filter(mac: MacAddress, filter: &NetFilter) -> Option<Arc<SourceFilter>> {
    match filter {
        NetFilter::Off => None,
        NetFilter::Mac => Some(Arc::new(SourceFilter::mac(mac.bytes()))),
        NetFilter::MacAndIp(addresses) => {
            let ipv4 = addresses.iter().filter_map(|address| match address {
                IpAddr::V4(ipv4) => Some(*ipv4),
                IpAddr::V6(_) => None,
            });
            let ipv6 = addresses.iter().filter_map(|address| match address {
                IpAddr::V6(ipv6) => Some(*ipv6),
                IpAddr::V4(_) => None,
            });
            Some(Arc::new(SourceFilter::mac_and_ip(mac.bytes(), ipv4.collect(), ipv6.collect())))
        }
    }
}
