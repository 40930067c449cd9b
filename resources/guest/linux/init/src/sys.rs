//! Linux system calls as safe functions: this file, the one below it and `rt.rs` are the only ones with `unsafe`.
//!
//! Numbers and layouts are those of the x86-64 kernel ABI (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/linux).
#![expect(unsafe_code, reason = "system calls and port I/O are instructions")]

pub(crate) mod socket;

use core::arch::asm;
use core::ffi::CStr;
use core::fmt;
use core::time::Duration;

mod call {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const OPEN: usize = 2;
    pub(super) const CLOSE: usize = 3;
    pub(super) const MMAP: usize = 9;
    pub(super) const MUNMAP: usize = 11;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const IOCTL: usize = 16;
    pub(super) const PREAD: usize = 17;
    pub(super) const PWRITE: usize = 18;
    pub(super) const NANOSLEEP: usize = 35;
    pub(super) const SOCKET: usize = 41;
    pub(super) const CONNECT: usize = 42;
    pub(super) const SHUTDOWN: usize = 48;
    pub(super) const SETSOCKOPT: usize = 54;
    pub(super) const UNAME: usize = 63;
    pub(super) const FSYNC: usize = 74;
    pub(super) const SYSINFO: usize = 99;
    pub(super) const RT_SIGTIMEDWAIT: usize = 128;
    pub(super) const SYNC: usize = 162;
    pub(super) const MOUNT: usize = 165;
    pub(super) const REBOOT: usize = 169;
    pub(super) const IOPERM: usize = 173;
    pub(super) const SCHED_SETAFFINITY: usize = 203;
    pub(super) const SCHED_GETAFFINITY: usize = 204;
    pub(super) const CLOCK_GETTIME: usize = 228;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const GETCPU: usize = 309;
}

/// A number from errno.h.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(usize);

impl Errno {
    pub(crate) const NOT_FOUND: Self = Self(2);
    pub(crate) const IO: Self = Self(5);
    pub(crate) const AGAIN: Self = Self(11);
    pub(crate) const BROKEN_PIPE: Self = Self(32);
    const INTERRUPTED: Self = Self(4);
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "errno {}", self.0)
    }
}

pub(crate) type Result<T> = core::result::Result<T, Errno>;

/// # Safety
/// The call must do nothing to this program's memory but what the caller has given it: every address among the arguments
/// is valid for what the kernel does there.
unsafe fn syscall(number: usize, args: [usize; 6]) -> Result<usize> {
    let [a, b, c, d, e, f] = args;
    let answer: usize;
    // SAFETY: the kernel keeps every register but RAX, RCX and R11, which are named; memory is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
             in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // The kernel answers -4095 to -1 for an error.
    if answer > usize::MAX - 4095 { Err(Errno(answer.wrapping_neg())) } else { Ok(answer) }
}

/// A call whose arguments are plain numbers.
fn plain(number: usize, args: [usize; 6]) -> Result<usize> {
    // SAFETY: callers in this file pass numbers and descriptors only, so the kernel touches no memory of this program.
    unsafe { syscall(number, args) }
}

/// Fills `place` by a call that takes its address as argument `at`.
fn fill<T: Plain>(number: usize, mut args: [usize; 6], at: usize) -> Result<T> {
    let mut value = T::ZERO;
    args[at] = (&raw mut value).expose_provenance();
    // SAFETY: the one address is that of `value`, which has the type that the callers in this file chose for this call.
    unsafe { syscall(number, args) }?;
    Ok(value)
}

/// Gives the kernel `value` to read, by its address as argument `at`.
fn give<T: Plain>(number: usize, mut args: [usize; 6], at: usize, value: &T) -> Result<usize> {
    args[at] = (&raw const *value).expose_provenance();
    // SAFETY: the one address is that of `value`, which has the type that the callers in this file chose for this call.
    unsafe { syscall(number, args) }
}

/// Structures of the kernel ABI that are plain numbers, so that any bytes in them are a value.
trait Plain {
    const ZERO: Self;
}

/// An open file descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Fd(usize);

/// Standard input: the console, for reading.
pub(crate) const KEYBOARD: Fd = Fd(0);
/// Standard output: the console, for writing.
pub(crate) const CONSOLE: Fd = Fd(1);

pub(crate) fn read(fd: Fd, place: &mut [u8]) -> Result<usize> {
    // SAFETY: the kernel writes at most the length given, which is that of the exclusively borrowed slice.
    unsafe { syscall(call::READ, [fd.0, place.as_mut_ptr().expose_provenance(), place.len(), 0, 0, 0]) }
}

