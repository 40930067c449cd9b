//! The names of feature bits (virtio 1.3 §5 and §6), for errors that a user reads.

use std::fmt;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::DeviceType;

/// Feature bits of a kind of device. They are shown by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureSet {
    /// Whose they are.
    pub device_type: DeviceType,
    /// The bits.
    pub bits: u64,
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for bit in (0..u64::BITS).filter(|bit| self.bits & (1 << bit) != 0) {
            match name(self.device_type, bit) {
                Some(name) => write!(f, "{separator}{name}")?,
                None => write!(f, "{separator}bit {bit}")?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

fn name(device_type: DeviceType, bit: u32) -> Option<&'static str> {
    match bit {
        VIRTIO_RING_F_INDIRECT_DESC => Some("VIRTIO_F_INDIRECT_DESC"),
        VIRTIO_RING_F_EVENT_IDX => Some("VIRTIO_F_EVENT_IDX"),
        VIRTIO_F_VERSION_1 => Some("VIRTIO_F_VERSION_1"),
        _ => match device_type {
            DeviceType::Network => network(bit),
            DeviceType::Block => block(bit),
            DeviceType::Entropy => None,
            DeviceType::Balloon => balloon(bit),
            DeviceType::Memory => memory(bit),
        },
    }
}

fn network(bit: u32) -> Option<&'static str> {
    use virtio_bindings::virtio_net as net;
    Some(match bit {
        net::VIRTIO_NET_F_CSUM => "VIRTIO_NET_F_CSUM",
        net::VIRTIO_NET_F_GUEST_CSUM => "VIRTIO_NET_F_GUEST_CSUM",
        net::VIRTIO_NET_F_MTU => "VIRTIO_NET_F_MTU",
        net::VIRTIO_NET_F_MAC => "VIRTIO_NET_F_MAC",
        net::VIRTIO_NET_F_GUEST_TSO4 => "VIRTIO_NET_F_GUEST_TSO4",
        net::VIRTIO_NET_F_GUEST_TSO6 => "VIRTIO_NET_F_GUEST_TSO6",
        net::VIRTIO_NET_F_GUEST_ECN => "VIRTIO_NET_F_GUEST_ECN",
        net::VIRTIO_NET_F_HOST_TSO4 => "VIRTIO_NET_F_HOST_TSO4",
        net::VIRTIO_NET_F_HOST_TSO6 => "VIRTIO_NET_F_HOST_TSO6",
        net::VIRTIO_NET_F_HOST_ECN => "VIRTIO_NET_F_HOST_ECN",
        net::VIRTIO_NET_F_MRG_RXBUF => "VIRTIO_NET_F_MRG_RXBUF",
        net::VIRTIO_NET_F_STATUS => "VIRTIO_NET_F_STATUS",
        net::VIRTIO_NET_F_CTRL_VQ => "VIRTIO_NET_F_CTRL_VQ",
        net::VIRTIO_NET_F_MQ => "VIRTIO_NET_F_MQ",
        net::VIRTIO_NET_F_GUEST_USO4 => "VIRTIO_NET_F_GUEST_USO4",
        net::VIRTIO_NET_F_GUEST_USO6 => "VIRTIO_NET_F_GUEST_USO6",
        net::VIRTIO_NET_F_HOST_USO => "VIRTIO_NET_F_HOST_USO",
        _ => return None,
    })
}

fn block(bit: u32) -> Option<&'static str> {
    use virtio_bindings::virtio_blk as blk;
    Some(match bit {
        blk::VIRTIO_BLK_F_SEG_MAX => "VIRTIO_BLK_F_SEG_MAX",
        blk::VIRTIO_BLK_F_RO => "VIRTIO_BLK_F_RO",
        blk::VIRTIO_BLK_F_BLK_SIZE => "VIRTIO_BLK_F_BLK_SIZE",
        blk::VIRTIO_BLK_F_FLUSH => "VIRTIO_BLK_F_FLUSH",
        blk::VIRTIO_BLK_F_TOPOLOGY => "VIRTIO_BLK_F_TOPOLOGY",
        blk::VIRTIO_BLK_F_MQ => "VIRTIO_BLK_F_MQ",
        blk::VIRTIO_BLK_F_DISCARD => "VIRTIO_BLK_F_DISCARD",
        blk::VIRTIO_BLK_F_WRITE_ZEROES => "VIRTIO_BLK_F_WRITE_ZEROES",
        _ => return None,
    })
}

fn balloon(bit: u32) -> Option<&'static str> {
    Some(match bit {
        0 => "VIRTIO_BALLOON_F_MUST_TELL_HOST",
        1 => "VIRTIO_BALLOON_F_STATS_VQ",
        2 => "VIRTIO_BALLOON_F_DEFLATE_ON_OOM",
        3 => "VIRTIO_BALLOON_F_FREE_PAGE_HINT",
        5 => "VIRTIO_BALLOON_F_PAGE_REPORTING",
        _ => return None,
    })
}

fn memory(bit: u32) -> Option<&'static str> {
    Some(match bit {
        0 => "VIRTIO_MEM_F_ACPI_PXM",
        1 => "VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_shown_by_name_and_unknown_ones_by_number() {
        let shown = |device_type, bits| FeatureSet { device_type, bits }.to_string();
        let bits = 1 << 11 | 1 << 29 | 1 << 40;
        assert_eq!(shown(DeviceType::Network, bits), "VIRTIO_NET_F_HOST_TSO4, VIRTIO_F_EVENT_IDX, bit 40");
        assert_eq!(shown(DeviceType::Block, 1 << 5 | 1 << 13), "VIRTIO_BLK_F_RO, VIRTIO_BLK_F_DISCARD");
        assert_eq!(shown(DeviceType::Balloon, 1 << 1), "VIRTIO_BALLOON_F_STATS_VQ");
        assert_eq!(shown(DeviceType::Entropy, 1 << 1), "bit 1");
    }
}
