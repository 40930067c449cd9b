//! LZ4's legacy frame, as Linux packs kernels with it: a magic number, then blocks, each with its packed size in 4 bytes
//! before it and with no reference to the block before. There is no end mark and no checksum
//! (lz4: doc/lz4_Frame_format.md, Legacy frame).

use std::io::{self, BufRead, ErrorKind, Read};

use lz4_flex::block::{decompress_into, get_maximum_output_size};

pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What a block unpacks to, at most.
const BLOCK_MAX: usize = 8 << 20;
/// Linux's build appends the unpacked size to the last block.
const TRAILER_SIZE: u64 = 4;

/// Unpacks a legacy frame. One block is unpacked at a time, and lent out as it is.
pub(super) struct Lz4Legacy<R> {
    input: R,
    /// What is left of the input, in bytes.
    left: u64,
    packed: Vec<u8>,
    block: Vec<u8>,
    /// What of the block was not consumed yet is `start..end`.
    start: usize,
    end: usize,
}

impl<R: Read> Lz4Legacy<R> {
    /// Of an input of `size` bytes that starts with [`MAGIC`]. Neither buffer costs memory before it is used.
    pub(super) fn new(input: R, size: u64) -> Self {
        Self {
            input,
            left: size,
            packed: vec![0; get_maximum_output_size(BLOCK_MAX)],
            block: vec![0; BLOCK_MAX],
            start: 0,
            end: 0,
        }
    }

    /// Unpacks the next block, if there is one.
    fn next_block(&mut self) -> io::Result<()> {
        while self.left > TRAILER_SIZE {
            let mut word = [0; 4];
            self.input.read_exact(&mut word)?;
            self.left -= 4;
            // Frames may follow each other.
            if word == MAGIC {
                continue;
            }
            let size = u32::from_le_bytes(word);
            let packed = usize::try_from(size).ok().and_then(|size| self.packed.get_mut(..size));
            let Some(packed) = packed.filter(|_| u64::from(size) <= self.left) else {
                return Err(invalid(format!("a block claims {size} bytes, {} are left", self.left)));
            };
            self.input.read_exact(packed)?;
            self.left -= u64::from(size);
            self.start = 0;
            self.end = decompress_into(packed, &mut self.block).map_err(|error| invalid(error.to_string()))?;
            // Every turn yields something, so that what is left bounds the turns and the time.
            return match self.end {
                0 => Err(invalid("a block unpacks to nothing".to_owned())),
                _ => Ok(()),
            };
        }
        Ok(())
    }
}

impl<R: Read> BufRead for Lz4Legacy<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            self.next_block()?;
        }
        Ok(&self.block[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }
}

impl<R: Read> Read for Lz4Legacy<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why)
}