pub(crate) fn write(fd: Fd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the kernel reads at most the length given, which is that of the borrowed slice.
    unsafe { syscall(call::WRITE, [fd.0, bytes.as_ptr().expose_provenance(), bytes.len(), 0, 0, 0]) }
}

/// How a file is opened: the flags of open(2), octal as in asm-generic/fcntl.h.
#[derive(Clone, Copy)]
pub(crate) enum Access {
    Read = 0o0,
    ReadNonBlocking = 0o4000,
    ReadDirect = 0o40000,
    ReadWriteDirect = 0o40002,
}

/// A file that is closed when it goes.
pub(crate) struct File(Fd);

impl File {
    pub(crate) fn open(path: &CStr, access: Access) -> Result<Self> {
        let flags = match access {
            Access::Read => const { Access::Read as usize },
            Access::ReadNonBlocking => const { Access::ReadNonBlocking as usize },
            Access::ReadDirect => const { Access::ReadDirect as usize },
            Access::ReadWriteDirect => const { Access::ReadWriteDirect as usize },
        };
        // SAFETY: the kernel reads up to the NUL that a CStr ends with.
        let fd = unsafe { syscall(call::OPEN, [path.as_ptr().expose_provenance(), flags, 0, 0, 0, 0]) }?;
        Ok(Self(Fd(fd)))
    }

    pub(crate) fn read(&self, place: &mut [u8]) -> Result<usize> {
        read(self.0, place)
    }

    pub(crate) fn read_at(&self, place: &mut [u8], offset: usize) -> Result<usize> {
        let args = [self.0.0, place.as_mut_ptr().expose_provenance(), place.len(), offset, 0, 0];
        // SAFETY: the kernel writes at most the length given, which is that of the exclusively borrowed slice.
        unsafe { syscall(call::PREAD, args) }
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: usize) -> Result<usize> {
        let args = [self.0.0, bytes.as_ptr().expose_provenance(), bytes.len(), offset, 0, 0];
        // SAFETY: the kernel reads at most the length given, which is that of the borrowed slice.
        unsafe { syscall(call::PWRITE, args) }
    }

    pub(crate) fn sync(&self) -> Result<()> {
        plain(call::FSYNC, [self.0.0, 0, 0, 0, 0, 0]).map(drop)
    }

    /// The size of a block device in bytes (BLKGETSIZE64).
    pub(crate) fn disk_size(&self) -> Result<u64> {
        fill(call::IOCTL, [self.0.0, 0x8008_1272, 0, 0, 0, 0], 2)
    }

    /// Whether a block device refuses writes (BLKROGET).
    pub(crate) fn disk_is_read_only(&self) -> Result<bool> {
        fill::<u32>(call::IOCTL, [self.0.0, 0x125e, 0, 0, 0, 0], 2).map(|flag| flag != 0)
    }

    /// The logical block size of a block device in bytes (BLKSSZGET).
    pub(crate) fn disk_block_size(&self) -> Result<u32> {
        fill(call::IOCTL, [self.0.0, 0x1268, 0, 0, 0, 0], 2)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // Nothing is left to do about a failed close: the descriptor is gone either way.
        let _ = plain(call::CLOSE, [self.0.0, 0, 0, 0, 0, 0]);
    }
}

/// The start of a file, in one read: for those of proc and sysfs, which are made when they are read.
pub(crate) fn read_file(path: &CStr, place: &mut [u8]) -> Result<usize> {
    File::open(path, Access::Read)?.read(place)
}

pub(crate) fn mount(kind: &CStr, folder: &CStr) -> Result<()> {
    let kind = kind.as_ptr().expose_provenance();
    // SAFETY: the kernel reads the three strings up to the NUL that a CStr ends with; no data is passed.
    unsafe { syscall(call::MOUNT, [kind, folder.as_ptr().expose_provenance(), kind, 0, 0, 0]) }.map(drop)
}

pub(crate) fn sync() {
    // sync(2) cannot fail.
    let _ = plain(call::SYNC, [0; 6]);
}

/// Memory for the rest of the program's life, all of it there already, aligned to a page. `len` in bytes.
pub(crate) fn memory(len: usize) -> Result<&'static mut [u8]> {
    let start = map(0, len)?;
    let start = core::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the kernel has just made this mapping of `len` zeroed bytes, nothing else knows of it, and nobody unmaps it.
    Ok(unsafe { core::slice::from_raw_parts_mut(start, len) })
}

