//! Which frames a guest may send: those that say of their source what is true.
//!
//! A filter is a pure function of a copy of a frame's first bytes. What it has seen is what goes: the copy is sent in
//! place of the guest's bytes, which may have changed meanwhile, and nothing behind the guest's back writes into it
//! either, as a checksum to be filled in by the host would.

#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, Ipv6Addr};

use super::MAC_BYTES;
use super::header::{ETHERNET_BYTES, VLAN_TAG_BYTES, VLAN_TAGS_MAX, VLAN_TYPES};

/// The most bytes of a frame that a filter sees, and all headers that it follows end there.
pub(super) const HEAD_BYTES_MAX: usize = 256;

const SOURCE_MAC: usize = 6;

const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Ports of a DHCP client and its server (RFC 2131 §4.1).
const DHCP_PORTS: [u8; 4] = [0, 68, 0, 67];

/// IPv6 extension headers (RFC 8200 §4) that may stand before an ICMPv6 message.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// ICMPv6 types: RFC 3810 §5.2 and RFC 2710 §3, RFC 4861 §4, RFC 3122 §2.
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const MLD_REPORT_V2: u8 = 143;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const INVERSE_SOLICITATION: u8 = 141;
const INVERSE_ADVERTISEMENT: u8 = 142;

/// Options that say a link-layer address, the source's and the target's (RFC 4861 §4.6.1).
const LINK_LAYER_OPTIONS: [u8; 2] = [1, 2];

/// Why a frame does not go.
type Refusal = &'static str;

const FOREIGN_MAC: Refusal = "another source address than the device's";
const CUT_SHORT: Refusal = "headers that are cut short, or longer than a filter follows";

/// What a guest's frames may say of their source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFilter {
    mac: [u8; MAC_BYTES],
    addresses: Option<Addresses>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Addresses {
    ipv4: Vec<Ipv4Addr>,
    /// The one that follows from the Ethernet address is among them.
    ipv6: Vec<Ipv6Addr>,
}

impl SourceFilter {
    /// Any protocol from this Ethernet address.
    pub fn mac(mac: [u8; MAC_BYTES]) -> Self {
        Self { mac, addresses: None }
    }

    /// ARP, IPv4 and IPv6 from these addresses, and from the link-local one that follows from the Ethernet address.
    pub fn mac_and_ip(mac: [u8; MAC_BYTES], ipv4: Vec<Ipv4Addr>, mut ipv6: Vec<Ipv6Addr>) -> Self {
        ipv6.push(link_local(mac));
        Self { mac, addresses: Some(Addresses { ipv4, ipv6 }) }
    }

    /// How many of a frame's bytes it wants to see.
    pub(super) fn head_bytes(&self) -> usize {
        if self.addresses.is_some() { HEAD_BYTES_MAX } else { ETHERNET_BYTES }
    }

    /// Checks a frame by its first [`Self::head_bytes`] bytes, or all of a shorter one. The host fills a checksum in at
    /// `checksum_at`, if there is one to fill in.
    ///
    /// # Errors
    /// Why the frame does not go.
    pub(super) fn check(&self, head: &[u8], checksum_at: Option<usize>) -> Result<(), Refusal> {
        let trusted = self.trusted_bytes(head)?;
        match checksum_at {
            _ if trusted > head.len() => Err(CUT_SHORT),
            Some(at) if at < trusted => Err("a checksum in headers that were checked"),
            _ => Ok(()),
        }
    }

    /// How many of its first bytes the frame may go for.
    fn trusted_bytes(&self, head: &[u8]) -> Result<usize, Refusal> {
        if field::<ETHERNET_BYTES>(head, 0)?[SOURCE_MAC..SOURCE_MAC + MAC_BYTES] != self.mac {
            return Err(FOREIGN_MAC);
        }
        let Some(addresses) = &self.addresses else { return Ok(ETHERNET_BYTES) };
        let mut at = ETHERNET_BYTES;
        let mut protocol = u16::from_be_bytes(field(head, at - 2)?);
        for _ in 0..VLAN_TAGS_MAX {
            if VLAN_TYPES.contains(&protocol) {
                at += VLAN_TAG_BYTES;
                protocol = u16::from_be_bytes(field(head, at - 2)?);
            }
        }
        match protocol {
            ARP => self.arp(addresses, head, at),
            IPV4 => addresses.ipv4(head, at),
            IPV6 => self.ipv6(addresses, head, at),
            _ => Err("another protocol than ARP, IPv4 and IPv6"),
        }
    }

