//! Unpacks a payload with the decompressor that its first bytes ask for, within bounds: on what is unpacked, on what is
//! read to get there, and on what a decompressor may allocate.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::rc::Rc;

use lzma_rust2::XzReader;

use super::super::LoadError;
use super::super::image::{Image, Source};
use super::lz4::{self, Lz4Legacy};
use super::{BzImageError, bytes};

/// How much is read, and how much is unpacked, at a time: it stays in the CPU's second cache.
const CHUNK_SIZE: usize = 128 << 10;
/// The largest window that Linux itself unpacks kernels with, for both formats that have windows (Linux:
/// ZSTD_WINDOWSIZE_MAX, and the dictionary in scripts/xz_wrap.sh), as a power of two.
const WINDOW_LOG_MAX: u32 = 27;
/// What the XZ decoder may allocate, in KiB: a window and something for its tables.
const XZ_MEMORY_KIB: u32 = (1 << (WINDOW_LOG_MAX - 10)) + 1024;
/// How much a decompressor may read before it has unpacked anything, in bytes. The largest is an LZ4 block.
const READ_AHEAD_MAX: u64 = 9 << 20;
/// How much more it may read for each byte that it unpacked. Packing makes no kernel larger; streams of nothing but empty
/// blocks end here.
const READ_PER_UNPACKED: u64 = 2;

/// How a kernel is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// CONFIG_KERNEL_GZIP.
    Gzip,
    /// CONFIG_KERNEL_LZ4: the legacy frame.
    Lz4,
    /// CONFIG_KERNEL_XZ, with the x86 filter.
    Xz,
    /// CONFIG_KERNEL_ZSTD.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "LZ4",
            Self::Xz => "XZ",
            Self::Zstd => "zstd",
        })
    }
}

impl Compression {
    /// What a payload that starts so is packed with.
    fn of(start: &[u8]) -> Result<Self, BzImageError> {
        const SUPPORTED: [(&[u8], Compression); 4] = [
            (b"\x1f\x8b", Compression::Gzip),
            (&lz4::MAGIC, Compression::Lz4),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        const KNOWN: [(&[u8], &str); 4] =
            [(b"BZh", "bzip2"), (b"\x5d\0\0", "LZMA"), (b"\x89LZO\0", "LZO"), (b"\x7fELF", "nothing")];
        if let Some((_, compression)) = SUPPORTED.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Ok(*compression);
        }
        Err(match KNOWN.iter().find(|(magic, _)| start.starts_with(magic)) {
            Some((_, name)) => BzImageError::Unsupported { name },
            None => {
                let mut first = [0; 4];
                first.iter_mut().zip(start).for_each(|(to, from)| *to = *from);
                BzImageError::UnknownFormat { start: first }
            }
        })
    }
}

/// A payload being unpacked.
pub(super) struct Unpacker<'a> {
    pub(super) compression: Compression,
    decoder: Box<dyn BufRead + 'a>,
    allowance: Rc<Cell<u64>>,
    unpacked: u64,
    max: u64,
}

