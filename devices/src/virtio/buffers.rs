//! Buffers in guest memory that an operation owns until it is complete.
//!
//! They hold the memory itself, so no completion can touch memory that is gone, and they remember the guest's
//! addresses, because what the kernel writes through a host address passes no dirty tracking: it is marked here, on
//! completion, in one place.
#![expect(
    unsafe_code,
    reason = "host addresses of guest memory travel to the kernel inside a Send type"
)]

use std::ptr;
use std::sync::Arc;

use arch::GuestMemory;
use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::Bitmap;

use super::queue::Segment;

/// A list of pieces of guest memory, in the form that system calls take. Made once and reused.
#[derive(Debug)]
pub struct GuestBuffers {
    memory: Arc<GuestMemory>,
    segments: Vec<Segment>,
    iovecs: Vec<libc::iovec>,
    len: u64,
}

// SAFETY: an iovec is not Send because of its pointer. All of ours point into `memory`, which is Send and travels
// along, and nothing is reached through them except by system calls that take guest memory as it is.
unsafe impl Send for GuestBuffers {}

impl GuestBuffers {
    /// An empty list of pieces of `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            memory,
            segments: Vec::new(),
            iovecs: Vec::new(),
            len: 0,
        }
    }

    /// Replaces the list by the `len` bytes that begin `skip` bytes into `segments`, which must come from a chain of
    /// this very memory. Returns false, with the list empty, if there are fewer.
    pub fn fill(&mut self, segments: &[Segment], skip: u32, len: u32) -> bool {
        self.clear();
        let (mut skip, mut left) = (skip, len);
        for segment in segments {
            if left == 0 {
                break;
            }
            match segment.part(skip, left) {
                None => skip -= segment.len(),
                Some(part) => {
                    skip = 0;
                    left -= part.len();
                    self.push(part);
                }
            }
        }
        if left > 0 {
            self.clear();
        }
        left == 0
    }

    /// Forgets all pieces and keeps the room.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.iovecs.clear();
        self.len = 0;
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// No pieces.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The pieces as the guest sees them.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The memory that the pieces lie in.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The pieces for a vectored system call. Valid while `self` is.
    pub(crate) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Records that the kernel wrote into all pieces.
    pub fn mark_written(&self) {
        for segment in &self.segments {
            let len = usize::try_from(segment.len()).expect("32 bits fit");
            let slice = self
                .memory
                .get_slice(segment.address(), len)
                .expect("the chain was checked to be in memory");
            slice.bitmap().mark_dirty(0, len);
        }
    }

    fn push(&mut self, segment: Segment) {
        self.iovecs.push(libc::iovec {
            iov_base: ptr::with_exposed_provenance_mut(segment.host()),
            iov_len: usize::try_from(segment.len()).expect("32 bits fit"),
        });
        self.segments.push(segment);
        self.len += u64::from(segment.len());
    }
}
