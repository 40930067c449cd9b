//! As much of Ethernet, ARP, IPv4, ICMP and UDP as it takes to talk to one neighbour.

use guest::net::Net;
use guest::time;

/// A frame that this station writes: the usual MTU.
const FRAME_MAX: usize = 1514;
const ETHERNET: usize = 14;
const IP: usize = 20;
/// Where what IP carries begins in a frame.
const CARRIED: usize = ETHERNET + IP;
/// ICMP echo and UDP both have as much before their data.
const DATA: usize = CARRIED + 8;
/// The most data that a frame carries.
pub(crate) const DATA_MAX: usize = FRAME_MAX - DATA;

const TYPE_IP: [u8; 2] = [8, 0];
const TYPE_ARP: [u8; 2] = [8, 6];
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
/// Of our echo requests.
const IDENTIFIER: [u8; 2] = *b"hu";
const PORT: [u8; 2] = [0x10, 0x92]; // 4242

pub(crate) type Mac = [u8; 6];
pub(crate) type Ip = [u8; 4];

/// A card with an address, and its neighbour.
pub(crate) struct Station {
    pub(crate) net: Net,
    pub(crate) mac: Mac,
    ip: Ip,
    peer: Ip,
    pub(crate) peer_mac: Mac,
    /// What it has been asked and has answered.
    pub(crate) answered: u64,
}