impl<'a> Unpacker<'a> {
    /// Of the payload at `offset` of the image, `size` bytes long and inside it. It yields at most `max` bytes.
    pub(super) fn open<I: Image>(
        source: &'a mut Source<'_, I>,
        (offset, size): (u64, u64),
        max: u64,
    ) -> Result<Self, LoadError> {
        let mut start = [0; 6];
        let known = usize::try_from(size).map_or(start.len(), |size| size.min(start.len()));
        source.read_at(offset, &mut start[..known])?;
        let compression = Compression::of(&start[..known])?;
        let allowance = Rc::new(Cell::new(READ_AHEAD_MAX));
        let payload = Payload { image: source.at(offset)?, left: size, allowance: Rc::clone(&allowance) };
        let input = BufReader::with_capacity(CHUNK_SIZE, payload);
        let decoder: Box<dyn BufRead + 'a> = match compression {
            Compression::Gzip => chunks(flate2::bufread::GzDecoder::new(input)),
            Compression::Lz4 => Box::new(Lz4Legacy::new(input, size)),
            Compression::Xz => chunks(XzReader::new_mem_limit(input, false, XZ_MEMORY_KIB)),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::with_buffer(input).and_then(|mut decoder| {
                    decoder.window_log_max(WINDOW_LOG_MAX)?;
                    Ok(decoder.single_frame())
                });
                chunks(decoder.map_err(|source| corrupt(compression, 0, source))?)
            }
        };
        Ok(Self { compression, decoder, allowance, unpacked: 0, max })
    }

    /// Refuses what cannot be unpacked within the bounds before that is tried.
    pub(super) fn check_size(&self, size: u64) -> Result<(), BzImageError> {
        if size <= self.max { Ok(()) } else { Err(self.too_large()) }
    }

    /// The first `size` bytes, or all if there are fewer.
    pub(super) fn head(&mut self, size: usize) -> Result<Vec<u8>, LoadError> {
        let mut head = Vec::with_capacity(size);
        while head.len() < size {
            let wanted = size - head.len();
            let taken = self.next(|next| {
                let taken = wanted.min(next.len());
                head.extend_from_slice(&next[..taken]);
                Ok(taken)
            })?;
            if taken == 0 {
                break;
            }
        }
        Ok(head)
    }

    /// Passes all that follows to `sink`, and has the decompressor check its checksum, if the format has one.
    pub(super) fn drain(&mut self, mut sink: impl FnMut(&[u8]) -> Result<(), LoadError>) -> Result<(), LoadError> {
        while self.next(|next| sink(next).map(|()| next.len()))? > 0 {}
        Ok(())
    }

    /// Lends the next unpacked bytes to `take`, which returns how many it took. 0 is the end.
    fn next(&mut self, take: impl FnOnce(&[u8]) -> Result<usize, LoadError>) -> Result<usize, LoadError> {
        let next = loop {
            match self.decoder.fill_buf() {
                // The borrow checker wants the buffer fetched anew, which costs nothing.
                Ok(_) => break self.decoder.fill_buf(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let next = next.map_err(|source| corrupt(self.compression, self.unpacked, source))?;
        let taken = match bytes(next.len()) <= self.max - self.unpacked {
            true => take(next)?,
            false => return Err(self.too_large().into()),
        };
        self.decoder.consume(taken);
        self.unpacked += bytes(taken);
        let earned = bytes(taken).saturating_mul(READ_PER_UNPACKED);
        self.allowance.set(self.allowance.get().saturating_add(earned));
        Ok(taken)
    }

    fn too_large(&self) -> BzImageError {
        BzImageError::TooLarge { compression: self.compression, max: self.max }
    }
}

fn corrupt(compression: Compression, at: u64, source: io::Error) -> BzImageError {
    BzImageError::Corrupt { compression, at, source }
}

/// A decompressor's output in chunks.
fn chunks<'a>(decoder: impl Read + 'a) -> Box<dyn BufRead + 'a> {
    Box::new(BufReader::with_capacity(CHUNK_SIZE, decoder))
}

/// The packed bytes, as the decompressor reads them.
struct Payload<'a, I> {
    image: &'a mut I,
    left: u64,
    /// How much may be read now. The unpacker adds to it.
    allowance: Rc<Cell<u64>>,
}

impl<I: Image> Read for Payload<'_, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if len == 0 {
            return Ok(0);
        }
        let allowance = self.allowance.get();
        let Some(rest) = allowance.checked_sub(bytes(len)) else {
            return Err(io::Error::new(ErrorKind::InvalidData, "it goes on and on and unpacks to next to nothing"));
        };
        let read = self.image.read(&mut buffer[..len])?;
        if read == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.left -= bytes(read);
        self.allowance.set(rest + bytes(len - read));
        Ok(read)
    }
}
