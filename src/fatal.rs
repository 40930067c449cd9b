//! Faults of husk's own in guest memory. A guest can give a device memory that the host does not have any more, such as a
//! page of an empty HugePage pool that it has put into its balloon, or memory that is not plugged. What KVM answers with an
//! error is a signal here: it ends the process as a crash of the guest, with the address.
#![expect(unsafe_code, reason = "signal handlers have no safe interface in libc")]

use std::fmt::{self, Write as _};

use crate::exit::ExitStatus;
use crate::terminal;

/// The signals, each with what it says of guest memory.
const SIGNALS: [(libc::c_int, &str); 2] = [
    (libc::SIGBUS, "the host has no page for it: free memory, or add pages to the pool (SIGBUS)"),
    (libc::SIGSEGV, "it is not plugged (SIGSEGV)"),
];

/// Handles them from now on.
pub(crate) fn install() {
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESETHAND;
    for (signal, _) in SIGNALS {
        // SAFETY: `action` is initialised and its handler is async-signal-safe. A failure leaves the default action, which
        // ends the process as well.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    terminal::restore();
    // SAFETY: the kernel gives a handler with SA_SIGINFO a whole siginfo.
    let info = unsafe { &*info };
    // Above 0 are the codes of faults, which have an address.
    if info.si_code > 0 {
        // SAFETY: si_addr is the member that a fault of these two signals fills.
        let address = unsafe { info.si_addr() };
        if let Some(guest) = vmm::machine::guest_address_of(address.addr()) {
            end(signal, guest);
        }
    }
    // SAFETY: raise is async-signal-safe; SA_RESETHAND gave the signal its default action back, which ends the process when
    // this handler returns and the signal is unblocked.
    unsafe { libc::raise(signal) };
}

/// Says why, and ends the process. Async-signal-safe: a buffer on the stack and three system calls.
fn end(signal: libc::c_int, guest: u64) -> ! {
    let why = SIGNALS.iter().find(|(handled, _)| *handled == signal).map_or("", |(_, why)| *why);
    let mut name = [0_u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes, for which there is room.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let name = std::ffi::CStr::from_bytes_until_nul(&name).ok().and_then(|name| name.to_str().ok()).unwrap_or("?");
    let mut line = Line { bytes: [0; 256], len: 0 };
    // A line that is cut is better than none.
    let _ = writeln!(line, "husk: {name}: guest memory at guest address {guest:#x}: {why}");
    // SAFETY: the bytes are there, and standard error may be anything.
    unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len) };
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(ExitStatus::GuestCrashed as libc::c_int) }
}

struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - self.len;
        let kept = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.len..self.len + kept.len()].copy_from_slice(kept);
        self.len += kept.len();
        if kept.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
