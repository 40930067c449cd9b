//! Memory that is plugged, looked after.

use guest::mem::Pluggable;
use guest::memory::PAGE;
use guest::virtio::KIND_MEM;
use guest::{console, memory, println, time, virtio};

use super::{Failure, Machine, passed};

const BLOCKS_MAX: usize = 64;
/// Of so many pages one is written to: the others are never touched but by a look.
const STRIDE: u64 = 4;

/// Plugs and unplugs as the host asks, the first blocks that it can: `PLUGGED n` says how many blocks it has now. A new block
/// must be empty; what it writes to it must stay. `STEADY n` for every look at all of it, every 20 ms until `q` arrives.
pub(crate) fn plug(machine: &Machine) -> Result<(), Failure> {
    let device = virtio::find(machine.boot, &machine.platform, KIND_MEM, 0).ok_or("there is no virtio-mem device")?;
    let mut plug = Pluggable::new(device)?;
    // What each block is filled by; 0 where it is not plugged.
    let mut marks = [0u64; BLOCKS_MAX];
    let (mut mark, mut looks) = (0, 0u64);
    while console::poll_byte() != Some(b'q') {
        let wanted = (plug.requested() / plug.block_bytes) as usize;
        let count = |marks: &[u64]| marks.iter().filter(|mark| **mark != 0).count();
        let before = count(&marks);
        while count(&marks) < wanted {
            let free = marks.iter().position(|mark| *mark == 0).ok_or("the host asks for more than 64 blocks")?;
            plug.plug(free as u64)?;
            look(&plug, free, 0)?;
            mark += 1;
            marks[free] = mark;
            fill(&plug, free, mark);
        }
        while count(&marks) > wanted {
            let taken = marks.iter().position(|mark| *mark != 0).ok_or("no block is plugged")?;
            plug.unplug(taken as u64)?;
            marks[taken] = 0;
        }
        if before != wanted {
            println!("PLUGGED {wanted}");
        }
        for (block, mark) in marks.iter().enumerate().filter(|(_, mark)| **mark != 0) {
            look(&plug, block, *mark)?;
        }
        looks += 1;
        println!("STEADY {looks}");
        time::delay_us(20_000);
    }
    passed!("plug", "looks={looks} plugged={mark}")
}

/// The pages of a block, with what each shall hold first.
fn words(plug: &Pluggable, block: usize, mark: u64) -> impl Iterator<Item = (u64, u64)> {
    let start = plug.start + block as u64 * plug.block_bytes;
    let word = move |page: u64| if page.is_multiple_of(STRIDE) && mark != 0 { mark << 32 | page } else { 0 };
    (0..plug.block_bytes / PAGE).map(move |page| (start + page * PAGE, word(page)))
}

fn fill(plug: &Pluggable, block: usize, mark: u64) {
    words(plug, block, mark).filter(|(_, word)| *word != 0).for_each(|(at, word)| memory::store(at, word));
}

fn look(plug: &Pluggable, block: usize, mark: u64) -> Result<(), Failure> {
    match words(plug, block, mark).find(|(at, word)| memory::load::<u64>(*at) != *word) {
        Some((at, _)) => Err(Failure::Numbers("address and word read", at, memory::load(at))),
        None => Ok(()),
    }
}
