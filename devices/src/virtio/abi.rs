//! Constants of the specification at the width of the fields that they are for; virtio-bindings has them all as
//! `u32`, and is what they are checked against.

use virtio_bindings::{virtio_blk, virtio_net, virtio_ring};

/// Bits of a descriptor's flags (virtio 1.3 §2.7.5).
pub(crate) mod descriptor {
    pub(crate) const NEXT: u16 = 1 << 0;
    pub(crate) const WRITE: u16 = 1 << 1;
    pub(crate) const INDIRECT: u16 = 1 << 2;
}

/// The used ring's flag that asks the driver for silence (virtio 1.3 §2.7.8).
pub(crate) const USED_NO_NOTIFY: u16 = 1 << 0;
/// The available ring's flag that asks the device for silence (virtio 1.3 §2.7.6).
pub(crate) const AVAIL_NO_INTERRUPT: u16 = 1 << 0;

/// A block request's status (virtio 1.3 §5.2.6).
pub(crate) mod blk_status {
    pub(crate) const OK: u8 = 0;
    pub(crate) const IOERR: u8 = 1;
    pub(crate) const UNSUPP: u8 = 2;
}

/// Bytes of a disk's serial number (virtio 1.3 §5.2.6).
pub(crate) const BLK_ID_BYTES: usize = 20;

/// A discard's or write-zeroes' range: sector, sectors, flags (virtio 1.3 §5.2.6).
pub(crate) const BLK_RANGE_BYTES: usize = 16;

/// Flags and segmentation types of a frame's header (virtio 1.3 §5.1.6).
pub(crate) mod net_header {
    pub(crate) const NEEDS_CSUM: u8 = 1 << 0;
    pub(crate) const GSO_NONE: u8 = 0;
    pub(crate) const GSO_TCPV4: u8 = 1;
    pub(crate) const GSO_TCPV6: u8 = 4;
    pub(crate) const GSO_UDP_L4: u8 = 5;
    /// Set beside a TCP type.
    pub(crate) const GSO_ECN: u8 = 1 << 7;
}

/// Commands of a network device's control queue and their answers (virtio 1.3 §5.1.6.5).
pub(crate) mod net_control {
    pub(crate) const ACK_OK: u8 = 0;
    pub(crate) const ACK_ERR: u8 = 1;
    pub(crate) const CLASS_MQ: u8 = 4;
    pub(crate) const MQ_PAIRS_SET: u8 = 0;
}

/// A network device's status field: the link is up (virtio 1.3 §5.1.4).
pub(crate) const NET_LINK_UP: u16 = 1 << 0;

const _: () = assert!(descriptor::NEXT as u32 == virtio_ring::VRING_DESC_F_NEXT);
const _: () = assert!(descriptor::WRITE as u32 == virtio_ring::VRING_DESC_F_WRITE);
const _: () = assert!(descriptor::INDIRECT as u32 == virtio_ring::VRING_DESC_F_INDIRECT);
const _: () = assert!(USED_NO_NOTIFY as u32 == virtio_ring::VRING_USED_F_NO_NOTIFY);
const _: () = assert!(AVAIL_NO_INTERRUPT as u32 == virtio_ring::VRING_AVAIL_F_NO_INTERRUPT);
const _: () = assert!(blk_status::OK as u32 == virtio_blk::VIRTIO_BLK_S_OK);
const _: () = assert!(blk_status::IOERR as u32 == virtio_blk::VIRTIO_BLK_S_IOERR);
const _: () = assert!(blk_status::UNSUPP as u32 == virtio_blk::VIRTIO_BLK_S_UNSUPP);
const _: () = assert!(BLK_ID_BYTES as u64 == virtio_blk::VIRTIO_BLK_ID_BYTES as u64);
const _: () = assert!(BLK_RANGE_BYTES == size_of::<virtio_blk::virtio_blk_discard_write_zeroes>());
const _: () = assert!(net_header::NEEDS_CSUM as u32 == virtio_net::VIRTIO_NET_HDR_F_NEEDS_CSUM);
const _: () = assert!(net_header::GSO_NONE as u32 == virtio_net::VIRTIO_NET_HDR_GSO_NONE);
const _: () = assert!(net_header::GSO_TCPV4 as u32 == virtio_net::VIRTIO_NET_HDR_GSO_TCPV4);
const _: () = assert!(net_header::GSO_TCPV6 as u32 == virtio_net::VIRTIO_NET_HDR_GSO_TCPV6);
const _: () = assert!(net_header::GSO_UDP_L4 as u32 == virtio_net::VIRTIO_NET_HDR_GSO_UDP_L4);
const _: () = assert!(net_header::GSO_ECN as u32 == virtio_net::VIRTIO_NET_HDR_GSO_ECN);
const _: () = assert!(net_control::ACK_OK as u32 == virtio_net::VIRTIO_NET_OK);
const _: () = assert!(net_control::ACK_ERR as u32 == virtio_net::VIRTIO_NET_ERR);
const _: () = assert!(net_control::CLASS_MQ as u32 == virtio_net::VIRTIO_NET_CTRL_MQ);
const _: () = assert!(net_control::MQ_PAIRS_SET as u32 == virtio_net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
const _: () = assert!(NET_LINK_UP as u32 == virtio_net::VIRTIO_NET_S_LINK_UP);
