use super::*;
use crate::config::HotplugConfig;
use crate::config::{CoreScheduling, GuestNode, HostFacts, HostNodes, MIB, NodePolicy, Pages, ThreadName, ThreadTerms};

/// A machine that has something of everything.
fn rich() -> VmConfig {
    let limits = LimiterConfig {
        total: Limits { bytes: Rate::new(1 << 20, 5, 100), operations: None },
        inward: Limits::default(),
        outward: Limits { bytes: None, operations: Rate::per_second(7) },
    };
    let disk = |id: &str, root, tuning| DiskConfig {
        id: id.to_owned(),
        source: DiskSource::Path(format!("/srv/{id}.img").into()),
        read_only: id == "seed",
        root,
        tuning,
    };
    let tuning = DiskTuning {
        engine: DiskEngine::Sync,
        cache: Some(CacheMode::Direct),
        block: Some(BlockSize::B4096),
        physical_block: None,
        serial: Some("QM 1".to_owned()),
        queues: 4,
        queue_size: 64,
        threads: IoThreads::Shared("fast".to_owned()),
        poll_us: 9,
        limits,
        limit_group: Some("gold".to_owned()),
        on_enospc: OnEnospc::Stop,
    };
    let net = |id: &str, source, mac: Option<&str>, filter| NetConfig {
        id: id.to_owned(),
        source,
        mac: mac.map(|mac| mac.parse().unwrap()),
        tuning: NetTuning { mtu: Some(9000), threads: IoThreads::Own(1), filter, ..NetTuning::default() },
    };
    let filter = NetFilter::MacAndIp(vec!["10.0.0.1".parse().unwrap(), "fe80::1".parse().unwrap()]);
    let mut config = crate::config::firecracker::blank();
    config.cpus = 4;
    config.threads_per_core = ThreadsPerCore::Two;
    config.memory = MemoryConfig { track_dirty_pages: true, ..MemoryConfig::new(256 * MIB) };
    config.memory.backing = MemoryBacking::Memfd;
    config.memory.placement.prefault = true;
    let host = HostNodes { nodes: "0".parse().unwrap(), policy: NodePolicy::Preferred };
    let node = |cpus: &str, host, distances: [u8; 2]| GuestNode {
        cpus: cpus.parse().unwrap(),
        bytes: 128 * MIB,
        host,
        devices: Vec::new(),
        distances: distances.to_vec(),
    };
    config.numa = vec![node("0-1", Some(host), [10, 20]), node("2-3", None, [20, 10])];
    let terms = ThreadTerms { cpus: "0".parse().ok(), priority: "nice:3".parse().ok() };
    config.threads.terms.insert(ThreadName::Vcpu(1), terms);
    config.threads.core_scheduling = CoreScheduling::Vm;
    config.boot = Some(BootConfig {
        kernel: KernelSource::Path("/boot/vmlinux".into()),
        initrd: Some("/boot/initrd".into()),
        cmdline: Some("console=ttyS0".to_owned()),
        entry: BootEntry::Pvh,
    });
    config.disks = vec![
        disk("root", RootDevice::Partition("0eaa91a0-01".to_owned()), tuning),
        disk("seed", RootDevice::No, DiskTuning::default()),
    ];
    config.nets = vec![
        net("eth0", NetSource::Tap("tap0".to_owned()), Some("02:00:00:00:00:01"), filter),
        net("eth1", NetSource::Fds(vec![7]), None, NetFilter::Off),
    ];
    config.entropy = Entropy::On;
    config.entropy_limits = limits;
    config.balloon = Some(BalloonConfig {
        target_bytes: 16 * MIB,
        deflate_on_oom: true,
        statistics: Some(Duration::from_secs(2)),
        hinting: true,
        reporting: false,
    });
    config.serial = SerialTarget::File("/var/log/console".into());
    config.serial_limit = Rate::per_second(4096);
    config
}

#[test]
fn a_machine_with_something_of_everything_comes_back_as_it_was() {
    let config = rich();
    let state = ConfigState::save(&config).unwrap();
    let bytes = postcard::to_allocvec(&state).unwrap();
    let read: ConfigState = postcard::from_bytes(&bytes).unwrap();
    assert_eq!(read, state);
    let restored = read.restore().unwrap();
    assert_eq!(format!("{restored:?}"), format!("{config:?}"));
    assert_eq!(restored.validate_restored(HostFacts { memory_bytes: u64::MAX }), Ok(()));
}

