//! Hints to the CPU's caches.
#![expect(unsafe_code, reason = "the intrinsic takes a pointer")]

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ptr;

/// Begins to fetch the cache line at a host address, which need not be mapped: a hint that cannot be taken is no error (SDM 2B,
/// PREFETCHh).
#[inline]
pub fn prefetch(address: usize) {
    // SAFETY: the instruction reads and changes nothing that a program sees = it needs no valid address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ptr::with_exposed_provenance(address)) }
}
