use super::*;
use proptest::prelude::*;

mod reference;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 7];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 8];
const BROADCAST: [u8; 6] = [0xff; 6];
const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const OTHER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const OTHER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 7);

fn strict() -> SourceFilter {
    SourceFilter::mac_and_ip(MAC, vec![V4], vec![V6])
}

fn passes(frame: &[u8]) -> bool {
    let filter = strict();
    filter.check(&frame[..frame.len().min(filter.head_bytes())], None).is_ok()
}

/// A frame to everybody, with tags of these types.
fn ethernet(source: [u8; 6], tags: &[u16], protocol: u16, payload: &[u8]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|tag| [tag.to_be_bytes(), [0x20, 0x05]].concat());
    BROADCAST
        .into_iter()
        .chain(source)
        .chain(tags)
        .chain(protocol.to_be_bytes())
        .chain(payload.iter().copied())
        .collect()
}

fn arp(operation: u8, sender: ([u8; 6], Ipv4Addr), target: Ipv4Addr) -> Vec<u8> {
    let (mac, ip) = sender;
    [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac, &ip.octets(), &[0; 6], &target.octets()].concat()
}

fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let head = [0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    [&head[..], &source.octets(), &destination.octets(), payload].concat()
}

fn ipv6(source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [0x60, 0, 0, 0, len[0], len[1], next, 255];
    [&head[..], &source.octets(), &Ipv6Addr::LOCALHOST.octets(), payload].concat()
}

/// A message with a target, as solicitations and advertisements are.
fn neighbour(kind: u8, target: Ipv6Addr, options: &[&[u8]]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), &options.concat()].concat()
}

fn says_mac(option: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[option, 1][..], &mac].concat()
}

fn untagged(protocol: u16, payload: &[u8]) -> Vec<u8> {
    ethernet(MAC, &[], protocol, payload)
}

fn v6(source: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    untagged(IPV6, &ipv6(source, next, payload))
}

#[test]
fn by_the_ethernet_address_alone_any_protocol_goes_from_it_and_nothing_else() {
    let filter = SourceFilter::mac(MAC);
    for (source, goes) in [(MAC, true), (OTHER_MAC, false), (BROADCAST, false), ([0; 6], false)] {
        for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100], &[0x9100, 0x8100, 0x8100]] {
            for protocol in [ARP, IPV4, IPV6, 0x88cc, 60] {
                let frame = ethernet(source, tags, protocol, &[7; 50]);
                assert_eq!(filter.check(&frame[..14], None).is_ok(), goes, "{frame:?}");
            }
        }
    }
    for len in 0..14 {
        assert_eq!(filter.check(&untagged(IPV4, &[])[..len], None), Err(CUT_SHORT));
    }
}

#[test]
fn arp_says_the_sender_and_a_probe_asks_for_what_may_be_had() {
    let goes = |operation, mac, sender, target| passes(&untagged(ARP, &arp(operation, (mac, sender), target)));
    for operation in [1, 2] {
        assert!(goes(operation, MAC, V4, OTHER_V4) && goes(operation, MAC, V4, V4));
        assert!(!goes(operation, OTHER_MAC, V4, OTHER_V4) && !goes(operation, MAC, OTHER_V4, V4));
    }
    // RFC 5227 §2.1.1: a probe has no sender.
    assert!(goes(1, MAC, Ipv4Addr::UNSPECIFIED, V4));
    assert!(!goes(1, MAC, Ipv4Addr::UNSPECIFIED, OTHER_V4), "whoever wants that address would give it up");
    assert!(!goes(2, MAC, Ipv4Addr::UNSPECIFIED, V4) && !goes(3, MAC, V4, V4) && !goes(0, MAC, V4, V4));
    let mut ieee802 = untagged(ARP, &arp(1, (MAC, V4), V4));
    ieee802[15] = 6;
    assert!(!passes(&ieee802));
}

#[test]
fn ipv4_comes_from_a_listed_address_or_asks_for_one_by_dhcp() {
    let goes = |packet: &[u8]| passes(&untagged(IPV4, packet));
    assert!(goes(&ipv4(V4, OTHER_V4, 6, &[])));
    for source in [OTHER_V4, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
        assert!(!goes(&ipv4(source, OTHER_V4, 17, &[0; 8])), "{source}");
    }
    let dhcp = [0, 68, 0, 67, 0, 8, 0, 0];
    let discover = ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, UDP, &dhcp);
    assert!(goes(&discover));
    for (at, value) in [(9, 6), (19, 1), (7, 1), (6, 0x20), (23, 68), (21, 67), (0, 0x46), (0, 0x44), (0, 0x55)] {
        let mut other = discover.clone();
        other[at] = value;
        assert!(!goes(&other), "{at}");
    }
}

