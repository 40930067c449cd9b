//! Feature bits: what a device offers over a backend, and what a driver's choice means for the backend.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::NetOptions;
use crate::backend::net::Offloads;

/// What a device over a backend with `offloads` offers. A backend that knows a segmentation takes it from the guest
/// too.
pub(super) fn offered(offloads: Offloads, options: &NetOptions) -> u64 {
    let Offloads { csum, tso4, tso6, tso_ecn, uso } = offloads.consistent();
    let bits = [
        (true, VIRTIO_NET_F_MRG_RXBUF),
        (true, VIRTIO_NET_F_STATUS),
        (true, VIRTIO_RING_F_EVENT_IDX),
        (true, VIRTIO_RING_F_INDIRECT_DESC),
        (options.mac.is_some(), VIRTIO_NET_F_MAC),
        (options.mtu.is_some(), VIRTIO_NET_F_MTU),
        (csum, VIRTIO_NET_F_CSUM),
        (csum, VIRTIO_NET_F_GUEST_CSUM),
        (tso4, VIRTIO_NET_F_HOST_TSO4),
        (tso4, VIRTIO_NET_F_GUEST_TSO4),
        (tso6, VIRTIO_NET_F_HOST_TSO6),
        (tso6, VIRTIO_NET_F_GUEST_TSO6),
        (tso_ecn, VIRTIO_NET_F_HOST_ECN),
        (tso_ecn, VIRTIO_NET_F_GUEST_ECN),
        (uso, VIRTIO_NET_F_HOST_USO),
        (uso, VIRTIO_NET_F_GUEST_USO4),
        (uso, VIRTIO_NET_F_GUEST_USO6),
    ];
    bits.into_iter().filter(|(offers, _)| *offers).fold(0, |features, (_, bit)| features | (1 << bit))
}

/// What a device of so many pairs of queues offers beside [`offered`].
pub(super) fn of_pairs(pairs: usize) -> u64 {
    if pairs > 1 { 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ } else { 0 }
}

/// What a driver that negotiated `features` takes upon itself. Those that lack what they require
/// (virtio 1.3 §5.1.3.1) are left out.
pub(super) fn offloads(features: u64) -> Offloads {
    let has = |bit: u32| features & (1 << bit) != 0;
    let offloads = Offloads {
        csum: has(VIRTIO_NET_F_GUEST_CSUM),
        tso4: has(VIRTIO_NET_F_GUEST_TSO4),
        tso6: has(VIRTIO_NET_F_GUEST_TSO6),
        tso_ecn: has(VIRTIO_NET_F_GUEST_ECN),
        // A tap knows only both together.
        uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
    };
    offloads.consistent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_is_what_the_backend_can() {
        let queue = (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);
        let always = queue | (1 << VIRTIO_NET_F_MRG_RXBUF) | (1 << VIRTIO_NET_F_STATUS);
        let plain = NetOptions::default();
        assert_eq!(offered(Offloads::default(), &plain), always);
        let with_mac = NetOptions { mac: Some([2; 6]), ..NetOptions::default() };
        assert_eq!(offered(Offloads::default(), &with_mac), always | (1 << VIRTIO_NET_F_MAC));
        let with_mtu = NetOptions { mtu: Some(1500), ..NetOptions::default() };
        assert_eq!(offered(Offloads::default(), &with_mtu), always | (1 << VIRTIO_NET_F_MTU));
        assert_eq!(offered(Offloads { csum: false, ..Offloads::ALL }, &plain), always);
        let all = offered(Offloads::ALL, &plain);
        assert_eq!(all & !always, 0b0011_1011_1000_0011 | (0b111 << 54));
        assert_eq!(offloads(all), Offloads::ALL);
    }

    #[test]
    fn what_a_driver_leaves_out_is_left_out() {
        let all = offered(Offloads::ALL, &NetOptions::default());
        let without = |bit: u32| offloads(all & !(1 << bit));
        assert_eq!(without(VIRTIO_NET_F_GUEST_CSUM), Offloads::default());
        assert_eq!(without(VIRTIO_NET_F_GUEST_USO4), Offloads { uso: false, ..Offloads::ALL });
        assert_eq!(without(VIRTIO_NET_F_GUEST_USO6), Offloads { uso: false, ..Offloads::ALL });
        assert_eq!(without(VIRTIO_NET_F_GUEST_TSO4), Offloads { tso4: false, ..Offloads::ALL });
        assert_eq!(without(VIRTIO_NET_F_CSUM), Offloads::ALL);
    }
}
