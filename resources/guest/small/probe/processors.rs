//! CPUs and their timers.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest::platform::CPUS_MAX;
use guest::{apic, console, cpu, println, smp, time};

use super::{Failure, Machine, passed};

static RUNNING: AtomicU64 = AtomicU64::new(1);

/// Starts the other CPUs, once; gives how many run.
fn start(machine: &Machine) -> usize {
    let listed = machine.platform.apic_ids();
    if RUNNING.load(Ordering::Relaxed) == 1 && listed.len() > 1 {
        RUNNING.store(smp::start(listed) as u64, Ordering::Relaxed);
    }
    RUNNING.load(Ordering::Relaxed) as usize
}

/// What one CPU sees of itself in CPUID, as ring 0 sees it; the result packs what the boot processor prints.
fn look(_: usize) -> u64 {
    let leaf1 = u64::from(cpu::cpuid(1, 0)[1] >> 24);
    let extended = if cpu::cpuid(0, 0)[0] >= 0xb { u64::from(cpu::cpuid(0xb, 0)[3]) } else { 0 };
    extended << 32 | leaf1
}

/// `CPU index apic=ID leaf1=ID leafb=ID` for each, then what CPUID says about all of them.
pub(crate) fn cpus(machine: &Machine) -> Result<(), Failure> {
    let (listed, ids) = (machine.platform.cpus_listed, machine.platform.apic_ids());
    let before = cpu::tsc();
    let running = start(machine);
    let us = time::ns(cpu::tsc() - before) / 1000;
    for index in 0..running {
        let (apic, seen) = if index == 0 {
            (apic::id(), look(0))
        } else {
            smp::give(index, look);
            let seen = smp::collect(index, 2000).ok_or(Failure::Numbers("cpu gave no answer", index as u64, 0))?;
            (smp::apic_id(index).unwrap_or(0), seen)
        };
        if !ids.contains(&apic) {
            return Err(Failure::Numbers("cpu has an APIC id that no table lists", index as u64, apic.into()));
        }
        println!("CPU {index} apic={apic} leaf1={} leafb={}", seen as u32, seen >> 32);
    }
    if running != listed.min(CPUS_MAX) {
        return Err(Failure::Numbers("running and listed CPUs", running as u64, listed as u64));
    }
    let siblings = cpu::cpuid(1, 0)[1] >> 16 & 0xff;
    let [threads, cores] = [0, 1].map(|level| cpu::cpuid(0xb, level)[1] & 0xffff);
    let [max, b, c, d] = cpu::cpuid(0x4000_0000, 0);
    let signature = [b, c, d].map(u32::to_le_bytes);
    let signature = core::str::from_utf8(signature.as_flattened()).unwrap_or("?").trim_end_matches('\0');
    passed!(
        "cpus",
        "running={running} listed={listed} start_us={us} siblings={siblings} leafb_threads={threads} \
         leafb_cores={cores} signature={signature} hypervisor_max={max:#x}"
    )
}

/// Counts the local APIC timer's interrupts at 1 kHz in ring 3 for 100 ms of the time stamp counter.
pub(crate) fn timer(machine: &Machine) -> Result<(), Failure> {
    let counter = apic::counter(apic::VECTOR_TIMER);
    let before = counter.load(Ordering::Relaxed);
    apic::timer_start(machine.timer_hz, 1000);
    cpu::interrupts_on();
    time::delay_us(100_000);
    cpu::interrupts_off();
    apic::timer_stop();
    let taken = counter.load(Ordering::Relaxed) - before;
    // A busy host takes CPU time away, and KVM gives missed ticks later or not at all.
    if !(20..=200).contains(&taken) {
        return Err(Failure::Numbers("interrupts where 100 were due", taken, 100));
    }
    passed!("timer", "interrupts={taken} ms=100 timer_hz={} tsc_hz={}", machine.timer_hz, time::tsc_hz())
}

static STOP: AtomicBool = AtomicBool::new(false);
static WORK: [AtomicU64; CPUS_MAX] = [const { AtomicU64::new(0) }; CPUS_MAX];

fn turn(index: usize) -> u64 {
    while !STOP.load(Ordering::Relaxed) {
        cpu::spin_turns(1000);
        WORK[index].fetch_add(1, Ordering::Relaxed);
    }
    0
}

/// All CPUs turn in ring 3; `TICK n work=a,b,..` with what each has done, every 20 ms until `q` arrives.
pub(crate) fn count(machine: &Machine) -> Result<(), Failure> {
    let running = start(machine);
    STOP.store(false, Ordering::Relaxed);
    (1..running).for_each(|index| smp::give(index, turn));
    let mut ticks = 0u64;
    let mut next = cpu::tsc();
    while console::poll_byte() != Some(b'q') {
        next += time::ticks(20_000);
        while cpu::tsc() < next {
            cpu::spin_turns(1000);
            WORK[0].fetch_add(1, Ordering::Relaxed);
        }
        // After a pause the time stamp counter is far ahead; the missed ticks are not made up for.
        next = next.max(cpu::tsc().saturating_sub(time::ticks(20_000)));
        ticks += 1;
        guest::print!("TICK {ticks} work=");
        for (index, work) in WORK.iter().enumerate().take(running) {
            guest::print!("{}{}", if index == 0 { "" } else { "," }, work.load(Ordering::Relaxed));
        }
        println!("");
    }
    STOP.store(true, Ordering::Relaxed);
    for index in 1..running {
        smp::collect(index, 2000).ok_or(Failure::Numbers("cpu did not stop", index as u64, 0))?;
    }
    passed!("count", "ticks={ticks} cpus={running}")
}
