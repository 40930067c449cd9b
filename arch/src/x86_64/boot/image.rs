//! A file as the loaders see it: bounded reads into buffers, and reads straight into guest memory.

use std::io::{self, ErrorKind, Read, Seek, SeekFrom};

use super::LoadError;
use crate::memory::{GuestAddress, GuestMemory, GuestMemoryBackend, ReadVolatile, VolatileMemoryError};

/// Where a kernel or an initrd comes from: a [`File`](std::fs::File), or bytes under a [`Cursor`](io::Cursor).
pub trait Image: Read + Seek + ReadVolatile {}

impl<T: Read + Seek + ReadVolatile> Image for T {}

/// An image with its name for error messages and its size, which every read is checked against by the caller.
pub(super) struct Source<'a, I> {
    pub(super) what: &'static str,
    pub(super) size: u64,
    image: &'a mut I,
}

impl<'a, I: Image> Source<'a, I> {
    pub(super) fn open(what: &'static str, image: &'a mut I) -> Result<Self, LoadError> {
        let size = image.seek(SeekFrom::End(0)).map_err(|source| LoadError::Size { what, source })?;
        if size == 0 {
            return Err(LoadError::Empty { what });
        }
        Ok(Self { what, size, image })
    }

    /// An image whose size is known, or is not known to end before `size`.
    pub(super) fn of_size(what: &'static str, size: u64, image: &'a mut I) -> Self {
        Self { what, size, image }
    }

    /// The file itself, at `offset`, for reading on from there.
    pub(super) fn at(&mut self, offset: u64) -> Result<&mut I, LoadError> {
        match self.image.seek(SeekFrom::Start(offset)) {
            Ok(_) => Ok(self.image),
            Err(source) => Err(self.error(offset, 0, source)),
        }
    }

    /// Fills `buffer` from `offset`.
    pub(super) fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), LoadError> {
        let len = u64::try_from(buffer.len()).expect("a usize is at most 64 bits wide");
        self.image
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.image.read_exact(buffer))
            .map_err(|source| self.error(offset, len, source))
    }

    /// Fills guest memory from `offset` with no copy in between. The caller has checked that `address` and `len` are
    /// within guest memory.
    pub(super) fn load_at(
        &mut self,
        offset: u64,
        len: u64,
        memory: &GuestMemory,
        address: GuestAddress,
    ) -> Result<(), LoadError> {
        self.image.seek(SeekFrom::Start(offset)).map_err(|source| self.error(offset, len, source))?;
        let count = usize::try_from(len).expect("guest memory is no larger than the address space");
        for slice in memory.get_slices(address, count) {
            let mut rest = slice.map_err(|source| LoadError::Memory { what: self.what, address, source })?;
            // vm-memory's read_exact_volatile_from takes a short read for a failure, and one read(2) ends at 2 GiB.
            while !rest.is_empty() {
                let read = match self.image.read_volatile(&mut rest) {
                    Ok(0) => return Err(self.error(offset, len, ErrorKind::UnexpectedEof.into())),
                    Ok(read) => read,
                    Err(VolatileMemoryError::IOError(error)) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(VolatileMemoryError::IOError(error)) => return Err(self.error(offset, len, error)),
                    Err(error) => return Err(self.error(offset, len, io::Error::other(error))),
                };
                rest = rest.offset(read).expect("a read returns no more than it was given room for");
            }
        }
        Ok(())
    }

    fn error(&self, offset: u64, len: u64, source: io::Error) -> LoadError {
        LoadError::Read { what: self.what, offset, len, source }
    }
}
