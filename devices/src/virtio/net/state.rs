//! What a network device saves. Frames are not in it: those that the host has queued stay with its interface, and those
//! in the driver's rings are in guest memory.

use std::num::NonZero;

use serde::{Deserialize, Serialize};

use super::{LinkState, MAC_BYTES, Net, NetOptions};
use crate::limit::LimiterState;
use crate::state::SaveState;
use crate::virtio::RestoreError;
use crate::virtio::state::{restore_limits, same};
use crate::virtio::voice::News;

/// What a network device saves: what its driver was told and has asked for, and how full its limits are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    pub(crate) mac: Option<[u8; MAC_BYTES]>,
    pub(crate) mtu: Option<NonZero<u16>>,
    pub(crate) plugged: bool,
    pub(crate) news: News,
    /// Pairs of queues that take part.
    pub(crate) active_pairs: u16,
    pub(crate) limiter: Option<LimiterState>,
}

impl SaveState for Net {
    type State = NetState;
    type Error = RestoreError;

    /// What the driver took upon itself follows from the features, and is set when the device starts.
    fn save(&self) -> NetState {
        let Self { identity: _, options, pairs: _, control: _, control_index: _, steering, counters: _, link, log: _ } =
            self;
        let NetOptions { mac, mtu, filter: _, limiter } = options;
        NetState {
            mac: *mac,
            mtu: mtu.and_then(NonZero::new),
            plugged: link.is_plugged(),
            news: link.news(),
            active_pairs: u16::try_from(steering.active()).expect("at most PAIRS_MAX pairs"),
            limiter: limiter.as_ref().map(|limiter| limiter.save()),
        }
    }

    fn restore(&mut self, state: NetState) -> Result<(), RestoreError> {
        let NetState { mac, mtu, plugged, news, active_pairs, limiter } = state;
        if mac != self.options.mac {
            return Err(RestoreError::Mac { saved: mac, here: self.options.mac });
        }
        // 0 is no MTU.
        same("an MTU of", mtu.map_or(0, NonZero::get).into(), self.options.mtu.unwrap_or(0).into())?;
        let active = usize::from(active_pairs);
        if !(1..=self.pairs.len()).contains(&active) {
            return Err(RestoreError::Impossible("more pairs of queues take part than there are, or none"));
        }
        restore_limits(self.options.limiter.as_deref(), limiter)?;
        let newcomers = &self.pairs[1..active];
        newcomers.iter().try_for_each(|pair| pair.queue.backend.attach()).map_err(RestoreError::Backend)?;
        self.steering.activate(active);
        self.link.inherit(if plugged { LinkState::Up } else { LinkState::Down }, news);
        Ok(())
    }
}
