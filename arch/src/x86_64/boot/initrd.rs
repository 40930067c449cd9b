//! Puts an initrd into guest memory.

use super::image::{Image, Source};
use super::{Initrd, Kernel, LoadError, SetupHeader, map};
use crate::layout::PAGE_SIZE;
use crate::memory::{GuestAddress, GuestMemory};

/// Loads an initrd, read straight into guest memory: page aligned, as high below the MMIO hole as it fits, so that the
/// kernel has room to grow into; never over the kernel, nor above what its bzImage allows.
///
/// # Errors
/// [`LoadError::InitrdTooLarge`] with both sizes, or why the file cannot be read.
pub fn load_initrd(memory: &GuestMemory, image: &mut impl Image, kernel: &Kernel) -> Result<Initrd, LoadError> {
    let mut source = Source::open("initrd", image)?;
    let size = source.size;
    // Every end that a Kernel can have is below the hole, so the rounding does not overflow.
    let first = kernel.end.0.next_multiple_of(PAGE_SIZE);
    let last = kernel.setup().map_or(u64::MAX, SetupHeader::initrd_last);
    let end = map::low_memory_end(memory).min(last.saturating_add(1));
    let available = end.saturating_sub(first);
    if size > available {
        return Err(LoadError::InitrdTooLarge { size, available });
    }
    let highest = first + available - size;
    // The free range starts on a page, so rounding down stays inside.
    let address = GuestAddress(highest - highest % PAGE_SIZE);
    source.load_at(0, size, memory, address)?;
    Ok(Initrd { address, size })
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Write};

    use super::*;
    use crate::boot::{BootProtocol, KernelFile};
    use crate::memory::Bytes;

    const MIB: u64 = 1 << 20;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 4 << 20), (GuestAddress(0x1_0000_0000), 1 << 20)]).unwrap()
    }

    fn kernel(end: u64) -> Kernel {
        Kernel { entry: GuestAddress(MIB), protocol: BootProtocol::Pvh, end: GuestAddress(end), file: KernelFile::Elf }
    }

    #[test]
    fn it_ends_in_the_last_page_below_the_hole_and_holds_the_files_bytes() {
        let bytes: Vec<u8> = (0..10_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let memory = memory();
        let initrd = load_initrd(&memory, &mut file, &kernel(2 * MIB)).unwrap();
        assert_eq!(initrd, Initrd { address: GuestAddress(4 * MIB - 3 * PAGE_SIZE), size: 10_000 });
        let mut found = vec![0; bytes.len()];
        memory.read_slice(&mut found, initrd.address).unwrap();
        assert_eq!(found, bytes);
    }

    #[test]
    fn it_may_fill_everything_above_the_kernel_and_not_one_byte_more() {
        let fits = vec![1; usize::try_from(MIB - PAGE_SIZE).unwrap()];
        let initrd = load_initrd(&memory(), &mut Cursor::new(&fits), &kernel(3 * MIB + 1)).unwrap();
        assert_eq!(initrd.address, GuestAddress(3 * MIB + PAGE_SIZE));
        let large = [fits, vec![1]].concat();
        let refused = load_initrd(&memory(), &mut Cursor::new(&large), &kernel(3 * MIB + 1)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the initrd has 1044481 bytes, 1044480 are free above the kernel: give the guest 1 MiB more"
        );
    }

    #[test]
    fn an_empty_file_and_a_directory_are_refused() {
        let refused = load_initrd(&memory(), &mut Cursor::new([0_u8; 0]), &kernel(MIB)).unwrap_err();
        assert_eq!(refused.to_string(), "the initrd is empty: copy it again");
        let mut folder = std::fs::File::open("/").unwrap();
        assert!(load_initrd(&memory(), &mut folder, &kernel(MIB)).is_err());
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_an_error() {
        /// Says that it has 4096 bytes and ends after 100.
        struct Shrinking(Cursor<Vec<u8>>);
        impl std::io::Read for Shrinking {
            fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl std::io::Seek for Shrinking {
            fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
                match to {
                    std::io::SeekFrom::End(_) => Ok(4096),
                    to => self.0.seek(to),
                }
            }
        }
        impl crate::memory::ReadVolatile for Shrinking {
            fn read_volatile<B: vm_memory::bitmap::BitmapSlice>(
                &mut self,
                buffer: &mut crate::memory::VolatileSlice<B>,
            ) -> Result<usize, crate::memory::VolatileMemoryError> {
                self.0.read_volatile(buffer)
            }
        }
        let refused = load_initrd(&memory(), &mut Shrinking(Cursor::new(vec![0; 100])), &kernel(MIB)).unwrap_err();
        assert!(matches!(refused, LoadError::Read { what: "initrd", offset: 0, len: 4096, .. }), "{refused}");
    }
}
