//! The machine's networks: attached to their taps, given threads and limits.

use std::sync::Arc;
use std::time::Duration;

use devices::backend::net::{InterfaceName, Tap};
use devices::limit::Limiter;
use devices::virtio::net::{LinkState, Net, NetControl, NetOptions, NetQueue};
use thiserror::Error;

use super::devices::DeviceError;
use super::pool::IoPool;
use crate::config::{LimiterConfig, NetConfig, NetSource};

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
}

/// Attaches to a network's tap.
pub(super) fn open(net: &NetConfig) -> Result<Tap, DeviceError> {
    let tap = match &net.source {
        NetSource::Tap(name) => Tap::open(&InterfaceName::new(name).expect("validate() holds names to their form")),
        NetSource::Fd(number) => Tap::from_fd(*number),
    };
    let tap = tap.map_err(|source| DeviceError::Net { id: net.id.clone(), source })?;
    match (net.tuning.mtu, tap.mtu()) {
        (Some(mtu), Some(tap_mtu)) if tap_mtu < mtu.into() => {
            Err(DeviceError::Mtu { id: net.id.clone(), mtu, tap: net.source.clone(), tap_mtu })
        }
        _ => Ok(tap),
    }
}

/// Makes a network over its tap.
pub(super) fn make(net: &NetConfig, tap: Tap, pool: &mut IoPool) -> Result<(Net, Network), DeviceError> {
    let NetConfig { id, mac, tuning, .. } = net;
    let limiter = pool.limiter(tuning.limits, tuning.limit_group.as_deref());
    let queue = NetQueue { backend: Arc::new(tap), thread: pool.spawn(id, Duration::ZERO)? };
    let options = NetOptions { mac: mac.map(|mac| mac.bytes()), mtu: tuning.mtu, limiter: Some(Arc::clone(&limiter)) };
    let device = Net::new(id, queue, options);
    let device =
        device.map_err(|source| DeviceError::Host { what: format!("the timers of network `{id}`"), source })?;
    let control = device.control();
    Ok((device, Network { id: id.clone(), control, limiter }))
}
