//! A network of a test's own.
#![expect(unsafe_code, reason = "unshare")]

use std::io;
use std::process::Command;
use std::thread;

/// Runs `test` on a thread in a network namespace of its own. What it makes there is gone when its descriptors are
/// closed and its children have ended, also when it fails.
///
/// # Panics
/// If there is no namespace for it, or as `test` does.
pub fn in_network_namespace<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let run = || {
        // SAFETY: unshare takes flags and no memory = CLONE_NEWNET changes this thread's network namespace alone.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "a test needs a network namespace: {}", io::Error::last_os_error());
        test()
    };
    let ended = thread::scope(|scope| scope.spawn(run).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs `ip` with `words` in this thread's network namespace.
///
/// # Panics
/// If it fails.
pub fn ip(words: &str) {
    let status = Command::new("ip").args(words.split_ascii_whitespace()).status();
    let status = status.expect("a test of networks needs iproute2");
    assert!(status.success(), "ip {words}: {status}");
}
