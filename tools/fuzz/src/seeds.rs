//! Writes each target's first inputs: `husk-fuzz-seeds FOLDER` makes a folder of them for each target.
//!
//! They are made here, so that the repository holds no binary files, and they are the same each time.

use std::path::Path;
use std::{env, fs, io};

use vmm::epoch::index::{ChunkRecord, Parent};
use vmm::epoch::state_file::SamplePage;
use vmm::epoch::{Digest, Encoded, Index, PointId, Presence, Section, SectionKind, StateFile, StateHeader};

/// Targets whose inputs are actions: any bytes are some.
const ACTION_TARGETS: [&str; 5] = ["queue", "mmio", "blk", "net", "rng"];
const SEEDS_PER_TARGET: u64 = 24;
const SEED_BYTES_MAX: u64 = 400;

const CONFIGS: [&str; 3] = [
    r#"{"boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0", "initrd_path": "initrd"}}"#,
    r#"{"boot-source": {"kernel_image_path": "k"}, "machine-config": {"vcpu_count": 2, "mem_size_mib": 256},
        "drives": [{"drive_id": "rootfs", "path_on_host": "disk", "is_root_device": true, "is_read_only": false,
                    "partuuid": "0eaa91a0-01", "cache_type": "Unsafe", "io_engine": "Async",
                    "rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100}}}],
        "network-interfaces": [{"iface_id": "eth0", "guest_mac": "06:00:AC:10:00:02", "host_dev_name": "tap0"}]}"#,
    r#"{"boot-source": {"kernel_image_path": "k"}, "entropy": {}, "serial": {"serial_out_path": "log"},
        "cpu-config": {"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 0,
            "modifiers": [{"register": "ecx", "bitmap": "0b1xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}]}],
            "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b0"}]}}"#,
];

fn main() -> io::Result<()> {
    let folder = env::args_os().nth(1).ok_or_else(|| io::Error::other("usage: husk-fuzz-seeds FOLDER"))?;
    let folder = Path::new(&folder);
    for (target, number) in ACTION_TARGETS.into_iter().zip(1..) {
        let seeds = (0..SEEDS_PER_TARGET).map(|seed| actions(number << 32 | seed));
        write(folder, target, seeds)?;
    }
    write(folder, "device-state", devices::testing::hostile::saved_states().into_iter())?;
    let sections = [Section::of(SectionKind::Vcpu, "0", 1, &[7_u64; 9]), Section::of(SectionKind::Vm, "", 1, &"state")];
    let sections = sections.into_iter().collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    let state = StateFile::encode(&snapshot_header(), &[]).map_err(io::Error::other)?;
    write(folder, "snapshot-header", [state[48..].to_vec()].into_iter())?;
    let payloads = sections.iter().map(|section| section.payload.bytes().to_vec());
    let acts = payloads.zip(0..).map(|(bytes, kind)| {
        [&[60, 0, 1, kind, 1, 1, u8::try_from(bytes.len()).expect("a short payload"), b'0'], &bytes[..]].concat()
    });
    write(folder, "snapshot-state", acts)?;
    write(folder, "snapshot-index", [snapshot_index().encode().0].into_iter())?;
    write(folder, "config", CONFIGS.into_iter().map(|text| text.as_bytes().to_vec()))?;
    let images = [elf(), bzimage(&elf()), bzimage(b"\x1f\x8b\x08")];
    let kernels = (0..4).flat_map(|entry| images.iter().map(move |image| [vec![entry], image.clone()].concat()));
    write(folder, "kernel", kernels)
}

fn snapshot_header() -> StateHeader {
    StateHeader {
        id: PointId::from_bytes([1; 16]),
        parent: Some(PointId::from_bytes([2; 16])),
        husk_version: "0.1.0".to_owned(),
        created_ms: 1_795_693_333_000,
        cpu: Encoded::from_bytes(1, b"a CPU".to_vec()),
        config: Digest::of(b""),
        memory_bytes: 64 << 20,
        index: Digest::of(b""),
        sample: vec![SamplePage { page: 5, digest: Digest::of(b"") }],
    }
}

fn snapshot_index() -> Index {
    let mut present = Presence::NONE;
    [0, 1, 511].into_iter().for_each(|page| present.insert(page));
    let record = |chunk| ChunkRecord { chunk, present, digest: Digest::of(b"") };
    let parent = Parent { id: PointId::from_bytes([2; 16]), index: Digest::of(b"") };
    let records = vec![record(0), record(7), record(31)];
    Index::new(PointId::from_bytes([1; 16]), Some(parent), 64 << 20, records).expect("an index that can be")
}

fn write(folder: &Path, target: &str, seeds: impl Iterator<Item = Vec<u8>>) -> io::Result<()> {
    let folder = folder.join(target);
    fs::create_dir_all(&folder)?;
    seeds.enumerate().try_for_each(|(number, bytes)| fs::write(folder.join(format!("seed-{number:02}")), bytes))
}

/// Random bytes (splitmix64), longer ones for later seeds.
fn actions(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let words = (seed & 0xff) * SEED_BYTES_MAX / SEEDS_PER_TARGET / 8 + 1;
    (0..words).flat_map(|_| next().to_le_bytes()).collect()
}

/// An executable with a note that says its PVH entry and a segment of four bytes at 1 MiB.
fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let words = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    let longs = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| file.extend(v.to_le_bytes()));
    // Type EXEC, machine x86-64, version; entry, program headers, no sections; sizes and counts.
    halves(&mut file, &[2, 62]);
    words(&mut file, &[1]);
    longs(&mut file, &[0x10_0000, 64, 0]);
    words(&mut file, &[0]);
    halves(&mut file, &[64, 56, 2, 0, 0, 0]);
    // LOAD: offset, virtual and physical address, sizes in file and memory, alignment.
    words(&mut file, &[1, 5]);
    longs(&mut file, &[176, 0x10_0000, 0x10_0000, 4, 0x1000, 0x1000]);
    // NOTE, likewise.
    words(&mut file, &[4, 4]);
    longs(&mut file, &[180, 0, 0, 24, 24, 4]);
    file.extend(b"\xf4\xf4\xeb\xfc");
    words(&mut file, &[4, 8, 18]);
    file.extend(b"Xen\0");
    longs(&mut file, &[0x10_0000]);
    file
}

/// A bzImage of protocol 2.15 around `payload`, behind three sectors of real-mode code (Linux: arch/x86/boot.rst).
fn bzimage(payload: &[u8]) -> Vec<u8> {
    const PAYLOAD_OFFSET: u32 = 0x240;
    let payload_len = u32::try_from(payload.len()).expect("a short payload");
    let mut file = vec![0; 3 * 512];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x1f1, &[2]);
    put(0x1f4, &(PAYLOAD_OFFSET + payload_len).div_ceil(16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 0x7f, 0]);
    put(0x238, &2047_u32.to_le_bytes());
    put(0x248, &PAYLOAD_OFFSET.to_le_bytes());
    put(0x24c, &payload_len.to_le_bytes());
    put(0x258, &0x20_0000_u64.to_le_bytes());
    put(0x260, &0x10_0000_u32.to_le_bytes());
    file.resize(file.len() + usize::try_from(PAYLOAD_OFFSET).expect("a small offset"), 0xcc);
    file.extend_from_slice(payload);
    file.resize(file.len().next_multiple_of(512), 0);
    file
}
