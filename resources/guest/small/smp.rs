//! The other CPUs: started together, then asleep until they are given work.

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::platform::CPUS_MAX;
use crate::{apic, cpu, memory, time};

/// A page below 1 MiB that nothing lives in once the boot data has been copied.
const TRAMPOLINE: u64 = 0x1_0000;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
}

/// What passes between the boot processor and one other.
struct Mailbox {
    /// APIC id plus one, once it runs.
    online: AtomicU32,
    /// Pieces of work given; the one field that the sleeper watches.
    given: AtomicU64,
    /// Pieces of work finished.
    finished: AtomicU64,
    work: AtomicUsize,
    result: AtomicU64,
}

static MAILBOXES: [Mailbox; CPUS_MAX] = [const {
    Mailbox {
        online: AtomicU32::new(0),
        given: AtomicU64::new(0),
        finished: AtomicU64::new(0),
        work: AtomicUsize::new(0),
        result: AtomicU64::new(0),
    }
}; CPUS_MAX];

/// A piece of work: gets the CPU's index, gives a number.
pub type Work = fn(usize) -> u64;

/// Starts every CPU of the list but this one and waits until they run; gives how many run, this one included. Indices are
/// given in the order of arrival.
pub fn start(apic_ids: &[u32]) -> usize {
    let own = apic::id();
    let others = || apic_ids.iter().copied().filter(|id| *id != own);
    let wanted = others().count() + 1;
    let (start, end) = ((&raw const ap_trampoline) as u64, (&raw const ap_trampoline_end) as u64);
    for i in 0..end - start {
        memory::store(TRAMPOLINE + i, memory::read::<u8>(start + i));
    }
    others().for_each(apic::send_init);
    // The second is for hardware that missed the first; a CPU that runs ignores it.
    for patience_ms in [500, 2500] {
        others().for_each(|id| apic::send_startup(id, (TRAMPOLINE >> 12) as u32));
        if time::poll_until(patience_ms, || count_online() == wanted) {
            break;
        }
    }
    count_online()
}

fn count_online() -> usize {
    MAILBOXES.iter().skip(1).filter(|mailbox| mailbox.online.load(Ordering::Acquire) != 0).count() + 1
}

/// The APIC id that the CPU of this index found in its own APIC.
pub fn apic_id(index: usize) -> Option<u32> {
    MAILBOXES[index].online.load(Ordering::Acquire).checked_sub(1)
}

/// Where every CPU but the first spends its life.
pub(crate) fn serve(index: usize) -> ! {
    let mailbox = &MAILBOXES[index];
    apic::init_local();
    mailbox.online.store(apic::id() + 1, Ordering::Release);
    let mut seen = 0;
    loop {
        while mailbox.given.load(Ordering::Acquire) == seen {
            cpu::wait(&mailbox.given, seen);
        }
        seen += 1;
        let work = mailbox.work.load(Ordering::Relaxed);
        // SAFETY: `give` stored a `Work` there before it counted `given` up.
        let work = unsafe { core::mem::transmute::<usize, Work>(work) };
        mailbox.result.store(work(index), Ordering::Relaxed);
        mailbox.finished.store(seen, Ordering::Release);
    }
}

/// Lets a CPU that runs do some work; `collect` must take the result before it is given more.
pub fn give(index: usize, work: Work) {
    let mailbox = &MAILBOXES[index];
    let Some(apic_id) = apic_id(index) else { panic!("cpu {index} does not run") };
    mailbox.work.store(work as usize, Ordering::Relaxed);
    mailbox.given.fetch_add(1, Ordering::Release);
    apic::send_wake(apic_id);
}

/// Waits for the result of the work given last, at most so many milliseconds.
pub fn collect(index: usize, ms: u64) -> Option<u64> {
    let mailbox = &MAILBOXES[index];
    let given = mailbox.given.load(Ordering::Relaxed);
    time::poll_until(ms, || mailbox.finished.load(Ordering::Acquire) == given)
        .then(|| mailbox.result.load(Ordering::Relaxed))
}
