//! The header before each frame (virtio 1.3 §5.1.6): what a driver may ask for in it, and what it is told.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

use crate::virtio::abi::net_header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

/// Bytes of the header, which with VERSION_1 always has the number of buffers at its end.
pub(crate) const HEADER_BYTES: usize = 12;
/// The same, as the length of a chain's part.
pub(super) const HEADER_LEN: u32 = 12;

/// Offsets in the header.
pub(super) const FLAGS: usize = 0;
pub(super) const GSO_TYPE: usize = 1;
const HDR_LEN: usize = 2;
const GSO_SIZE: usize = 4;
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;
pub(super) const NUM_BUFFERS: usize = 10;

/// Bytes of an Ethernet header without tags; the last two are its type.
pub(super) const ETHERNET_BYTES: usize = 14;
/// Bytes of a VLAN tag, which goes before the type.
pub(super) const VLAN_TAG_BYTES: usize = 4;
/// The types that say that a tag follows: 802.1Q, 802.1ad and the one of QinQ before that.
pub(super) const VLAN_TYPES: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Tags that are looked through.
pub(super) const VLAN_TAGS_MAX: usize = 2;

/// The shortest frame that a tap takes: an Ethernet header.
pub(super) const FRAME_BYTES_MIN: u32 = 14;
/// The longest: an Ethernet header with a VLAN tag, and the largest packet that IP can describe, as segmentation
/// offloads make it.
pub(super) const FRAME_BYTES_MAX: u32 = 14 + 4 + 65536;

/// What a driver may leave to the device, by the features that it negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TransmitRules {
    csum: bool,
    tso4: bool,
    tso6: bool,
    ecn: bool,
    uso: bool,
}

impl TransmitRules {
    /// A segmentation offload without the features that it requires (virtio 1.3 §5.1.3.1) counts as not negotiated.
    pub(super) fn new(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let csum = has(VIRTIO_NET_F_CSUM);
        let (tso4, tso6) = (csum && has(VIRTIO_NET_F_HOST_TSO4), csum && has(VIRTIO_NET_F_HOST_TSO6));
        Self {
            csum,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && has(VIRTIO_NET_F_HOST_ECN),
            uso: csum && has(VIRTIO_NET_F_HOST_USO),
        }
    }

    /// Checks the header of a frame of `frame_bytes`, and leaves in it only what was checked.
    ///
    /// # Errors
    /// What is wrong with the header or the frame.
    pub(super) fn check(self, header: &mut [u8; HEADER_BYTES], frame_bytes: u32) -> Result<(), &'static str> {
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame_bytes) {
            return Err("a frame of no possible length");
        }
        let field = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let (needs_csum, gso) = (header[FLAGS] & NEEDS_CSUM != 0, header[GSO_TYPE]);
        let (start, offset, size) = (field(CSUM_START), field(CSUM_OFFSET), field(GSO_SIZE));
        if needs_csum {
            if !self.csum {
                return Err("a checksum to be filled in, which was not negotiated");
            }
            if u32::from(start) + u32::from(offset) + 2 > frame_bytes {
                return Err("a checksum outside the frame");
            }
        }
        if gso != GSO_NONE {
            if !self.allows_gso(gso) {
                return Err("a segmentation that was not negotiated");
            }
            // virtio 1.3 §5.1.6.2.1: a driver that leaves segmentation leaves the checksum too, and says the size.
            if !needs_csum || size == 0 {
                return Err("a segmentation without checksum or size");
            }
        }
        // It is a hint (virtio 1.3 §5.1.6.2.2), but a tap refuses one beyond the frame.
        let hdr_len = u32::from(field(HDR_LEN)).min(frame_bytes);
        let [h0, h1, ..] = hdr_len.to_le_bytes();
        *header = [0; HEADER_BYTES];
        header[HDR_LEN..HDR_LEN + 2].copy_from_slice(&[h0, h1]);
        if needs_csum {
            header[FLAGS] = NEEDS_CSUM;
            header[CSUM_START..CSUM_START + 2].copy_from_slice(&start.to_le_bytes());
            header[CSUM_OFFSET..CSUM_OFFSET + 2].copy_from_slice(&offset.to_le_bytes());
        }
        if gso != GSO_NONE {
            header[GSO_TYPE] = gso;
            header[GSO_SIZE..GSO_SIZE + 2].copy_from_slice(&size.to_le_bytes());
        }
        Ok(())
    }

    fn allows_gso(self, gso: u8) -> bool {
        let ecn = gso & GSO_ECN != 0;
        match gso & !GSO_ECN {
            GSO_TCPV4 => self.tso4 && (self.ecn || !ecn),
            GSO_TCPV6 => self.tso6 && (self.ecn || !ecn),
            GSO_UDP_L4 => self.uso && !ecn,
            _ => false,
        }
    }
}

