use std::fs;

use super::*;
use crate::config::{MemoryPart, NodePolicy};
use crate::epoch::pool::Pool;

const HUGE: u64 = 2 << 20;

/// 16 MiB, as `change` says, of a host that was not asked.
fn settled(change: impl FnOnce(&mut MemoryConfig)) -> (MemoryConfig, Settled) {
    let mut config = MemoryConfig::new(16 * MIB);
    change(&mut config);
    let parts = vec![MemoryPart { bytes: config.size_bytes, nodes: config.placement.nodes.clone() }];
    let settled = Settled::as_asked(&config.placement, parts);
    (config, settled)
}

/// What the kernel was told of a region (proc(5), VmFlags).
fn flags(region: &GuestRegionMmap) -> Vec<String> {
    let start = format!("{:x}-", region.as_ptr().addr());
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&start));
    let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    flags.split_ascii_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_kernel_is_told_what_may_be_done_with_memory() {
    let told = |change: fn(&mut MemoryConfig)| {
        let (config, settled) = settled(change);
        let memory = MachineMemory::map(&config, None, &settled).unwrap();
        let flags = flags(memory.ram.iter().next().unwrap());
        ["dd", "hg", "mg"].into_iter().filter(|flag| flags.iter().any(|told| told == flag)).collect::<Vec<_>>()
    };
    assert_eq!(told(|_| {}), ["dd"]);
    assert!(told(|config| config.placement.dump = true).is_empty());
    assert_eq!(told(|config| config.placement.merge = true), ["dd", "mg"]);
    assert_eq!(told(|config| config.placement.pages = Pages::Transparent), ["dd", "hg"]);
}

#[test]
fn a_pool_that_was_emptied_after_it_was_asked_refuses_the_mapping_of_hugepages() {
    let pool = Pool::of_2m(8);
    let before = pool.free();
    let (config, settled) = settled(|config| config.placement.pages = Pages::Huge2M);
    let other = memfd::create_huge("husk-test", HUGE, HUGE).unwrap();
    let taken = map_aligned(Some(FileOffset::new(other, 0)), HUGE, Pages::Huge2M, Presence::Now).unwrap();
    let error = MachineMemory::map(&config, None, &settled).unwrap_err().to_string();
    assert!(error.contains("the pool has too few HugePages now"), "{error}");
    assert_eq!(pool.free(), before, "nothing was touched");
    let mut best = settled.clone();
    best.placement.honour = Honour::BestEffort;
    let memory = MachineMemory::map_or_less(&config, None, &mut best).unwrap();
    assert_eq!((memory.pages, best.differences.len()), (Pages::Transparent, 1));
    assert!(best.differences[0].to_string().contains("somebody else took HugePages of 2M"), "{:?}", best.differences);
    MachineMemory::map_or_less(&config, None, &mut settled.clone()).unwrap_err();
    drop((memory, taken));
    MachineMemory::map(&config, None, &settled).expect("nothing is left reserved");
}

/// As on a node that has fewer than the host has reserved for us.
#[test]
fn a_prefault_that_finds_no_page_is_an_error_and_gives_back_what_it_had_of_hugepages() {
    let pool = Pool::of_2m(4);
    let before = pool.free();
    let nodes = HostNodes { nodes: "0".parse().unwrap(), policy: NodePolicy::Bind };
    let (config, settled) = settled(|config| {
        (config.placement.pages, config.placement.nodes) = (Pages::Huge2M, Some(nodes));
    });
    let file = file_of(config.backing, config.size_bytes, Pages::Huge2M).unwrap();
    let place = file.map(|file| FileOffset::from_arc(file, 0));
    let length = usize::try_from(config.size_bytes).unwrap();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let mapping = MmapRegion::build(place, length, access, libc::MAP_SHARED | libc::MAP_NORESERVE).unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    placement::advise(&region, &settled.placement, settled.parts[0].nodes.as_ref()).unwrap();
    let memory = GuestMemory::from_regions(vec![region]).unwrap();
    let error = make_present(&memory, &settled, &Assembly::default()).unwrap_err().to_string();
    assert!(error.contains("prefault (MADV_POPULATE_WRITE)") && error.contains("add some, and start again"), "{error}");
    drop(memory);
    assert_eq!(pool.free(), before);
}