/// What came.
pub(crate) enum Came {
    /// The answer to an ARP request of ours, or anything else that needs no more.
    Nothing,
    /// An echo reply: sequence number and data.
    Reply(u16, &'static [u8]),
    /// A UDP datagram for us: the frame, and where its data begins.
    Datagram(&'static [u8], usize),
}

impl Station {
    pub(crate) fn new(net: Net, ip: Ip, peer: Ip) -> Self {
        // Without an address of its own a card gets a locally administered one.
        let mac = net.mac().unwrap_or([2, 0, 0, 0, 0, 2]);
        Self { net, mac, ip, peer, peer_mac: [0; 6], answered: 0 }
    }

    /// Finds the neighbour's address; asks again twice a second.
    pub(crate) fn resolve(&mut self) -> Result<(), &'static str> {
        for _ in 0..20 {
            self.send_arp(1, [0xff; 6], [0; 6], self.peer);
            let deadline = time::Deadline::in_ms(500);
            while !deadline.passed() {
                self.step();
                if self.peer_mac != [0; 6] {
                    return Ok(());
                }
            }
        }
        Err("no answer to ARP within 10 s")
    }

    /// Takes one frame if one is there, and answers what asks for an answer.
    pub(crate) fn step(&mut self) -> Came {
        match self.net.receive() {
            None => Came::Nothing,
            Some(frame) if frame.len() >= 42 && frame[12..14] == TYPE_ARP => {
                self.take_arp(frame);
                Came::Nothing
            }
            Some(frame) if frame.len() >= DATA && frame[12..14] == TYPE_IP && frame[30..34] == self.ip => {
                self.take_ip(frame)
            }
            Some(_) => Came::Nothing,
        }
    }

    fn take_arp(&mut self, frame: &[u8]) {
        let (sender, sender_ip): (Mac, Ip) = (array(&frame[22..]), array(&frame[28..]));
        if sender_ip == self.peer {
            self.peer_mac = sender;
        }
        if frame[20..22] == [0, 1] && frame[38..42] == self.ip {
            self.send_arp(2, sender, sender, sender_ip);
            self.answered += 1;
        }
    }

    fn take_ip(&mut self, frame: &'static [u8]) -> Came {
        // A short frame may be filled up behind the packet.
        let len = ETHERNET + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
        let Some(frame) = frame.get(..len) else { return Came::Nothing };
        let number = u16::from_be_bytes([frame[40], frame[41]]);
        match (frame[23], frame[CARRIED]) {
            (ICMP, ECHO_REPLY) if sum(&frame[CARRIED..]) == 0xffff => Came::Reply(number, &frame[DATA..]),
            (ICMP, ECHO_REQUEST) if frame.len() <= FRAME_MAX => {
                self.send_echo(ECHO_REPLY, [frame[38], frame[39]], number, &frame[DATA..]);
                self.answered += 1;
                Came::Nothing
            }
            (UDP, _) if frame[36..38] == PORT => Came::Datagram(frame, DATA),
            _ => Came::Nothing,
        }
    }

    fn send_arp(&mut self, operation: u8, to: Mac, target: Mac, target_ip: Ip) {
        let mut frame = [0; 42];
        let parts: [&[u8]; 9] = [
            &to,
            &self.mac,
            &TYPE_ARP,
            // Ethernet, IPv4, and the lengths of their addresses.
            &[0, 1, 8, 0, 6, 4],
            &[0, operation],
            &self.mac,
            &self.ip,
            &target,
            &target_ip,
        ];
        fill(&mut frame, &parts);
        self.net.send(&frame);
    }

    /// Asks the neighbour for an echo of `data`.
    pub(crate) fn ping(&mut self, number: u16, data: &[u8]) {
        self.send_echo(ECHO_REQUEST, IDENTIFIER, number, data);
    }

    fn send_echo(&mut self, kind: u8, identifier: [u8; 2], number: u16, data: &[u8]) {
        let mut frame = [0; FRAME_MAX];
        let len = DATA + data.len();
        self.head(&mut frame, ICMP, data.len());
        frame[CARRIED] = kind;
        frame[38..40].copy_from_slice(&identifier);
        frame[40..42].copy_from_slice(&number.to_be_bytes());
        frame[DATA..len].copy_from_slice(data);
        let check = !sum(&frame[CARRIED..len]);
        frame[36..38].copy_from_slice(&check.to_be_bytes());
        self.net.send(&frame[..len]);
    }

    /// A UDP frame to the neighbour, without a checksum.
    pub(crate) fn datagram<'a>(&self, frame: &'a mut [u8; FRAME_MAX], data_len: usize) -> &'a [u8] {
        self.head(frame, UDP, data_len);
        let len = (8 + data_len as u16).to_be_bytes();
        fill(&mut frame[CARRIED..], &[&PORT, &PORT, &len, &[0, 0]]);
        &frame[..DATA + data_len]
    }

    /// Room for [`Self::datagram`].
    pub(crate) fn frame() -> [u8; FRAME_MAX] {
        [0; FRAME_MAX]
    }

    /// Sends a datagram back to where it came from, of whatever size.
    pub(crate) fn send_back(&mut self, frame: &[u8]) {
        let slot = self.net.push(frame);
        // Checksums do not mind the order of what they sum: only addresses and ports change places.
        guest::memory::copy(frame[6..].as_ptr() as u64, slot, 6);
        guest::memory::copy(frame.as_ptr() as u64, slot + 6, 6);
        guest::memory::copy(frame[30..].as_ptr() as u64, slot + 26, 4);
        guest::memory::copy(frame[26..].as_ptr() as u64, slot + 30, 4);
        guest::memory::copy(frame[36..].as_ptr() as u64, slot + 34, 2);
        guest::memory::copy(frame[34..].as_ptr() as u64, slot + 36, 2);
        self.net.flush();
    }

    /// Ethernet and IPv4 headers of a frame to the neighbour that carries `data_len` bytes behind eight of a protocol.
    fn head(&self, frame: &mut [u8; FRAME_MAX], protocol: u8, data_len: usize) {
        let total = (IP as u16 + 8 + data_len as u16).to_be_bytes();
        // Version and length, no service, length, no fragments, 64 hops, protocol, checksum.
        let start = [0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
        fill(frame, &[&self.peer_mac, &self.mac, &TYPE_IP, &start, &self.ip, &self.peer]);
        let check = !sum(&frame[ETHERNET..CARRIED]);
        frame[24..26].copy_from_slice(&check.to_be_bytes());
    }
}

fn fill(frame: &mut [u8], parts: &[&[u8]]) {
    let mut at = 0;
    for part in parts {
        frame[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    core::array::from_fn(|at| bytes[at])
}

/// RFC 1071, not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// `a.b.c.d`.
pub(crate) fn parse_ip(text: &str) -> Option<Ip> {
    let mut parts = text.split('.');
    let mut ip = [0; 4];
    for part in &mut ip {
        *part = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(ip)
}

/// An address as people write it.
pub(crate) struct Shown(pub(crate) Mac);

impl core::fmt::Display for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