    /// RFC 826. Who has no address yet asks who has the one it wants (RFC 5227 §2.1.1).
    fn arp(&self, addresses: &Addresses, head: &[u8], at: usize) -> Result<usize, Refusal> {
        const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
        const REQUEST: [u8; 2] = [0, 1];
        const REPLY: [u8; 2] = [0, 2];
        const SENDER_MAC: usize = 8;
        const SENDER_IP: usize = 14;
        const TARGET_IP: usize = 24;
        const ARP_BYTES: usize = 28;
        let operation = field::<2>(head, at + ETHERNET_AND_IPV4.len())?;
        if field(head, at)? != ETHERNET_AND_IPV4 || ![REQUEST, REPLY].contains(&operation) {
            return Err("an ARP message of another kind");
        }
        if field(head, at + SENDER_MAC)? != self.mac {
            return Err("an ARP message in another's name");
        }
        let ip = |at| field::<4>(head, at).map(Ipv4Addr::from);
        let (sender, target) = (ip(at + SENDER_IP)?, ip(at + TARGET_IP)?);
        let probes = operation == REQUEST && sender.is_unspecified();
        let claimed = if probes { target } else { sender };
        if addresses.ipv4.contains(&claimed) { Ok(at + ARP_BYTES) } else { Err("an ARP message for another's address") }
    }

    fn ipv6(&self, addresses: &Addresses, head: &[u8], at: usize) -> Result<usize, Refusal> {
        const PAYLOAD_LENGTH: usize = 4;
        const NEXT_HEADER: usize = 6;
        const SOURCE: usize = 8;
        const IPV6_BYTES: usize = 40;
        let header = field::<IPV6_BYTES>(head, at)?;
        if header[0] >> 4 != 6 {
            return Err("IPv6 of another version");
        }
        let source = Ipv6Addr::from(field::<16>(&header, SOURCE)?);
        if !source.is_unspecified() && !addresses.ipv6.contains(&source) {
            return Err("IPv6 from another's address");
        }
        // What is behind the packet is no part of it: whoever takes it puts another fragment there.
        let end = at + IPV6_BYTES + usize::from(u16::from_be_bytes(field(&header, PAYLOAD_LENGTH)?));
        let packet = &head[..end.min(head.len())];
        let upper = Upper::find(packet, at + IPV6_BYTES, header[NEXT_HEADER])?;
        if upper.at > packet.len() {
            return Err(CUT_SHORT);
        }
        let Some(icmp) = upper.icmp else {
            return if source.is_unspecified() { Err("IPv6 from no address") } else { Ok(upper.at) };
        };
        let message = Icmp { packet, at: upper.at, end };
        // RFC 4861 §4: bytes of a message before its options.
        let options = match icmp {
            ROUTER_SOLICITATION => 8,
            NEIGHBOUR_SOLICITATION if source.is_unspecified() => message.about(&addresses.ipv6)?,
            NEIGHBOUR_SOLICITATION => 24,
            NEIGHBOUR_ADVERTISEMENT if !source.is_unspecified() => message.about(&addresses.ipv6)?,
            ROUTER_ADVERTISEMENT | REDIRECT | INVERSE_SOLICITATION | INVERSE_ADVERTISEMENT => {
                return Err("a router's message");
            }
            // RFC 3590: before there is an address, groups are joined without one.
            MLD_REPORT | MLD_DONE | MLD_REPORT_V2 => return Ok(upper.at + 1),
            _ if source.is_unspecified() => return Err("ICMPv6 from no address"),
            _ => return Ok(upper.at + 1),
        };
        // RFC 6980: no host takes one.
        if upper.fragmented {
            return Err("neighbour discovery in fragments");
        }
        message.check_options(options, self.mac)?;
        Ok(end)
    }
}

