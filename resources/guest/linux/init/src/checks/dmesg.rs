//! `dmesg`: what the kernel said at level warning or worse. With `quiet` the kernel drops most of it before it is stored
//! (patch 0008): boot with `loglevel=8` for the whole of it.

use super::{Facts, Fault, fault};
use crate::sys::{Access, Errno, File};
use crate::text::{Printable, say};
use crate::words::Words;

/// KERN_WARNING; worse ones are smaller.
const WARNING: u32 = 4;

pub(super) fn run(_words: &Words, facts: &mut Facts) -> Result<(), Fault> {
    let log =
        File::open(c"/dev/kmsg", Access::ReadNonBlocking).map_err(|errno| fault!("cannot open /dev/kmsg: {errno}"))?;
    let (mut records, mut bad) = (0, 0);
    let mut record = [0; 2048];
    loop {
        let len = match log.read(&mut record) {
            Ok(len) => len,
            Err(Errno::AGAIN) => break,
            // The record that was next has been overwritten; the next read goes on with the oldest that is left.
            Err(Errno::BROKEN_PIPE) => continue,
            Err(errno) => return Err(fault!("cannot read /dev/kmsg: {errno}")),
        };
        records += 1;
        // `priority,sequence,time,flags;text`, then lines that start with a blank; Documentation/ABI/testing/dev-kmsg.
        let record = record.get(..len).unwrap_or_default();
        let mut halves = record.splitn(2, |&byte| byte == b';');
        let (head, text) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        let priority = head.split(|&byte| byte == b',').next().and_then(|digits| str::from_utf8(digits).ok());
        let Some(priority) = priority.and_then(|digits| digits.parse::<u32>().ok()) else {
            return Err(fault!("a record of {len} bytes has no priority"));
        };
        // The low three bits are the level, the rest the facility.
        let level = priority & 7;
        if level <= WARNING {
            bad += 1;
            let text = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
            say!("DMESG {level} {}", Printable(text));
        }
    }
    facts.fact(format_args!("records={records} warnings={bad}"));
    Ok(())
}
