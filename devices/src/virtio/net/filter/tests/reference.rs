//! A reader of whole frames that eats them from the front, to hold the filter against.

use super::{LINK_LOCAL, MAC, V4, V6};

/// Takes `count` bytes off the front.
fn eat<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (front, back) = rest.split_at_checked(count)?;
    *rest = back;
    Some(front)
}

/// `Some` if so.
fn hold(holds: bool) -> Option<()> {
    holds.then_some(())
}

pub(super) fn is_honest(frame: &[u8]) -> Option<()> {
    let rest = &mut &frame[..];
    eat(rest, 6)?;
    hold(eat(rest, 6)? == MAC)?;
    let mut protocol = eat(rest, 2)?;
    for _ in 0..2 {
        if matches!(protocol, [0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]) {
            eat(rest, 2)?;
            protocol = eat(rest, 2)?;
        }
    }
    match protocol {
        [0x08, 0x06] => arp(rest),
        [0x08, 0x00] => ipv4(rest),
        [0x86, 0xdd] => ipv6(rest, frame),
        _ => None,
    }
}

fn arp(rest: &mut &[u8]) -> Option<()> {
    hold(eat(rest, 6)? == [0, 1, 8, 0, 6, 4])?;
    let operation = eat(rest, 2)?;
    hold(eat(rest, 6)? == MAC)?;
    let sender = eat(rest, 4)?;
    eat(rest, 6)?;
    let target = eat(rest, 4)?;
    match (operation, sender) {
        ([0, 1], [0, 0, 0, 0]) => hold(target == V4.octets()),
        ([0, 1 | 2], sender) => hold(sender == V4.octets()),
        _ => None,
    }
}

fn ipv4(rest: &mut &[u8]) -> Option<()> {
    let header = eat(rest, 20)?;
    hold((0x45..=0x4f).contains(&header[0]))?;
    if header[12..16] == V4.octets() {
        return Some(());
    }
    eat(rest, usize::from(header[0] - 0x45) * 4)?;
    hold(header[12..16] == [0; 4] && header[16..] == [255; 4] && header[9] == 17)?;
    hold(header[6] & 0x3f == 0 && header[7] == 0)?;
    hold(eat(rest, 4)? == [0, 68, 0, 67])
}

fn ipv6(rest: &mut &[u8], frame: &[u8]) -> Option<()> {
    let header = eat(rest, 40)?;
    let begin = frame.len() - rest.len();
    let packet_end = begin + usize::from(header[4]) * 256 + usize::from(header[5]);
    let frame = &frame[..packet_end.min(frame.len())];
    let rest = &mut &frame[begin..];
    let is_own = |address: &[u8]| [V6, LINK_LOCAL].iter().any(|own| own.octets() == *address);
    let from_nobody = header[8..24] == [0; 16];
    hold(header[0] & 0xf0 == 0x60 && (from_nobody || is_own(&header[8..24])))?;
    let (mut next, mut whole) = (header[6], true);
    loop {
        match next {
            0 | 43 | 60 => {
                let front = eat(rest, 2)?;
                eat(rest, 6 + 8 * usize::from(front[1]))?;
                next = front[0];
            }
            51 => {
                let front = eat(rest, 2)?;
                eat(rest, 6 + 4 * usize::from(front[1]))?;
                next = front[0];
            }
            44 => {
                let front = eat(rest, 8)?;
                hold(frame.len() - rest.len() <= 256)?;
                if front[2] != 0 || front[3] > 7 {
                    return hold(!from_nobody);
                }
                (next, whole) = (front[0], false);
            }
            58 => break,
            _ => return hold(!from_nobody),
        }
        // What lies farther behind is not followed.
        hold(frame.len() - rest.len() <= 256)?;
    }
    let at = frame.len() - rest.len();
    let kind = *frame[..frame.len().min(256)].get(at)?;
    let options = match kind {
        133 => 8,
        135 | 136 => 24,
        134 | 137 | 141 | 142 => return None,
        131 | 132 | 143 => return Some(()),
        _ => return hold(!from_nobody),
    };
    hold(whole && packet_end <= 256)?;
    let message = frame.get(at..packet_end)?;
    hold(message.len() >= options)?;
    hold(kind != 136 || !from_nobody)?;
    hold(kind == 133 || (kind == 135 && !from_nobody) || is_own(&message[8..24]))?;
    let options = &mut &message[options..];
    while !options.is_empty() {
        let front = eat(options, 2)?;
        let body = eat(options, (usize::from(front[1]) * 8).checked_sub(2)?)?;
        hold(!matches!(front[0], 1 | 2) || body == MAC)?;
    }
    Some(())
}
