//! Facts of the host that a configuration is held against.
#![expect(unsafe_code, reason = "sysinfo has no safe interface in libc")]

use std::mem::MaybeUninit;

/// What the host has.
#[derive(Debug, Clone, Copy)]
pub struct HostFacts {
    /// Physical memory that the kernel manages, in bytes (`MemTotal` of /proc/meminfo).
    pub memory_bytes: u64,
}

impl HostFacts {
    /// Asks the running kernel.
    #[must_use]
    pub fn read() -> Self {
        let mut facts = MaybeUninit::<libc::sysinfo>::uninit();
        // SAFETY: sysinfo writes to the place it is given, which is of its type.
        let failed = unsafe { libc::sysinfo(facts.as_mut_ptr()) } != 0;
        assert!(!failed, "sysinfo fails only for a bad address");
        // SAFETY: sysinfo succeeded, so it has written all of it.
        let facts = unsafe { facts.assume_init() };
        Self { memory_bytes: facts.totalram.saturating_mul(u64::from(facts.mem_unit)) }
    }
}
