//! The terminal as the guest's console: raw while the machine runs, and as it was found on every end of the process
//! but SIGKILL. `panic = "abort"` runs no destructors, so the panic hook and the handlers of the fatal signals restore
//! it too.
#![expect(unsafe_code, reason = "termios and signal handlers have no safe interface in libc")]

use std::cell::UnsafeCell;
use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

/// What keeps the terminal from being the console.
#[derive(Debug, Error)]
pub(crate) enum TerminalError {
    /// Its settings cannot be read or written.
    #[error("cannot put the terminal into raw mode")]
    RawMode(#[source] io::Error),
}

/// The terminal in raw mode; restored when dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal(());

/// The settings to go back to. Written once, before `ACTIVE` is set for the first time.
struct Saved(UnsafeCell<MaybeUninit<libc::termios>>);

// SAFETY: written before the Release store to ACTIVE, read only after an Acquire load of it saw `true`.
unsafe impl Sync for Saved {}

static SAVED: Saved = Saved(UnsafeCell::new(MaybeUninit::uninit()));
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Signals that end a process unless handled, and are neither the control loop's nor those of faults (fatal.rs); the real-time
/// ones are added to them.
const FATAL_SIGNALS: [libc::c_int; 15] = [
    libc::SIGABRT,
    libc::SIGALRM,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGIO,
    libc::SIGPROF,
    libc::SIGPWR,
    libc::SIGQUIT,
    libc::SIGSTKFLT,
    libc::SIGSYS,
    libc::SIGTRAP,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGVTALRM,
    libc::SIGXCPU,
];

impl RawTerminal {
    /// Whether standard input is a terminal.
    pub(crate) fn is_possible() -> bool {
        io::stdin().is_terminal()
    }

    /// Puts standard input's terminal into raw mode; `None` if standard input is no terminal.
    ///
    /// # Errors
    /// The terminal refuses.
    pub(crate) fn enter() -> Result<Option<Self>, TerminalError> {
        if !Self::is_possible() {
            return Ok(None);
        }
        assert!(!ACTIVE.load(Ordering::Relaxed), "the process has one terminal and puts it into raw mode once");
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr writes a termios to the place it is given.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
            return Err(TerminalError::RawMode(io::Error::last_os_error()));
        }
        // SAFETY: tcgetattr succeeded, so it has written all of it.
        let mut settings = unsafe { settings.assume_init() };
        // SAFETY: ACTIVE is false, so nobody reads SAVED, and one thread starts the console.
        unsafe { (*SAVED.0.get()).write(settings) };
        // Release: partner of the Acquire in `restore`.
        ACTIVE.store(true, Ordering::Release);
        let raw = Self(());
        restore_on_fatal_signals();
        restore_on_panic();
        // SAFETY: `settings` is a termios that the terminal itself gave.
        unsafe { libc::cfmakeraw(&raw mut settings) };
        // SAFETY: the pointer is to a whole termios.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw const settings) } != 0 {
            return Err(TerminalError::RawMode(io::Error::last_os_error()));
        }
        Ok(Some(raw))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// How a line ends on standard error now: a raw terminal does not return the carriage by itself.
pub(crate) fn line_end() -> &'static str {
    if ACTIVE.load(Ordering::Relaxed) { "\r\n" } else { "\n" }
}

/// Puts the terminal back. Async-signal-safe: an atomic swap and one system call.
pub(crate) fn restore() {
    // Acquire: partner of the Release in `enter`.
    if ACTIVE.swap(false, Ordering::Acquire) {
        let settings: *const libc::termios = SAVED.0.get().cast_const().cast();
        // SAFETY: ACTIVE was true, so SAVED holds a termios and is not written any more.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
    }
}

/// Once, however often a machine is started again.
fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(set_panic_hook);
}

fn set_panic_hook() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        report(panic);
    }));
}

fn restore_on_fatal_signals() {
    extern "C" fn restore_and_die(signal: libc::c_int) {
        restore();
        // SAFETY: raise is async-signal-safe; SA_RESETHAND gave the signal its default action back, which ends the
        // process when this handler returns and the signal is unblocked.
        unsafe { libc::raise(signal) };
    }
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = restore_and_die as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
    // The first real-time signal is the one that vmm kicks vCPUs with.
    for signal in FATAL_SIGNALS.into_iter().chain(libc::SIGRTMIN() + 1..=libc::SIGRTMAX()) {
        // SAFETY: `action` is initialised and its handler is async-signal-safe. A failure leaves the default action,
        // which still ends the process.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}
