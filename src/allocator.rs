//! How the process allocates.
#![expect(unsafe_code, reason = "mallopt has no safe interface in libc")]

/// Makes all threads share malloc's first arena. An arena of its own costs each thread six system calls and pages of
/// memory at its first allocation, and no thread of husk allocates where it matters. Before the first thread is made.
pub(crate) fn share_one_arena() {
    // SAFETY: mallopt takes two numbers, and no other thread runs yet.
    let accepted = unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    assert!(accepted == 1, "glibc knows M_ARENA_MAX");
}