#[test]
fn a_machine_that_ran_before_a_rule_was_made_comes_back_and_is_not_made_anew() {
    let host = HostFacts { memory_bytes: u64::MAX };
    let split_core = |config: &mut VmConfig| {
        config.numa[0].cpus = "0-2".parse().unwrap();
        config.numa[1].cpus = "3".parse().unwrap();
    };
    let split_huge_page = |config: &mut VmConfig| {
        config.memory.placement.pages = Pages::Transparent;
        (config.numa[0].bytes, config.numa[1].bytes) = (127 * MIB, 129 * MIB);
    };
    let two_polls = |config: &mut VmConfig| {
        config.disks[1].tuning.threads = IoThreads::Shared("fast".to_owned());
    };
    let changes: [&dyn Fn(&mut VmConfig); 3] = [&split_core, &split_huge_page, &two_polls];
    for change in changes {
        let mut config = rich();
        assert_eq!(config.validate(host), Ok(()));
        change(&mut config);
        let restored = ConfigState::save(&config).unwrap().restore().unwrap();
        assert_eq!(restored.validate_restored(host), Ok(()));
        assert!(restored.validate(host).is_err(), "{restored:?}");
    }
}

#[test]
fn bytes_that_end_early_are_refused_at_every_length() {
    let bytes = postcard::to_allocvec(&ConfigState::save(&rich()).unwrap()).unwrap();
    for length in 0..bytes.len() {
        assert!(postcard::from_bytes::<ConfigState>(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn what_no_other_process_could_open_is_named() {
    let mut config = rich();
    config.disks[1].source = DiskSource::Open(std::sync::Arc::new(std::fs::File::open("/dev/null").unwrap()));
    assert_eq!(ConfigState::save(&config), Err(SaveConfigError::OpenDisk("seed".to_owned())));
    let mut config = rich();
    config.boot.as_mut().unwrap().kernel = KernelSource::BuiltIn(&[]);
    assert_eq!(ConfigState::save(&config), Err(SaveConfigError::BuiltInKernel));
}

#[test]
fn an_address_of_a_group_is_refused() {
    let mut state = ConfigState::save(&rich()).unwrap();
    state.nets[0].mac = Some([1, 0, 0, 0, 0, 0]);
    assert!(matches!(state.restore(), Err(MacAddressError::Multicast { .. })));
}

#[test]
fn the_first_versions_bytes_are_read_for_ever() {
    let read: ConfigState = postcard::from_bytes(&crate::golden::bytes("config-v1.txt")).unwrap();
    assert_eq!(read, ConfigState::save(&rich()).unwrap());
}

#[test]
fn memory_that_can_be_plugged_comes_back_and_its_first_versions_bytes_are_read_for_ever() {
    let config =
        HotplugConfig { total_bytes: 1 << 30, block_bytes: 4 * MIB, slot_bytes: 256 * MIB, requested_bytes: 8 * MIB };
    let read: HotplugState = postcard::from_bytes(&crate::golden::bytes("hotplug-v1.txt")).unwrap();
    assert_eq!(read, HotplugState::save(&config));
    assert_eq!(read.restore(), config);
}

#[test]
fn devices_that_are_near_a_node_come_back_and_their_first_versions_bytes_are_read_for_ever() {
    let mut config = rich();
    assert_eq!(NearnessState::save(&config), None, "a machine that has none is kept as ever");
    config.numa[1].devices = vec!["seed".to_owned(), "eth0".to_owned()];
    let read: NearnessState = postcard::from_bytes(&crate::golden::bytes("nearness-v1.txt")).unwrap();
    assert_eq!(Some(&read), NearnessState::save(&config).as_ref());
    let mut restored = ConfigState::save(&config).unwrap().restore().unwrap();
    assert!(read.clone().restore(&mut restored));
    assert_eq!(restored.numa, config.numa);
    restored.numa.pop();
    assert!(!read.restore(&mut restored), "it is of another machine");
}

#[test]
fn a_rate_that_limits_nothing_is_refused() {
    let mut config = rich();
    config.serial_limit = Rate::new(0x1234_5678, 0, 0x0765_4321);
    let bytes = postcard::to_allocvec(&ConfigState::save(&config).unwrap()).unwrap();
    for number in [0x1234_5678_u64, 0x0765_4321] {
        let encoded = postcard::to_allocvec(&number).unwrap();
        let place = bytes.windows(encoded.len()).position(|window| window == encoded).unwrap();
        let zeroed = [&bytes[..place], &[0], &bytes[place + encoded.len()..]].concat();
        assert!(postcard::from_bytes::<ConfigState>(&zeroed).is_err());
        assert!(postcard::from_bytes::<ConfigState>(&bytes).is_ok());
    }
}

#[test]
fn physical_blocks_are_saved_beside_the_rest_and_only_where_they_were_given() {
    let mut config = rich();
    let without = ConfigState::save(&config).unwrap();
    assert_eq!(DiskBlocksState::save(&config), None);
    config.disks[1].tuning.physical_block = Some(65536);
    assert_eq!(ConfigState::save(&config).unwrap(), without);
    let saved = DiskBlocksState::save(&config).unwrap();
    let read: DiskBlocksState = postcard::from_bytes(&crate::golden::bytes("disk-blocks-v1.txt")).unwrap();
    assert_eq!(read, saved);
    let mut restored = without.restore().unwrap();
    read.clone().restore(&mut restored).unwrap();
    assert_eq!(format!("{restored:?}"), format!("{config:?}"));
    restored.disks.pop();
    assert_eq!(read.restore(&mut restored), Err("seed".to_owned()));
}
