//! Host memory aligned for O_DIRECT, for guest buffers that are not.

/// Bytes of one buffer: a larger transfer goes through it in several steps.
const BUFFER_BYTES: usize = 128 << 10;

/// Some memory at an aligned address, which stays where it is when this moves.
#[derive(Debug)]
pub(super) struct BounceBuffer {
    room: Vec<u8>,
    start: usize,
}

impl BounceBuffer {
    /// `align` is a power of two.
    fn new(align: usize) -> Self {
        let room = vec![0; BUFFER_BYTES + align];
        let start = room.as_ptr().addr().next_multiple_of(align) - room.as_ptr().addr();
        Self { room, start }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.start + BUFFER_BYTES]
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.room[self.start..self.start + BUFFER_BYTES]
    }
}

/// A few buffers, made when they are first needed and kept.
#[derive(Debug)]
pub(super) struct BouncePool {
    free: Vec<BounceBuffer>,
    /// Buffers that may still be made.
    left: usize,
    align: usize,
}

impl BouncePool {
    /// A pool of at most `count` buffers.
    pub(super) fn new(count: usize, align: u32) -> Self {
        Self { free: Vec::with_capacity(count), left: count, align: usize::try_from(align).expect("32 bits fit") }
    }

    /// None if all are in use.
    pub(super) fn take(&mut self) -> Option<BounceBuffer> {
        if let Some(buffer) = self.free.pop() {
            return Some(buffer);
        }
        self.left = self.left.checked_sub(1)?;
        Some(BounceBuffer::new(self.align))
    }

    pub(super) fn give_back(&mut self, buffer: BounceBuffer) {
        self.free.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_few_and_come_again() {
        let mut pool = BouncePool::new(2, 4096);
        let (mut one, two) = (pool.take().unwrap(), pool.take().unwrap());
        assert!(pool.take().is_none());
        for buffer in [&one, &two] {
            assert_eq!(buffer.bytes().as_ptr().addr() % 4096, 0);
            assert_eq!(buffer.bytes().len(), BUFFER_BYTES);
        }
        one.bytes_mut()[0] = 7;
        let at = one.bytes().as_ptr().addr();
        pool.give_back(one);
        let again = pool.take().unwrap();
        assert_eq!((again.bytes()[0], again.bytes().as_ptr().addr()), (7, at));
    }
}
