use std::fs;

use super::*;
use crate::config::{HostNodes, MemoryPart, NodePolicy};
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

/// What is said of a region's mapping (proc(5)), and of those behind it.
fn smaps(region: &GuestRegionMmap) -> String {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    smaps[smaps.find(&format!("\n{:x}-", region.as_ptr().addr())).unwrap()..].to_owned()
}

/// What the kernel was told of a region (VmFlags).
fn flags(region: &GuestRegionMmap) -> Vec<String> {
    let smaps = smaps(region);
    let flags = smaps.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    flags.split_ascii_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_kernel_is_told_what_may_be_done_with_memory() {
    let told = |change: fn(&mut MemoryConfig)| {
        let (config, mut settled) = settled(change);
        let memory = MachineMemory::map(&config, None, &mut settled).unwrap();
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
    let (config, mut settled) = settled(|config| config.placement.pages = Pages::Huge2M);
    let other = memfd::create_huge("husk-test", HUGE, HUGE).unwrap();
    let taken = map_aligned(Some(FileOffset::new(other, 0)), HUGE, Pages::Huge2M, Presence::Now).unwrap();
    let error = MachineMemory::map(&config, None, &mut settled).unwrap_err().to_string();
    assert!(error.contains("the pool has too few HugePages now"), "{error}");
    assert_eq!(pool.free(), before, "nothing was touched");
    let mut best = settled.clone();
    best.placement.honour = Honour::BestEffort;
    let memory = MachineMemory::map_or_less(&config, None, &mut best).unwrap();
    assert_eq!((memory.pages, best.differences.len()), (Pages::Transparent, 1));
    assert!(best.differences[0].to_string().contains("somebody else took HugePages of 2M"), "{:?}", best.differences);
    MachineMemory::map_or_less(&config, None, &mut settled.clone()).unwrap_err();
    drop((memory, taken));
    MachineMemory::map(&config, None, &mut settled).expect("nothing is left reserved");
}

/// What is mapped so, as memory of which so much has been settled.
fn machine_memory(mapping: MmapRegion, settled: &Settled) -> MachineMemory {
    let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
    placement::advise(&region, &settled.placement, settled.parts[0].nodes.as_ref()).unwrap();
    let ram = Arc::new(GuestMemory::from_regions(vec![region]).unwrap());
    MachineMemory { all: Arc::clone(&ram), ram, pluggable: None, pages: settled.placement.pages }
}

/// As on a node that has fewer than the host has reserved for us.
#[test]
fn a_prefault_that_finds_no_page_is_an_error_and_gives_back_what_it_had_of_hugepages() {
    let pool = Pool::of_2m(4);
    let before = pool.free();
    let nodes = HostNodes { nodes: "0".parse().unwrap(), policy: NodePolicy::Bind };
    let (config, mut settled) = settled(|config| {
        (config.placement.pages, config.placement.nodes) = (Pages::Huge2M, Some(nodes));
    });
    let unreserved = |settled: &Settled| {
        let file = file_of(config.backing, config.size_bytes, Pages::Huge2M).unwrap();
        let place = file.map(|file| FileOffset::from_arc(file, 0));
        let length = usize::try_from(config.size_bytes).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        machine_memory(
            MmapRegion::build(place, length, access, libc::MAP_SHARED | libc::MAP_NORESERVE).unwrap(),
            settled,
        )
    };
    let map = |settled: &mut Settled| MachineMemory::map(&config, None, settled);
    let mut memory = unreserved(&settled);
    let error = make_present(&mut memory, map, &mut settled.clone(), &Assembly::default()).unwrap_err().to_string();
    assert!(error.contains("prefault (MADV_POPULATE_WRITE)") && error.contains("add some, and start again"), "{error}");
    drop(memory);
    assert_eq!(pool.free(), before);

    // A page that is not there is the end of a guest that runs into it: with the best effort it has none of the pool.
    (settled.placement.honour, settled.placement.prefault) = (Honour::BestEffort, true);
    let mut memory = unreserved(&settled);
    make_present(&mut memory, map, &mut settled, &Assembly::default()).unwrap();
    assert_eq!((memory.pages, pool.free()), (Pages::Transparent, before));
    let told: Vec<String> = settled.differences.iter().map(ToString::to_string).collect();
    assert_eq!(told, [error]);
    let span = memory.ram.iter().next().unwrap();
    let resident = smaps(span).lines().find_map(|line| line.strip_prefix("Rss:").map(str::to_owned)).unwrap();
    assert_eq!(resident.trim(), format!("{} kB", config.size_bytes / 1024), "all of the other memory is there");
}

#[test]
fn what_the_kernel_does_not_do_of_it_is_left_out_and_told_where_the_best_effort_is_enough() {
    // A host that was not asked has no such node: mbind fails.
    let nodes = HostNodes { nodes: "7".parse().unwrap(), policy: NodePolicy::Bind };
    let (config, mut bound) = settled(|config| config.placement.nodes = Some(nodes));
    let error = MachineMemory::map(&config, None, &mut bound.clone()).unwrap_err().to_string();
    assert!(error.contains("cannot bind to its nodes (mbind) 16 MiB at guest address 0x0"), "{error}");
    bound.placement.honour = Honour::BestEffort;
    let memory = MachineMemory::map(&config, None, &mut bound).unwrap();
    assert_eq!((bound.differences.len(), bound.parts[0].nodes.is_none()), (1, true));
    assert_eq!(bound.differences[0].to_string(), error);
    assert_eq!(
        flags(memory.ram.iter().next().unwrap()).iter().filter(|flag| *flag == "dd").count(),
        1,
        "the rest is done"
    );

    // Nobody reaches what is not plugged yet: mlock and MADV_POPULATE_WRITE fail.
    let (config, mut locked) = settled(|config| (config.placement.prefault, config.placement.lock) = (true, true));
    let mapping = map_aligned(None, config.size_bytes, Pages::HostsChoice, Presence::Plugged).unwrap();
    let mut memory = machine_memory(mapping, &locked);
    let present = |settled: &mut Settled, memory: &mut MachineMemory| {
        make_present(memory, |_| panic!("no other memory would be better"), settled, &Assembly::default())
    };
    present(&mut locked.clone(), &mut memory).unwrap_err();
    locked.placement.honour = Honour::BestEffort;
    present(&mut locked, &mut memory).unwrap();
    let told: Vec<String> = locked.differences.iter().map(ToString::to_string).collect();
    assert!(told[0].contains("cannot prefault") && told[1].contains("cannot lock (mlock)"), "{told:?}");
    assert_eq!((locked.placement.prefault, locked.placement.lock), (false, false));
}
