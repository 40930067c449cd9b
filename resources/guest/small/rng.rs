//! virtio-rng: one buffer at a time.

use crate::virtio::{DESC_WRITE, Desc, Device};
use crate::{memory, time};

/// Fills a buffer of `len` bytes; gives its address and how many bytes the device wrote.
pub fn fill(device: Device, len: u32) -> Result<(u64, u32), &'static str> {
    let features = device.negotiate(0)?;
    let mut queue = device.queue(0, 8, features)?;
    device.go();
    let buffer = memory::alloc(u64::from(len));
    queue.set(0, Desc { address: buffer, len, flags: DESC_WRITE, next: 0 });
    queue.push(0);
    queue.kick();
    let mut answer = None;
    time::poll_until(2000, || {
        answer = queue.pop();
        answer.is_some()
    });
    let (_, written) = answer.ok_or("no entropy within 2 s")?;
    device.reset()?;
    Ok((buffer, written))
}
