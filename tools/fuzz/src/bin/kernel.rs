//! A kernel file that is none, or worse: ELF and bzImage, entered in each way.
#![no_main]

use std::io::Cursor;

use arch::boot::{BootEntry, load_kernel};
use arch::{GuestAddress, GuestMemory};

/// Room for a small kernel, and none for one that says that it is large.
const MEMORY_BYTES: usize = 16 << 20;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, image)) = bytes.split_first() else { return };
    let entries = [BootEntry::Auto, BootEntry::Pvh, BootEntry::Linux64, BootEntry::Image];
    let entry = entries[usize::from(*choice) % entries.len()];
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("the host has memory for a test");
    if let Ok(kernel) = load_kernel(&memory, &mut Cursor::new(image), entry) {
        let end = u64::try_from(MEMORY_BYTES).expect("64 bits fit");
        assert!(kernel.entry.0 < end && kernel.end.0 <= end, "a kernel that was loaded lies in memory");
    }
});
