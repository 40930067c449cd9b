//! A bzImage whose kernel shows its first instruction: the setup header of a real one, and a packed ELF that is as large as
//! a real kernel and writes one byte to the serial port before anything else.

use std::path::Path;
use std::process::ExitCode;

use crate::BenchError;

/// Where the ELF's code and its ballast are in guest memory.
const CODE_ADDRESS: u64 = 0x10_0000;
const BALLAST_ADDRESS: u64 = 0x100_0000;
/// `mov dx, 0x3f8; mov al, '!'; out dx, al; hlt`, then `jmp` back to the `hlt`.
const CODE: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee, 0xf4, 0xeb, 0xfd];
const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const SECTOR_BYTES: usize = 512;

/// Offsets in the setup header (Linux: arch/x86/boot.rst).
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The image, and the packed ELF in it.
pub(crate) struct Packed {
    pub(crate) image: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

/// Packs an ELF with the bytes of `vmlinux` as its ballast behind the setup header of `bzimage`.
pub(crate) fn pack(bzimage: &Path, vmlinux: &Path) -> Result<Packed, BenchError> {
    let read = |path: &Path| {
        std::fs::read(path).map_err(|source| BenchError::Proc { path: path.display().to_string(), source })
    };
    let (template, ballast) = (read(bzimage)?, read(vmlinux)?);
    let payload = zstd::bulk::compress(&elf(&ballast), 19)
        .map_err(|source| BenchError::Proc { path: "the packed kernel".to_owned(), source })?;
    let protected_mode = (usize::from(template[SETUP_SECTS]) + 1) * SECTOR_BYTES;
    let mut image = template[..protected_mode].to_vec();
    let length = u32::try_from(payload.len()).expect("a kernel is far below 4 GiB");
    image[PAYLOAD_OFFSET..][..4].copy_from_slice(&0_u32.to_le_bytes());
    image[PAYLOAD_LENGTH..][..4].copy_from_slice(&length.to_le_bytes());
    image.extend_from_slice(&payload);
    Ok(Packed { image, payload })
}

/// The word that makes this program the floor: a process that does nothing but unpack.
pub(crate) const UNPACK: &str = "unpack";

/// Unpacks the file at `path` by the crate that husk uses, and then prints what the kernel in it would.
pub(crate) fn unpack(path: &str) -> ExitCode {
    let unpacked = std::fs::read(path).and_then(|payload| zstd::stream::decode_all(&payload[..]));
    match unpacked.map(std::hint::black_box) {
        Ok(_) => {
            println!("!");
            // The measurement ends with the byte; like husk under measurement, this process is then killed.
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("cannot unpack {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn elf(ballast: &[u8]) -> Vec<u8> {
    const HEADERS: usize = ELF_HEADER_BYTES + 2 * PROGRAM_HEADER_BYTES;
    let (code_at, ballast_at) = (HEADERS as u64, (HEADERS + CODE.len()) as u64);
    let mut elf = Vec::with_capacity(HEADERS + CODE.len() + ballast.len());
    // Class 64, little endian; an executable for x86-64.
    elf.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    for word in [CODE_ADDRESS, ELF_HEADER_BYTES as u64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    // Flags, then the sizes and the count of headers; there are no sections.
    elf.extend_from_slice(&[0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    for (offset, address, length) in [(code_at, CODE_ADDRESS, CODE.len()), (ballast_at, BALLAST_ADDRESS, ballast.len())]
    {
        // PT_LOAD, readable, writable and executable.
        elf.extend_from_slice(&[1, 0, 0, 0, 7, 0, 0, 0]);
        let length = length as u64;
        for word in [offset, address, address, length, length, 1] {
            elf.extend_from_slice(&word.to_le_bytes());
        }
    }
    elf.extend_from_slice(&CODE);
    elf.extend_from_slice(ballast);
    elf
}