/// Maps a page far from all others and unmaps it again. Its page tables go with it, so the kernel interrupts the other CPUs
/// that may have them in their TLB, idle ones too, and waits for them.
pub(crate) fn flush_other_tlbs() -> Result<()> {
    const FAR: usize = 0x2000_0000_0000;
    const PAGE: usize = 4096;
    let start = map(FAR, PAGE)?;
    plain(call::MUNMAP, [start, PAGE, 0, 0, 0, 0]).map(|_| ())
}

/// New memory, at `hint` if that is free. Nobody knows of it yet.
fn map(hint: usize, len: usize) -> Result<usize> {
    const READ_WRITE: usize = 3;
    const PRIVATE_ANONYMOUS_POPULATE: usize = 0x2 | 0x20 | 0x8000;
    plain(call::MMAP, [hint, len, READ_WRITE, PRIVATE_ANONYMOUS_POPULATE, usize::MAX, 0])
}

/// struct new_utsname.
pub(crate) struct Names([[u8; 65]; 6]);

impl Plain for Names {
    const ZERO: Self = Self([[0; 65]; 6]);
}

impl Names {
    pub(crate) fn release(&self) -> &str {
        let release = CStr::from_bytes_until_nul(&self.0[2]).unwrap_or_default();
        release.to_str().unwrap_or("?")
    }
}

pub(crate) fn uname() -> Result<Names> {
    fill(call::UNAME, [0; 6], 0)
}

/// Usable memory, and how much of it is free, in bytes.
pub(crate) fn memory_bytes() -> Result<[u64; 2]> {
    // struct sysinfo: totalram is the fifth word, freeram the next, mem_unit the second half of the fourteenth.
    let words: [u64; 14] = fill(call::SYSINFO, [0; 6], 0)?;
    Ok([words[4], words[5]].map(|units| units.wrapping_mul(words[13] & 0xffff_ffff)))
}

impl Plain for [u64; 14] {
    const ZERO: Self = [0; 14];
}

impl Plain for u32 {
    const ZERO: Self = 0;
}

impl Plain for u64 {
    const ZERO: Self = 0;
}

/// A set of CPU numbers below [`CpuSet::LIMIT`].
pub(crate) struct CpuSet([u64; 16]);

impl Plain for CpuSet {
    const ZERO: Self = Self([0; 16]);
}

impl CpuSet {
    /// One more than the highest CPU number that fits.
    pub(crate) const LIMIT: u32 = 1024;

    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        let holds =
            |cpu: u32| self.0.iter().zip(0u32..).any(|(word, at)| at == cpu / 64 && word >> (cpu % 64) & 1 == 1);
        (0..Self::LIMIT).filter(move |cpu| holds(*cpu))
    }

    fn only(cpu: u32) -> Self {
        let mut set = Self::ZERO;
        for (word, at) in set.0.iter_mut().zip(0u32..) {
            *word = if at == cpu / 64 { 1 << (cpu % 64) } else { 0 };
        }
        set
    }
}

/// The CPUs that this program may run on: those that are online, as nobody has said otherwise.
pub(crate) fn allowed_cpus() -> Result<CpuSet> {
    fill(call::SCHED_GETAFFINITY, [0, size_of::<CpuSet>(), 0, 0, 0, 0], 2)
}

/// Moves this program to one CPU; when it returns it runs there.
pub(crate) fn run_on(cpu: u32) -> Result<()> {
    run_on_any(&CpuSet::only(cpu))
}

pub(crate) fn run_on_any(set: &CpuSet) -> Result<()> {
    give(call::SCHED_SETAFFINITY, [0, size_of::<CpuSet>(), 0, 0, 0, 0], 2, set).map(drop)
}

/// The CPU that this program runs on.
pub(crate) fn this_cpu() -> Result<u32> {
    fill(call::GETCPU, [0; 6], 0)
}

/// struct timespec.
#[derive(Clone, Copy)]
#[repr(C)]
struct Timespec {
    seconds: u64,
    nanoseconds: u64,
}

impl Plain for Timespec {
    const ZERO: Self = Self { seconds: 0, nanoseconds: 0 };
}

#[derive(Clone, Copy)]
pub(crate) enum Clock {
    /// Since 1970.
    Real,
    Monotonic,
    /// Since the kernel started.
    Boot,
}

