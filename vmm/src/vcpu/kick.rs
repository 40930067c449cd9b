//! How a vCPU is brought out of the guest.
//!
//! The asker (1) sends its ask, (2) sets `immediate_exit` in the vCPU's `kvm_run` page, (3) signals the thread. The
//! vCPU thread takes the flag (swap to 0) and only then reads its channel. No wake-up can be lost:
//! - flag set before KVM_RUN looks at it: KVM_RUN returns EINTR at once (KVM api: KVM_RUN, `immediate_exit`);
//! - flag set after KVM_RUN looked: the signal comes later still, and ends the guest's run with EINTR;
//!   (The signal is never blocked, whatever mask husk was started with: `install_kick_handler` sees to that.)
//! - flag taken by the vCPU thread: the ask was sent before, so the channel has it. The signal that follows costs one
//!   spurious EINTR at most.
#![expect(unsafe_code, reason = "maps kvm_run a second time, sends a thread a signal, installs the signal's handler")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use thiserror::Error;

/// What keeps a vCPU from being interruptible.
#[derive(Debug, Error)]
pub enum KickError {
    /// The shared page cannot be mapped.
    #[error("cannot map its kvm_run page")]
    Map(#[source] io::Error),
    /// The signal's handler cannot be installed.
    #[error("cannot install the handler of signal {signal}")]
    Handler {
        /// Which signal.
        signal: i32,
        /// What the host said.
        source: io::Error,
    },
}

/// A vCPU's `kvm_run` page, mapped once more: so that its `immediate_exit` outlives the vCPU's file descriptor and can be
/// written by other threads, and so that its thread can see what kvm-ioctls does not pass on.
#[derive(Debug)]
pub(super) struct RunPage(NonNull<kvm_run>);

// SAFETY: `immediate_exit` is reached only as an atomic, and the rest only by reads on the vCPU's own thread, to which
// `pio_bytes` is private.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn map(fd: &VcpuFd) -> Result<Self, KickError> {
        // SAFETY: mmap wants nothing of its arguments but that a fixed address is ours to replace, and none is given.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<kvm_run>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(KickError::Map(io::Error::last_os_error()));
        }
        Ok(Self(NonNull::new(page.cast()).expect("the kernel maps nothing at address 0 unasked")))
    }

    /// Whether a kick came since the last time.
    pub(super) fn take(&self) -> bool {
        // A plain load keeps the way back into the guest free of a locked instruction. Acquire is the partner of the
        // Release in `set`: who sees the flag sees what its setter sent before.
        let flag = self.flag();
        flag.load(Ordering::Relaxed) != 0 && flag.swap(0, Ordering::Acquire) != 0
    }

    /// The width of the port access that the last exit was, in bytes: 1, 2 or 4. A string instruction brings several
    /// accesses in one exit. For the vCPU's own thread, while it handles an exit for port I/O.
    pub(super) fn pio_bytes(&self) -> usize {
        // SAFETY: the place is inside the page, which is mapped as long as `self`.
        let io = unsafe { &raw const (*self.0.as_ptr()).__bindgen_anon_1.io };
        // SAFETY: for KVM_EXIT_IO `io` is the member that KVM wrote, and it writes only inside KVM_RUN, which this thread
        // is not in.
        let io = unsafe { io.read() };
        usize::from(io.size.max(1))
    }

    /// Makes the next KVM_RUN return before it enters the guest.
    pub(super) fn set(&self) {
        // Release: partner of the Acquire in `take`.
        self.flag().store(1, Ordering::Release);
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the pointer is to the start of a mapping of at least size_of::<kvm_run>() bytes that lives as long as
        // `self`, so the place is inside it.
        let immediate_exit = unsafe { &raw mut (*self.0.as_ptr()).immediate_exit };
        // SAFETY: the byte is valid for as long as `self`, needs no alignment, and this process only ever touches it
        // through this function.
        unsafe { AtomicU8::from_ptr(immediate_exit) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: `map` mapped exactly this range and no reference into it outlives `self`.
        let unmapped = unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<kvm_run>()) };
        assert!(unmapped == 0, "what was mapped can be unmapped");
    }
}

/// Interrupts one vCPU thread.
#[derive(Debug)]
pub(super) struct Kicker {
    page: Arc<RunPage>,
    thread: libc::pthread_t,
}

impl Kicker {
    /// The thread must be joined no earlier than the last kick.
    pub(super) fn new(page: Arc<RunPage>, thread: &JoinHandle<()>) -> Self {
        Self { page, thread: thread.as_pthread_t() }
    }

    pub(super) fn kick(&self) {
        self.page.set();
        // SAFETY: pthread_kill wants a thread that has not been joined: `VcpuHandle` owns both this and the join
        // handle, and joins in its drop, after its last kick.
        unsafe { libc::pthread_kill(self.thread, kick_signal()) };
    }
}

/// Gives the kick signal a handler that does nothing, so that it interrupts instead of killing. Once a process.
pub(crate) fn install_kick_handler() -> Result<(), KickError> {
    extern "C" fn nothing(_: libc::c_int) {}
    let signal = kick_signal();
    // SAFETY: all zeroes is a valid sigaction: no flags, so SA_RESTART is off, and an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    // SAFETY: `action` is initialised and its handler is async-signal-safe, doing nothing.
    let installed = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    if installed != 0 {
        return Err(KickError::Handler { signal, source: io::Error::last_os_error() });
    }
    unblock(signal).map_err(|source| KickError::Handler { signal, source })
}

/// Unblocks a signal in this thread and those that it makes: a mask is inherited, from the parent process too.
fn unblock(signal: libc::c_int) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set is initialised, and the signal's number is valid.
    unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    // SAFETY: the set is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// A real-time signal that neither Rust nor libc uses.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN()
}
