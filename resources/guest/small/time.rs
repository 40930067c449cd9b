//! Time by the time stamp counter, and how fast that runs.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::{cpu, memory};

static HZ: AtomicU64 = AtomicU64::new(0);

/// Where the frequency came from.
#[derive(Clone, Copy)]
pub enum Source {
    /// CPUID leaf 0x40000010: the monitor's word, in kHz.
    HypervisorLeaf,
    /// CPUID leaf 0x15.
    TscLeaf,
    /// The scale of KVM's clock page.
    KvmClock,
    /// Measured against channel 2 of the PIT for 10 ms.
    Pit,
}

impl Source {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HypervisorLeaf => "cpuid-40000010",
            Self::TscLeaf => "cpuid-15",
            Self::KvmClock => "kvm-clock",
            Self::Pit => "pit",
        }
    }
}

/// Finds the frequency; must be called before anything else here.
pub fn init() -> Source {
    let (hz, source) = if let Some(hz) = from_hypervisor_leaf() {
        (hz, Source::HypervisorLeaf)
    } else if let Some(hz) = from_tsc_leaf() {
        (hz, Source::TscLeaf)
    } else if let Some(hz) = from_kvm_clock() {
        (hz, Source::KvmClock)
    } else {
        (from_pit(), Source::Pit)
    };
    HZ.store(hz, Ordering::Relaxed);
    source
}

/// The counter's frequency.
pub fn tsc_hz() -> u64 {
    HZ.load(Ordering::Relaxed)
}

/// Counter ticks in so many microseconds.
pub fn ticks(us: u64) -> u64 {
    us * (tsc_hz() / 1000) / 1000
}

/// Nanoseconds in so many ticks.
pub fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(tsc_hz())) as u64
}

/// Things a second.
pub fn rate(things: u64, ticks: u64) -> u64 {
    (u128::from(things) * u128::from(tsc_hz()) / u128::from(ticks.max(1))) as u64
}

/// A moment to give up at.
#[derive(Clone, Copy)]
pub struct Deadline(u64);

impl Deadline {
    /// So many milliseconds from now.
    pub fn in_ms(ms: u64) -> Self {
        Self(cpu::tsc() + ticks(ms * 1000))
    }

    /// Whether it is past.
    pub fn passed(self) -> bool {
        cpu::tsc() >= self.0
    }
}

/// Turns until the condition holds or so many milliseconds are past; says whether it held.
pub fn poll_until(ms: u64, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Deadline::in_ms(ms);
    loop {
        if condition() {
            return true;
        }
        if deadline.passed() {
            return false;
        }
        cpu::pause();
    }
}

/// Lets so many microseconds pass.
pub fn delay_us(us: u64) {
    let end = cpu::tsc() + ticks(us);
    while cpu::tsc() < end {
        cpu::pause();
    }
}

fn from_hypervisor_leaf() -> Option<u64> {
    let max = cpu::cpuid(0x4000_0000, 0)[0];
    if !(0x4000_0010..0x4000_1000).contains(&max) {
        return None;
    }
    let khz = u64::from(cpu::cpuid(0x4000_0010, 0)[0]);
    (khz != 0).then_some(khz * 1000)
}

/// SDM 2A, CPUID leaf 15H: crystal (ecx, Hz) times ebx / eax.
fn from_tsc_leaf() -> Option<u64> {
    if cpu::cpuid(0, 0)[0] < 0x15 {
        return None;
    }
    let [eax, ebx, ecx, _] = cpu::cpuid(0x15, 0).map(u64::from);
    (eax != 0 && ebx != 0 && ecx != 0).then(|| ecx * ebx / eax)
}

/// Linux Documentation/virt/kvm/x86/msr.rst: MSR_KVM_SYSTEM_TIME_NEW. The page is taken away again once read.
fn from_kvm_clock() -> Option<u64> {
    const SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
    const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
    let [_, b, c, d] = cpu::cpuid(0x4000_0000, 0);
    if [b, c, d] != [0x4b4d_564b, 0x564b_4d56, 0x4d] || cpu::cpuid(0x4000_0001, 0)[0] & FEATURE_CLOCKSOURCE2 == 0 {
        return None;
    }
    let page = memory::alloc(memory::PAGE);
    cpu::wrmsr(SYSTEM_TIME_NEW, page | 1);
    // KVM writes the page when it next enters the guest, which a call down usually brings about.
    for _ in 0..100 {
        if memory::load::<u32>(page + 24) != 0 {
            break;
        }
        cpu::rdmsr(SYSTEM_TIME_NEW);
    }
    let (scale, shift) = (memory::load::<u32>(page + 24), memory::load::<i8>(page + 28));
    cpu::wrmsr(SYSTEM_TIME_NEW, 0);
    if scale == 0 {
        return None;
    }
    let hz = (1_000_000_000u64 << 32) / u64::from(scale);
    Some(if shift < 0 { hz << shift.unsigned_abs() } else { hz >> shift })
}

/// Channel 2 counts 10 ms down at 1.193182 MHz; bit 5 of port 0x61 shows the end.
fn from_pit() -> u64 {
    const COUNT: u64 = 11932;
    let gate = cpu::in8(0x61) & 0xfc;
    cpu::out8(0x61, gate | 1);
    cpu::out8(0x43, 0xb0);
    cpu::out8(0x42, (COUNT & 0xff) as u8);
    cpu::out8(0x42, (COUNT >> 8) as u8);
    let start = cpu::tsc();
    while cpu::in8(0x61) & 0x20 == 0 {}
    let ticks = cpu::tsc() - start;
    cpu::out8(0x61, gate);
    ticks * 1_193_182 / COUNT
}