#[test]
fn ipv6_comes_from_a_listed_address_or_the_link_local_one() {
    assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]).to_string(), "fe80::5054:ff:fe12:3456");
    for (source, goes) in [(V6, true), (LINK_LOCAL, true), (OTHER_V6, false), (Ipv6Addr::LOCALHOST, false)] {
        for next in [6, UDP, 50, 59] {
            assert_eq!(passes(&v6(source, next, &[0; 8])), goes, "{source}");
        }
        assert_eq!(passes(&v6(source, ICMPV6, &[128; 8])), goes, "an echo request from {source}");
    }
    assert!(!passes(&v6(Ipv6Addr::UNSPECIFIED, UDP, &[0; 8])));
    let mut other_version = v6(V6, UDP, &[0; 8]);
    other_version[14] = 0x40;
    assert!(!passes(&other_version));
}

#[test]
fn neighbour_discovery_speaks_for_the_guest_alone() {
    let none = Ipv6Addr::UNSPECIFIED;
    let goes = |source, kind, target, options: &[&[u8]]| passes(&v6(source, ICMPV6, &neighbour(kind, target, options)));
    let (own, other) = ([1, 2].map(|option| says_mac(option, MAC)), [1, 2].map(|option| says_mac(option, OTHER_MAC)));
    let nonce: &[u8] = &[14, 1, 1, 2, 3, 4, 5, 6];
    // A solicitation may be about anybody, an advertisement and a probe (no source) only about the guest.
    assert!(goes(V6, 135, OTHER_V6, &[&own[0], nonce]) && goes(LINK_LOCAL, 135, OTHER_V6, &[]));
    assert!(goes(none, 135, V6, &[nonce]) && goes(none, 135, LINK_LOCAL, &[]) && !goes(none, 135, OTHER_V6, &[]));
    assert!(goes(V6, 136, V6, &[&own[1]]) && goes(V6, 136, LINK_LOCAL, &[]) && !goes(V6, 136, OTHER_V6, &[&own[1]]));
    assert!(!goes(none, 136, V6, &[]) && !goes(OTHER_V6, 136, V6, &[]));
    for kind in [135, 136] {
        for foreign in &other {
            assert!(!goes(V6, kind, V6, &[foreign]) && !goes(V6, kind, V6, &[nonce, &own[0], foreign]));
        }
        for broken in [&[1, 0, 2, 0, 0, 0, 0, 7][..], &[1, 2, 2, 0, 0, 0, 0, 7], &[1, 1, 2, 0], &[1]] {
            assert!(!goes(V6, kind, V6, &[broken]), "{broken:?}");
        }
        // An address of another length is nobody's here.
        assert!(!goes(V6, kind, V6, &[&[1, 2, 2, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0]]));
    }
    let router =
        |source, kind, options: &[u8]| passes(&v6(source, ICMPV6, &[&[kind, 0, 0, 0, 0, 0, 0, 0], options].concat()));
    assert!(router(LINK_LOCAL, 133, &own[0]) && router(none, 133, &[]) && !router(LINK_LOCAL, 133, &other[0]));
    for kind in [134, 137, 141, 142] {
        assert!(!router(LINK_LOCAL, kind, &[0; 32]), "{kind}");
    }
    for kind in [131, 132, 143] {
        assert!(router(none, kind, &[0; 16]) && router(LINK_LOCAL, kind, &[0; 16]), "{kind}");
    }
    assert!(!router(none, 128, &[]));
}

#[test]
fn neighbour_discovery_hides_behind_no_other_header_and_in_no_fragment() {
    let spoofed = neighbour(136, OTHER_V6, &[&says_mac(2, MAC)]);
    let honest = neighbour(136, V6, &[&says_mac(2, MAC)]);
    for extension in [HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS] {
        for units in [0, 1, 20] {
            let header = |next| [&[next, units][..], &vec![0; 6 + 8 * usize::from(units)]].concat();
            assert!(passes(&v6(V6, extension, &[header(ICMPV6), honest.clone()].concat())));
            assert!(!passes(&v6(V6, extension, &[header(ICMPV6), spoofed.clone()].concat())));
            let twice = [header(DESTINATION_OPTIONS), header(ICMPV6)].concat();
            assert!(!passes(&v6(V6, extension, &[twice, spoofed.clone()].concat())));
        }
        assert!(!passes(&v6(V6, extension, &[&[UDP, 30][..], &[0; 256]].concat())), "longer than is followed");
    }
    let authentication = [&[ICMPV6, 4][..], &[0; 22]].concat();
    assert!(passes(&v6(V6, AUTHENTICATION, &[authentication.clone(), honest.clone()].concat())));
    assert!(!passes(&v6(V6, AUTHENTICATION, &[authentication, spoofed].concat())));
    let fragment = |offset_and_more: u8, next| vec![next, 0, 0, offset_and_more, 0, 0, 0, 9];
    for more in [0, 1] {
        assert!(!passes(&v6(V6, FRAGMENT, &[fragment(more, ICMPV6), honest.clone()].concat())));
        assert!(passes(&v6(V6, FRAGMENT, &[fragment(more, UDP), vec![0; 8]].concat())));
        assert!(
            passes(&v6(V6, FRAGMENT, &[fragment(more | 8, ICMPV6), honest.clone()].concat())),
            "no header begins here"
        );
    }
    assert!(!passes(&v6(V6, FRAGMENT, &fragment(1, ICMPV6))), "headers in a later fragment");
    // What lies behind the packet shows what the next fragment will not have there.
    for header in [FRAGMENT, DESTINATION_OPTIONS] {
        let short =
            v6(V6, header, &if header == FRAGMENT { fragment(1, ICMPV6) } else { vec![ICMPV6, 0, 0, 0, 0, 0, 0, 0] });
        for behind in [&[128; 16][..], &honest] {
            assert!(!passes(&[&short[..], behind].concat()), "{header}");
        }
    }
}