pub(crate) fn clock(clock: Clock) -> Result<Duration> {
    let number = match clock {
        Clock::Real => 0,
        Clock::Monotonic => 1,
        Clock::Boot => 7,
    };
    let time: Timespec = fill(call::CLOCK_GETTIME, [number, 0, 0, 0, 0, 0], 1)?;
    Ok(Duration::from_secs(time.seconds) + Duration::from_nanos(time.nanoseconds))
}

pub(crate) fn sleep(time: Duration) -> Result<()> {
    let time = Timespec { seconds: time.as_secs(), nanoseconds: u64::from(time.subsec_nanos()) };
    give(call::NANOSLEEP, [0; 6], 0, &time).map(drop)
}

const fn signal_mask(signal: u32) -> u64 {
    1 << (signal - 1)
}

pub(crate) fn block_signal(signal: u32) -> Result<()> {
    const BLOCK: usize = 0;
    give(call::RT_SIGPROCMASK, [BLOCK, 0, 0, size_of::<u64>(), 0, 0], 1, &signal_mask(signal)).map(drop)
}

/// Waits for one of some signals, which are blocked, and returns its number.
pub(crate) fn wait_signal(signals: &[u32]) -> Result<usize> {
    let mask = signals.iter().fold(0, |mask, signal| mask | signal_mask(*signal));
    loop {
        match give(call::RT_SIGTIMEDWAIT, [0, 0, 0, size_of::<u64>(), 0, 0], 0, &mask) {
            Err(Errno::INTERRUPTED) => {}
            other => return other,
        }
    }
}

/// Waits until a terminal has sent all that was written to it (TCSBRK with 1, which is tcdrain).
pub(crate) fn drain(fd: Fd) -> Result<()> {
    plain(call::IOCTL, [fd.0, 0x5409, 1, 0, 0, 0]).map(drop)
}

/// struct termios of the kernel.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Terminal {
    input: u32,
    output: u32,
    control: u32,
    local: u32,
    rest: [u8; 20],
}

impl Plain for Terminal {
    const ZERO: Self = Self { input: 0, output: 0, control: 0, local: 0, rest: [0; 20] };
}

impl Terminal {
    /// TCGETS.
    pub(crate) fn of(fd: Fd) -> Result<Self> {
        fill(call::IOCTL, [fd.0, 0x5401, 0, 0, 0, 0], 2)
    }

    /// The same without ECHO: input is not shown as it comes.
    pub(crate) const fn silent(mut self) -> Self {
        self.local &= !0o10;
        self
    }

    /// TCSETS.
    pub(crate) fn set(&self, fd: Fd) -> Result<()> {
        give(call::IOCTL, [fd.0, 0x5402, 0, 0, 0, 0], 2, self).map(drop)
    }
}

/// Lets this program use `count` ports from `first`.
pub(crate) fn allow_ports(first: u16, count: u16) -> Result<()> {
    plain(call::IOPERM, [usize::from(first), usize::from(count), 1, 0, 0, 0]).map(drop)
}

/// The CMOS register `index`; only after [`allow_ports`] for 0x70 and 0x71, else the program dies of a fault.
pub(crate) fn read_cmos(index: u8) -> u8 {
    let value: u8;
    // SAFETY: port I/O to the CMOS clock's index and data ports touches no memory; without permission it faults.
    unsafe {
        asm!("out 0x70, al", "in al, 0x71", inlateout("al") index => value, options(nomem, nostack, preserves_flags));
    }
    value
}

#[derive(Clone, Copy)]
pub(crate) enum Reboot {
    PowerOff,
    Restart,
}

/// Comes back only with an error.
pub(crate) fn reboot(how: Reboot) -> Errno {
    let command = match how {
        Reboot::PowerOff => 0x4321_fedc,
        Reboot::Restart => 0x0123_4567,
    };
    match reboot_call(command) {
        Ok(_) => Errno(0),
        Err(errno) => errno,
    }
}

/// Ctrl-Alt-Del is a signal to this program from now on (RB_DISABLE_CAD).
pub(crate) fn take_ctrl_alt_del() -> Result<()> {
    reboot_call(0).map(drop)
}

fn reboot_call(command: usize) -> Result<usize> {
    const MAGIC1: usize = 0xfee1_dead;
    const MAGIC2: usize = 0x2812_1969;
    plain(call::REBOOT, [MAGIC1, MAGIC2, command, 0, 0, 0])
}

pub(crate) fn exit(code: usize) -> ! {
    loop {
        let _ = plain(call::EXIT_GROUP, [code, 0, 0, 0, 0, 0]);
    }
}