impl Addresses {
    /// RFC 791. A DHCP client has no address at first.
    fn ipv4(&self, head: &[u8], at: usize) -> Result<usize, Refusal> {
        const FRAGMENT_FIELD: usize = 6;
        const PROTOCOL: usize = 9;
        const SOURCE: usize = 12;
        const DESTINATION: usize = 16;
        const IPV4_BYTES: usize = 20;
        let header = field::<IPV4_BYTES>(head, at)?;
        let header_bytes = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || header_bytes < IPV4_BYTES {
            return Err("IPv4 of another version");
        }
        let address = |at| field::<4>(&header, at).map(Ipv4Addr::from);
        let source = address(SOURCE)?;
        if self.ipv4.contains(&source) {
            return Ok(at + IPV4_BYTES);
        }
        let is_fragment = u16::from_be_bytes(field(&header, FRAGMENT_FIELD)?) & 0x3fff != 0;
        let asks_dhcp = source.is_unspecified()
            && address(DESTINATION)?.is_broadcast()
            && header[PROTOCOL] == UDP
            && !is_fragment
            && field(head, at + header_bytes)? == DHCP_PORTS;
        if asks_dhcp { Ok(at + header_bytes + DHCP_PORTS.len()) } else { Err("IPv4 from another's address") }
    }
}

/// What is behind an IPv6 header and its extensions.
struct Upper {
    at: usize,
    /// The type of an ICMPv6 message that begins here.
    icmp: Option<u8>,
    fragmented: bool,
}

impl Upper {
    fn find(packet: &[u8], mut at: usize, mut next: u8) -> Result<Self, Refusal> {
        let mut fragmented = false;
        loop {
            let (follows, units) = match next {
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION => {
                    let [follows, units] = field(packet, at)?;
                    // RFC 4302 §2.2: in four bytes, less two.
                    (
                        follows,
                        if next == AUTHENTICATION {
                            (usize::from(units) + 2) * 4
                        } else {
                            (usize::from(units) + 1) * 8
                        },
                    )
                }
                FRAGMENT => {
                    let [follows, _, high, low, ..] = field::<8>(packet, at)?;
                    fragmented = true;
                    if u16::from_be_bytes([high, low]) & !7 != 0 {
                        // RFC 7112: all headers are in the first.
                        return Ok(Self { at: at + 8, icmp: None, fragmented });
                    }
                    (follows, 8)
                }
                ICMPV6 => {
                    let [icmp] = field(packet, at)?;
                    return Ok(Self { at, icmp: Some(icmp), fragmented });
                }
                _ => return Ok(Self { at, icmp: None, fragmented }),
            };
            (next, at) = (follows, at + units);
        }
    }
}

/// A neighbour discovery message, which ends with its packet.
struct Icmp<'a> {
    packet: &'a [u8],
    at: usize,
    end: usize,
}

impl Icmp<'_> {
    /// Its target must be one of `own`. Returns where its options begin.
    fn about(&self, own: &[Ipv6Addr]) -> Result<usize, Refusal> {
        let target = Ipv6Addr::from(field::<16>(self.packet, self.at + 8)?);
        if own.contains(&target) { Ok(24) } else { Err("neighbour discovery about another's address") }
    }

    /// What its options, which begin `skip` bytes into it, say of link-layer addresses must be `mac`.
    fn check_options(&self, skip: usize, mac: [u8; MAC_BYTES]) -> Result<(), Refusal> {
        let mut options = self.packet.get(self.at + skip..self.end).ok_or(CUT_SHORT)?;
        while !options.is_empty() {
            let [kind, units] = field(options, 0)?;
            let bytes = usize::from(units) * 8;
            if bytes == 0 || bytes > options.len() {
                return Err("neighbour discovery with options of no possible length");
            }
            // RFC 2464 §6: one unit for an Ethernet address.
            if LINK_LAYER_OPTIONS.contains(&kind) && (units != 1 || field(options, 2)? != mac) {
                return Err("neighbour discovery in another's name");
            }
            options = &options[bytes..];
        }
        Ok(())
    }
}

/// The bytes at `at`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Refusal> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(CUT_SHORT)
}

/// RFC 4291 §2.5.1 and appendix A.
fn link_local([a, b, c, d, e, f]: [u8; MAC_BYTES]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}