#[test]
fn tags_are_looked_through_and_no_other_protocol_goes() {
    let good = ipv4(V4, OTHER_V4, 17, &[0; 8]);
    let bad = ipv4(OTHER_V4, V4, 17, &[0; 8]);
    for tags in [&[][..], &[0x8100], &[0x88a8], &[0x88a8, 0x8100], &[0x8100, 0x8100], &[0x9100, 0x8100]] {
        assert!(passes(&ethernet(MAC, tags, IPV4, &good)) && !passes(&ethernet(MAC, tags, IPV4, &bad)), "{tags:x?}");
        assert!(!passes(&ethernet(MAC, tags, 0x88cc, &good)) && !passes(&ethernet(MAC, tags, 60, &good)));
    }
    assert!(!passes(&ethernet(MAC, &[0x8100; 3], IPV4, &good)), "more tags than are looked through");
}

/// Frames that go, with the number of bytes that they go for.
fn honest() -> Vec<(Vec<u8>, usize)> {
    let dhcp = ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, UDP, &[0, 68, 0, 67, 0, 8, 0, 0]);
    let advertisement = neighbour(136, V6, &[&says_mac(2, MAC)]);
    let hop_by_hop = [vec![ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143], vec![0; 20]].concat();
    let far = [&[ICMPV6, 12][..], &[0; 102], &advertisement].concat();
    let padded = [v6(V6, DESTINATION_OPTIONS, &far), vec![0; 100]].concat();
    vec![
        (padded, 14 + 40 + 104 + 32),
        (untagged(ARP, &arp(2, (MAC, V4), OTHER_V4)), 14 + 28),
        (ethernet(MAC, &[0x88a8, 0x8100], ARP, &arp(1, (MAC, V4), OTHER_V4)), 22 + 28),
        (untagged(IPV4, &ipv4(V4, OTHER_V4, 6, &[0; 40])), 14 + 20),
        (untagged(IPV4, &dhcp), 14 + 24),
        (v6(V6, 6, &[0; 40]), 14 + 40),
        (v6(V6, ICMPV6, &advertisement), 14 + 72),
        (v6(LINK_LOCAL, HOP_BY_HOP, &hop_by_hop), 14 + 49),
    ]
}

#[test]
fn a_frame_that_ends_within_what_it_goes_for_does_not_go() {
    for (frame, trusted) in honest() {
        for len in 0..=frame.len() {
            assert_eq!(passes(&frame[..len]), len >= trusted, "{len} of {frame:?}");
        }
    }
}

#[test]
fn no_checksum_is_filled_in_where_a_frame_was_checked() {
    for (frame, trusted) in honest() {
        for at in 0..frame.len() {
            assert_eq!(strict().check(&frame, Some(at)).is_ok(), at >= trusted, "{at} of {frame:?}");
        }
    }
    let frame = untagged(0x88cc, &[0; 50]);
    for at in 0..frame.len() {
        assert_eq!(SourceFilter::mac(MAC).check(&frame[..14], Some(at)).is_ok(), at >= 14);
    }
}

/// A frame that may be anything, near to one that goes: bytes are changed, and it is cut.
fn nearly_honest() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        any::<u8>(),
        prop::sample::select(vec![0, 1, 2, 6, 7, 8, 17, 43, 44, 51, 58, 60, 68, 133, 134, 135, 136, 143, 192, 255]),
    ];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), value), 0..4);
    let packet = prop::sample::select(honest()).prop_map(|(frame, _)| frame);
    (packet, changes, prop::option::weighted(0.1, any::<prop::sample::Index>())).prop_map(
        |(mut frame, changes, cut)| {
            changes.into_iter().for_each(|(at, value)| *at.get_mut(&mut frame) = value);
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_goes_is_what_a_plain_reader_of_frames_finds_honest(frame in nearly_honest()) {
        prop_assert_eq!(passes(&frame), reference::is_honest(&frame).is_some());
    }
}
