//! Writes small ELF files and bzImages for tests.

use linux_loader::bootparam::setup_header;
use linux_loader::elf::{EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};

use crate::memory::ByteValued;

/// An ELF to be: fields may be changed to wrong values before [`TestElf::bytes`].
#[derive(Clone)]
pub(crate) struct TestElf {
    pub(crate) header: Elf64_Ehdr,
    /// Program headers, each with what it has in the file. `p_offset` and `p_filesz` are filled in by `bytes` where
    /// they are 0.
    pub(crate) parts: Vec<(Elf64_Phdr, Vec<u8>)>,
}

impl TestElf {
    /// An executable with this entry and no segment.
    pub(crate) fn new(entry: u64) -> Self {
        let mut header = Elf64_Ehdr { e_type: ET_EXEC, e_machine: EM_X86_64, e_version: 1, ..Default::default() };
        header.e_ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        header.e_entry = entry;
        header.e_phoff = 64;
        header.e_ehsize = 64;
        header.e_phentsize = 56;
        Self { header, parts: Vec::new() }
    }

    /// With a segment of `content` at `address`, in `memory_size` bytes of memory.
    pub(crate) fn load(mut self, address: u64, content: &[u8], memory_size: u64) -> Self {
        let program = Elf64_Phdr { p_type: PT_LOAD, p_paddr: address, p_memsz: memory_size, ..Default::default() };
        self.parts.push((program, content.to_vec()));
        self
    }

    /// With a note segment.
    pub(crate) fn notes(mut self, content: &[u8], align: u64) -> Self {
        self.parts.push((Elf64_Phdr { p_type: PT_NOTE, p_align: align, ..Default::default() }, content.to_vec()));
        self
    }

    /// With Xen's note for a PVH entry, in the form that Linux has.
    pub(crate) fn pvh(self, entry: u64) -> Self {
        self.notes(&note(b"Xen\0", 18, &entry.to_le_bytes(), 4), 4)
    }

    /// The file: headers, then the parts' content in order.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut header = self.header;
        if header.e_phnum == 0 {
            header.e_phnum = u16::try_from(self.parts.len()).unwrap();
        }
        let mut bytes = header.as_slice().to_vec();
        let mut offset = 64 + 56 * u64::try_from(self.parts.len()).unwrap();
        for (program, content) in &self.parts {
            let mut program = *program;
            let size = u64::try_from(content.len()).unwrap();
            if program.p_offset == 0 {
                program.p_offset = offset;
            }
            if program.p_filesz == 0 {
                program.p_filesz = size;
            }
            offset += size;
            bytes.extend_from_slice(program.as_slice());
        }
        for (_, content) in &self.parts {
            bytes.extend_from_slice(content);
        }
        bytes
    }
}

/// One note, padded to `align`.
pub(crate) fn note(name: &[u8], kind: u32, descriptor: &[u8], align: usize) -> Vec<u8> {
    let size = |part: &[u8]| u32::try_from(part.len()).unwrap();
    let mut bytes: Vec<u8> = [size(name), size(descriptor), kind].iter().flat_map(|word| word.to_le_bytes()).collect();
    for part in [name, descriptor] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(align), 0);
    }
    bytes
}

/// A bzImage to be: fields may be changed to wrong values before [`TestImage::bytes`].
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) header: setup_header,
    pub(crate) payload: Vec<u8>,
}

/// Where [`TestImage`] has its payload in its protected-mode code: behind the 64-bit entry.
pub(crate) const PAYLOAD_OFFSET: u32 = 0x240;

impl TestImage {
    /// With two sectors of real-mode code and the header that Linux 6 has.
    pub(crate) fn new(payload: &[u8]) -> Self {
        let size = u32::try_from(payload.len()).unwrap();
        let header = setup_header {
            setup_sects: 2,
            syssize: (PAYLOAD_OFFSET + size).div_ceil(16),
            boot_flag: 0xaa55,
            jump: 0x6aeb,
            header: u32::from_le_bytes(*b"HdrS"),
            version: 0x020f,
            loadflags: 1,
            code32_start: 0x10_0000,
            initrd_addr_max: 0x7fff_ffff,
            kernel_alignment: 0x20_0000,
            relocatable_kernel: 1,
            min_alignment: 21,
            xloadflags: 0x7f,
            cmdline_size: 2047,
            payload_offset: PAYLOAD_OFFSET,
            payload_length: size,
            pref_address: 0x20_0000,
            init_size: 0x10_0000,
            ..Default::default()
        };
        Self { header, payload: payload.to_vec() }
    }

    /// The file: boot sector and real-mode code, then protected-mode code with the payload in it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; 3 * 512];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x1f1..][..size_of::<setup_header>()].copy_from_slice(self.header.as_slice());
        bytes.resize(bytes.len() + usize::try_from(PAYLOAD_OFFSET).unwrap(), 0xcc);
        bytes.extend_from_slice(&self.payload);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}
