//! The devices of a saved machine that are near its nodes: a section of its own, of those machines that have some.

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// The ids of the devices that are near each node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearnessState {
    devices: Vec<Vec<String>>,
}

impl NearnessState {
    /// What a snapshot keeps of `config`; `None` where no device is near a node.
    #[must_use]
    pub fn save(config: &VmConfig) -> Option<Self> {
        let devices: Vec<_> = config.numa.iter().map(|node| node.devices.clone()).collect();
        devices.iter().any(|near| !near.is_empty()).then_some(Self { devices })
    }

    /// Gives the nodes of `config` their devices, unchecked. Whether it has so many nodes.
    #[must_use]
    pub fn restore(self, config: &mut VmConfig) -> bool {
        let fits = self.devices.len() == config.numa.len();
        config.numa.iter_mut().zip(self.devices).for_each(|(node, devices)| node.devices = devices);
        fits
    }
}
