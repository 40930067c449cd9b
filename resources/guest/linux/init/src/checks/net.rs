//! `net`: the network card is given an address, its neighbour is pinged, a stream goes there and one comes back, and all
//! of it again after the interface was down.
//!
//! The guest is 192.0.2.2, its neighbour 192.0.2.1. There, something listens on TCP port 4243: it reads to the end of
//! what comes, then sends as much as it likes, and closes.

use core::time::Duration;

use super::{Facts, Fault, fault};
use crate::fnv::Fnv;
use crate::pattern::{Pattern, SEED_DEFAULT};
use crate::sys;
use crate::sys::socket::{Carries, Interface, Ip, Socket};
use crate::words::Words;

const NAME: &str = "eth0";
const GUEST: Ip = [192, 0, 2, 2];
const PEER: Ip = [192, 0, 2, 1];
const PORT: u16 = 4243;

/// How much is sent. `husk.net=` says another figure.
const BYTES_DEFAULT: u64 = 1 << 20;
/// The pattern's index: none of a disk's.
const PATTERN_INDEX: u64 = 1000;
const PIECE: usize = 64 << 10;
const PINGS: u8 = 3;
/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn run(words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let bytes = words.number("husk.net", BYTES_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    let seed = words.number("husk.seed", SEED_DEFAULT).map_err(|refusal| fault!("{refusal}"))?;
    let buffer = sys::memory(PIECE).map_err(|errno| fault!("cannot have a buffer: {errno}"))?;
    let control = Socket::new(Carries::Datagrams).map_err(|errno| fault!("no socket: {errno}"))?;
    let [a, b, c, d, e, f] = control.interface_mac(NAME).map_err(|errno| fault!("there is no {NAME}: {errno}"))?;
    facts.fact(format_args!("mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"));
    begin(&control)?;
    ping(PINGS)?;
    transfer(Pattern::new(seed, PATTERN_INDEX), bytes, buffer, facts)?;

    turn(&control, Interface::Down)?;
    if ping(1).is_ok() {
        return Err(fault!("an echo although {NAME} is down"));
    }
    turn(&control, Interface::Up)?;
    ping(PINGS)?;
    facts.fact(format_args!("pings={}", 2 * PINGS));
    Ok(())
}

/// Gives the interface its address and turns it on.
pub(super) fn begin(control: &Socket) -> Result<(), Fault> {
    control.set_interface_address(NAME, GUEST).map_err(|errno| fault!("cannot set an address: {errno}"))?;
    turn(control, Interface::Up)
}

fn turn(control: &Socket, state: Interface) -> Result<(), Fault> {
    control.set_interface(NAME, state).map_err(|errno| fault!("cannot turn {NAME} on or off: {errno}"))
}

/// Asks the neighbour for echoes, one after the other.
fn ping(count: u8) -> Result<(), Fault> {
    let socket = open(Carries::Icmp, 0)?;
    for number in 0..count {
        // RFC 792: type, code, checksum, identifier, sequence number, data.
        let mut message = [8, 0, 0, 0, b'h', b'u', 0, number, b'h', b'u', b's', b'k'];
        let [high, low] = (!sum(&message)).to_be_bytes();
        (message[2], message[3]) = (high, low);
        socket.send(&message).map_err(|errno| fault!("cannot send an echo request: {errno}"))?;
        let mut answer = [0; 256];
        loop {
            let len = socket.receive(&mut answer).map_err(|errno| fault!("no echo: {errno}"))?;
            // The IP header is 20 bytes long, as nobody sends options here; type 0 is the reply.
            let [kind, rest @ ..] = answer.get(20..len).unwrap_or_default() else { continue };
            if *kind == 0 && rest.get(3..) == message.get(4..) {
                break;
            }
        }
    }
    Ok(())
}

/// A socket to the neighbour that waits with a limit.
pub(super) fn open(carries: Carries, port: u16) -> Result<Socket, Fault> {
    let socket = Socket::new(carries).map_err(|errno| fault!("no socket: {errno}"))?;
    socket.limit(PATIENCE).map_err(|errno| fault!("cannot limit a socket: {errno}"))?;
    socket.connect(PEER, port).map_err(|errno| fault!("cannot connect: {errno}"))?;
    Ok(socket)
}

/// RFC 1071, not complemented.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter();
    words.fold(0u16, |sum, word| {
        let (sum, carry) = sum.overflowing_add(u16::from_be_bytes(*word));
        sum + u16::from(carry)
    })
}

/// Sends the pattern, then takes what comes.
fn transfer(mut pattern: Pattern, bytes: usize, buffer: &mut [u8], facts: &mut Facts) -> Result<(), Fault> {
    let socket = open(Carries::Stream, PORT)?;
    let (mut sent, mut sent_sum) = (0, Fnv::new());
    while sent < bytes {
        let len = (bytes - sent).min(PIECE);
        let Some(piece) = buffer.get_mut(..len) else { break };
        pattern.fill(piece);
        sent_sum.add(piece);
        let mut rest = &*piece;
        while !rest.is_empty() {
            let taken = socket.send(rest).map_err(|errno| fault!("cannot send after {sent} bytes: {errno}"))?;
            rest = rest.get(taken..).unwrap_or_default();
            sent += taken;
        }
    }
    socket.end_sending().map_err(|errno| fault!("cannot end sending: {errno}"))?;
    let (mut received, mut received_sum) = (0, Fnv::new());
    loop {
        let len = socket.receive(buffer).map_err(|errno| fault!("cannot receive after {received} bytes: {errno}"))?;
        let Some(piece) = buffer.get(..len).filter(|piece| !piece.is_empty()) else { break };
        received_sum.add(piece);
        received += len;
    }
    facts.fact(format_args!("sent={sent} sent_sum={:016x}", sent_sum.value()));
    facts.fact(format_args!("received={received} received_sum={:016x}", received_sum.value()));
    Ok(())
}
