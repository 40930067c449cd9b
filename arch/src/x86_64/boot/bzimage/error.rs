//! Why a bzImage was refused.

use std::io;

use super::Compression;

/// What is wrong with a bzImage. Each message names the value and what would mend it.
#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    /// From before something that is needed.
    #[error(
        "the kernel is a bzImage of boot protocol {}.{:02}, {}.{:02} is needed: use a newer kernel, or its vmlinux",
        version >> 8, version & 0xff, needed >> 8, needed & 0xff
    )]
    TooOld {
        /// Its version, the major number in the upper byte.
        version: u16,
        /// The first version that would do.
        needed: u16,
    },
    /// A field of the setup header that cannot be.
    #[error("the bzImage has {field} {found:#x}, it must be {expected}: copy it again, or use a 64-bit kernel")]
    Setup {
        /// The field, as Linux names it.
        field: &'static str,
        /// What it holds.
        found: u64,
        /// What would be right.
        expected: &'static str,
    },
    /// Packed in a way that is known and not read.
    #[error("the bzImage is packed with {name}, which husk does not unpack: use the boot entry image, or its vmlinux")]
    Unsupported {
        /// The format.
        name: &'static str,
    },
    /// Packed in no way that is known.
    #[error("the bzImage's packed kernel starts with {start:02x?}, which no known format does: copy it again")]
    UnknownFormat {
        /// Its first bytes.
        start: [u8; 4],
    },
    /// The decompressor gave up.
    #[error("cannot unpack the bzImage's {compression} kernel beyond byte {at}: copy it again")]
    Corrupt {
        /// How it is packed.
        compression: Compression,
        /// How much of it was unpacked, in bytes.
        at: u64,
        /// What the decompressor said.
        source: io::Error,
    },
    /// It unpacks to more than fits into the guest, or than any kernel has.
    #[error(
        "the bzImage's {compression} kernel unpacks to more than {max} bytes, which is all that this guest has for it: \
         give the guest more memory"
    )]
    TooLarge {
        /// How it is packed.
        compression: Compression,
        /// The limit, in bytes.
        max: u64,
    },
    /// It unpacks to something else.
    #[error("the bzImage's {compression} kernel unpacks to something that starts with {start:02x?} and is no ELF file")]
    NotElf {
        /// How it is packed.
        compression: Compression,
        /// The first bytes.
        start: [u8; 4],
    },
    /// The image as it is does not fit.
    #[error(
        "the bzImage needs memory up to {end:#x} to unpack itself, guest memory ends at {memory_end:#x}: give the guest \
         more than {} MiB",
        end >> 20
    )]
    BeyondMemory {
        /// The first address behind what it needs.
        end: u64,
        /// The first address behind guest memory.
        memory_end: u64,
    },
}