/// Where in the frame the host fills the checksum in that a checked header asks for.
pub(super) fn checksum_at(header: &[u8; HEADER_BYTES]) -> Option<usize> {
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    (header[FLAGS] & NEEDS_CSUM != 0).then(|| field(CSUM_START) + field(CSUM_OFFSET))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: TransmitRules = TransmitRules { csum: true, tso4: true, tso6: true, ecn: true, uso: true };

    fn header(flags: u8, gso: u8, [hdr_len, size, start, offset]: [u16; 4]) -> [u8; HEADER_BYTES] {
        let mut header = [0xff; HEADER_BYTES];
        header[FLAGS] = flags;
        header[GSO_TYPE] = gso;
        for (at, value) in [(HDR_LEN, hdr_len), (GSO_SIZE, size), (CSUM_START, start), (CSUM_OFFSET, offset)] {
            header[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        header
    }

    #[test]
    fn a_checked_header_has_what_was_checked_and_nothing_else() {
        let cases = [
            (header(0, 0, [9, 9, 9, 9]), header(0, 0, [9, 0, 0, 0])),
            // virtio 1.3 §5.1.6.2.2: flags that the device does not know are ignored.
            (header(0xfe, 0, [0, 0, 99, 99]), header(0, 0, [0; 4])),
            (header(1, 0, [2000, 5, 34, 16]), header(1, 0, [1000, 0, 34, 16])),
            (header(1, 1, [54, 900, 34, 16]), header(1, 1, [54, 900, 34, 16])),
            (header(1, 0x84, [74, 900, 54, 16]), header(1, 0x84, [74, 900, 54, 16])),
            (header(1, 5, [42, 900, 34, 6]), header(1, 5, [42, 900, 34, 6])),
        ];
        for (mut given, mut expected) in cases {
            assert_eq!(ALL.check(&mut given, 1000), Ok(()));
            expected[NUM_BUFFERS..].fill(0);
            assert_eq!(given, expected);
        }
    }

    #[test]
    fn what_was_not_negotiated_is_refused_and_so_is_what_depends_on_it() {
        let bits = |bits: &[u32]| TransmitRules::new(bits.iter().fold(0, |all, bit| all | (1 << bit)));
        let good = [34, 900, 34, 16];
        let checksum = |rules: TransmitRules| rules.check(&mut header(1, 0, good), 1000).is_ok();
        let gso = |rules: TransmitRules, gso| rules.check(&mut header(1, gso, good), 1000).is_ok();
        let (csum, tso4, tso6) = (VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6);
        let (ecn, uso) = (VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_USO);
        assert!(!checksum(bits(&[])) && checksum(bits(&[csum])));
        assert!(!gso(bits(&[csum, tso6, uso, ecn]), 1) && gso(bits(&[csum, tso4]), 1));
        assert!(!gso(bits(&[csum, tso4, uso, ecn]), 4) && gso(bits(&[csum, tso6]), 4));
        assert!(!gso(bits(&[csum, tso4, tso6]), 5) && gso(bits(&[csum, uso]), 5));
        assert!(!gso(bits(&[csum, tso4]), 0x81) && gso(bits(&[csum, tso4, ecn]), 0x81));
        assert_eq!(bits(&[tso4, tso6, ecn, uso]), TransmitRules::default());
        assert_eq!(bits(&[csum, ecn]), bits(&[csum]));
        for unknown in [2, 3, 6, 0x7f, 0x80, 0x85, 0xff] {
            assert!(!gso(ALL, unknown), "{unknown:#x}");
        }
    }

    #[test]
    fn lies_about_lengths_are_refused() {
        assert_eq!(ALL.check(&mut header(1, 0, [0, 0, 0, 12]), 14), Ok(()));
        for (start, offset) in [(0, 13), (13, 0), (14, 0), (65535, 65535), (0, 65535)] {
            assert!(ALL.check(&mut header(1, 0, [0, 0, start, offset]), 14).is_err(), "{start} {offset}");
        }
        assert!(ALL.check(&mut header(1, 1, [0, 0, 34, 16]), 1000).is_err(), "segments of no size");
        assert!(ALL.check(&mut header(0, 1, [0, 900, 34, 16]), 1000).is_err(), "no checksum");
        for (bytes, fits) in
            [(0, false), (13, false), (14, true), (FRAME_BYTES_MAX, true), (FRAME_BYTES_MAX + 1, false)]
        {
            assert_eq!(ALL.check(&mut header(0, 0, [0; 4]), bytes).is_ok(), fits, "{bytes}");
        }
    }
}
