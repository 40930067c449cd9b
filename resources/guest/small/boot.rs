//! How the guest was entered and what it was told: PVH's start_info or Linux's boot_params, copied into one shape.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;

use crate::memory::{self, Kind, Range};

global_asm!(include_str!("boot.s"), include_str!("traps.s"));

/// The protocol that the monitor used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Xen's PVH: 32-bit, no paging.
    Pvh,
    /// Linux x86 boot protocol, 64-bit.
    Linux64,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.pad(match self {
            Self::Pvh => "pvh",
            Self::Linux64 => "linux64",
        })
    }
}

const CMDLINE_MAX: usize = 4096;
const RANGES_MAX: usize = 64;

/// Everything the monitor told the guest.
pub struct Boot {
    /// The protocol.
    pub entry: Entry,
    cmdline: [u8; CMDLINE_MAX],
    cmdline_len: usize,
    ranges: [Range; RANGES_MAX],
    range_count: usize,
    /// Start and length of the initrd.
    pub initrd: Option<(u64, u64)>,
    /// Physical address of ACPI's root pointer, or 0 when the monitor did not say.
    pub rsdp: u64,
}

impl Boot {
    const fn empty() -> Self {
        Self {
            entry: Entry::Pvh,
            cmdline: [0; CMDLINE_MAX],
            cmdline_len: 0,
            ranges: [Range { start: 0, end: 0, kind: Kind::Reserved(0) }; RANGES_MAX],
            range_count: 0,
            initrd: None,
            rsdp: 0,
        }
    }

    /// The command line without its terminator.
    pub fn cmdline(&self) -> &[u8] {
        &self.cmdline[..self.cmdline_len]
    }

    /// The words of the command line that are text.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.cmdline().split(|byte| *byte == b' ').filter_map(|word| core::str::from_utf8(word).ok())
    }

    /// The values of the words `key=value`, in order.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.words().filter_map(move |word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// The memory map, in the monitor's order.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.range_count]
    }

    /// The ranges that the guest may use.
    pub fn usable(&self) -> impl Iterator<Item = Range> {
        self.ranges().iter().copied().filter(|range| range.kind == Kind::Usable)
    }

    fn add_range(&mut self, start: u64, len: u64, kind: u32) {
        assert!(self.range_count < RANGES_MAX, "memory map of more than {RANGES_MAX} ranges");
        self.ranges[self.range_count] = Range { start, end: start + len, kind: Kind::from_number(kind) };
        self.range_count += 1;
    }

    fn copy_cmdline(&mut self, address: u64) {
        while address != 0 && self.cmdline_len < CMDLINE_MAX {
            match memory::read::<u8>(address + self.cmdline_len as u64) {
                0 => break,
                byte => self.cmdline[self.cmdline_len] = byte,
            }
            self.cmdline_len += 1;
        }
    }

    /// Xen public/arch-x86/hvm/start_info.h.
    fn read_start_info(&mut self, info: u64) {
        self.entry = Entry::Pvh;
        let (magic, version) = (memory::read::<u32>(info), memory::read::<u32>(info + 4));
        assert!(magic == 0x336e_c578, "start_info has magic {magic:#x}");
        assert!(version >= 1, "start_info of version {version} has no memory map");
        let modules = memory::read::<u32>(info + 12);
        let list = memory::read::<u64>(info + 16);
        if modules > 0 {
            self.initrd = Some((memory::read(list), memory::read(list + 8)));
        }
        self.copy_cmdline(memory::read(info + 24));
        self.rsdp = memory::read(info + 32);
        let map = memory::read::<u64>(info + 40);
        for i in 0..u64::from(memory::read::<u32>(info + 48)) {
            let entry = map + 24 * i;
            self.add_range(memory::read(entry), memory::read(entry + 8), memory::read(entry + 16));
        }
    }

    /// Linux Documentation/arch/x86/zero-page.rst.
    fn read_boot_params(&mut self, params: u64) {
        self.entry = Entry::Linux64;
        let wide = |low: u64, high: u64| {
            u64::from(memory::read::<u32>(params + low)) | u64::from(memory::read::<u32>(params + high)) << 32
        };
        let initrd = (wide(0x218, 0x0c0), wide(0x21c, 0x0c4));
        self.initrd = (initrd.1 != 0).then_some(initrd);
        self.copy_cmdline(wide(0x228, 0x0c8));
        self.rsdp = memory::read(params + 0x070);
        for i in 0..u64::from(memory::read::<u8>(params + 0x1e8)) {
            let entry = params + 0x2d0 + 20 * i;
            self.add_range(memory::read(entry), memory::read(entry + 8), memory::read(entry + 16));
        }
    }
}

struct Kept(UnsafeCell<Boot>);
// SAFETY: written once, by the boot processor before any other runs, and only read from then on.
unsafe impl Sync for Kept {}
static BOOT: Kept = Kept(UnsafeCell::new(Boot::empty()));

unsafe extern "Rust" {
    /// The guest's own main function.
    safe fn guest_main(boot: &'static Boot) -> !;
}

/// boot.s comes here in ring 3, on this CPU's own stack; `how` is 0 on an application processor.
#[unsafe(no_mangle)]
extern "C" fn start(cpu: u32, how: u32, data: u64) -> ! {
    if how == 0 {
        crate::smp::serve(cpu as usize)
    }
    // SAFETY: the only writer, before any reader: see `Kept`.
    let boot = unsafe { &mut *BOOT.0.get() };
    if how == 1 {
        boot.read_start_info(data);
    } else {
        boot.read_boot_params(data);
    }
    memory::init(boot);
    guest_main(boot)
}
