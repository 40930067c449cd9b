use super::*;

const HOST: HostFacts = HostFacts { memory_bytes: 8 << 30 };

fn config() -> VmConfig {
    VmConfig {
        cpus: 1,
        memory: MemoryConfig::new(512 * MIB),
        numa: Vec::new(),
        boot: Some(BootConfig {
            kernel: KernelSource::BuiltIn(b""),
            initrd: None,
            cmdline: None,
            entry: BootEntry::Auto,
        }),
        tables: HardwareTables::Acpi,
        disks: Vec::new(),
        nets: Vec::new(),
        entropy: Entropy::IfRoom,
        entropy_limits: LimiterConfig::default(),
        balloon: None,
        hotplug: None,
        cpu_template: None,
        threads_per_core: ThreadsPerCore::One,
        serial_limit: None,
        serial: SerialTarget::Stdio,
        threads: ThreadPlacement::default(),
    }
}

fn disk(id: &str) -> DiskConfig {
    DiskConfig {
        id: id.to_owned(),
        source: DiskSource::Path("/nowhere".into()),
        read_only: false,
        root: RootDevice::No,
        tuning: DiskTuning::default(),
    }
}

#[test]
fn cpus_are_between_one_and_the_limit() {
    for (cpus, fits) in [(0, false), (1, true), (64, true), (65, false), (u64::MAX, false)] {
        let verdict = VmConfig { cpus, ..config() }.validate(HOST);
        let refused = ConfigError::Cpus(VcpuCountError { requested: cpus });
        assert_eq!(verdict, if fits { Ok(()) } else { Err(refused) });
    }
}

#[test]
fn memory_is_some_whole_mebibytes_that_the_host_has() {
    let with = |size_bytes| {
        let memory = MemoryConfig { size_bytes, ..config().memory };
        VmConfig { memory, ..config() }.validate(HOST)
    };
    assert_eq!(with(0), Err(ConfigError::NoMemory));
    assert_eq!(with(MIB), Ok(()));
    assert_eq!(with(MIB + 1), Err(ConfigError::MemoryNotWholeMib { bytes: MIB + 1 }));
    assert_eq!(with(1).unwrap_err().to_string(), "memory: 1 bytes is not a whole number of MiB: use 1M");
    assert_eq!(with(HOST.memory_bytes), Ok(()));
    let beyond = HOST.memory_bytes + MIB;
    assert_eq!(with(beyond), Err(ConfigError::MemoryBeyondHost { asked: beyond, host: HOST.memory_bytes }));
    assert_eq!(
        with(MIB + 1).unwrap_err().to_string(),
        "memory: 1048577 bytes is not a whole number of MiB: use 1M or 2M"
    );
}

#[test]
fn a_command_line_fits_with_its_nul_and_has_none_inside() {
    let with = |cmdline: String| {
        let mut config = config();
        config.boot.as_mut().unwrap().cmdline = Some(cmdline);
        config.validate(HOST)
    };
    assert_eq!(with("x".repeat(CMDLINE_MAX - 1)), Ok(()));
    assert_eq!(with("x".repeat(CMDLINE_MAX)), Err(ConfigError::CmdlineTooLong { length: CMDLINE_MAX }));
    assert_eq!(with("a\0b".to_owned()), Err(ConfigError::CmdlineNul { offset: 1 }));
}

#[test]
fn the_words_that_husk_adds_count_too() {
    let mut config = VmConfig { tables: HardwareTables::Mp, entropy: Entropy::On, ..config() };
    let added = " virtio_mmio.device=4K@0xd0000000:5".len();
    config.boot.as_mut().unwrap().cmdline = Some("x".repeat(CMDLINE_MAX - 1 - added));
    assert_eq!(config.validate(HOST), Ok(()));
    config.boot.as_mut().unwrap().cmdline = Some("x".repeat(CMDLINE_MAX - added));
    assert_eq!(config.validate(HOST), Err(ConfigError::CmdlineTooLong { length: CMDLINE_MAX }));
}

#[test]
fn the_twentieth_device_is_refused_by_name() {
    let with = |count: usize, entropy| {
        let disks = (0..count).map(|index| disk(&format!("d{index}"))).collect();
        VmConfig { disks, entropy, ..config() }.validate(HOST)
    };
    assert_eq!(with(19, Entropy::IfRoom), Ok(()));
    assert_eq!(with(20, Entropy::IfRoom), Err(ConfigError::TooManyDevices { id: "d19".to_owned(), number: 20 }));
    assert_eq!(with(19, Entropy::On), Err(ConfigError::TooManyDevices { id: "rng".to_owned(), number: 20 }));
}

#[test]
fn ids_are_plain_and_unique() {
    let with = |ids: &[&str]| VmConfig { disks: ids.iter().map(|id| disk(id)).collect(), ..config() }.validate(HOST);
    assert_eq!(with(&["a", "b_1-x"]), Ok(()));
    assert_eq!(with(&["a", "a"]), Err(ConfigError::DoubleId { id: "a".to_owned() }));
    assert_eq!(with(&["rng"]), Err(ConfigError::DoubleId { id: "rng".to_owned() }));
    for id in ["", "a/b", "é", &"x".repeat(65)] {
        assert_eq!(with(&[id]), Err(ConfigError::BadId { id: id.to_owned() }));
    }
}

fn net(id: &str, tap: &str) -> NetConfig {
    NetConfig { id: id.to_owned(), source: NetSource::Tap(tap.to_owned()), mac: None, tuning: NetTuning::default() }
}

#[test]
fn networks_have_taps_of_their_own_with_names_that_can_be() {
    let with = |nets: Vec<NetConfig>| VmConfig { disks: vec![disk("a")], nets, ..config() }.validate(HOST);
    assert_eq!(with(vec![net("n0", "t0"), net("n1", "t1")]), Ok(()));
    assert_eq!(with(vec![net("a", "t0")]), Err(ConfigError::DoubleId { id: "a".to_owned() }));
    let (first, second) = ("n0".to_owned(), "n1".to_owned());
    let both = ConfigError::DoubleTap { first, second, source_name: "tap `t0`".to_owned() };
    assert_eq!(with(vec![net("n0", "t0"), net("n1", "t0")]), Err(both));
    let fd = |id: &str| NetConfig { source: NetSource::Fds(vec![5]), ..net(id, "") };
    assert!(matches!(with(vec![fd("n0"), fd("n1")]), Err(ConfigError::DoubleTap { .. })));
    for name in ["", "0123456789abcdef", "a/b", "tap%d", "a b"] {
        let refused = ConfigError::TapName { id: "n0".to_owned(), name: name.to_owned() };
        assert_eq!(with(vec![net("n0", name)]), Err(refused));
    }
}

#[test]
fn networks_take_slots_behind_the_disks() {
    let with = |disks: usize, nets: usize| VmConfig {
        disks: (0..disks).map(|index| disk(&format!("d{index}"))).collect(),
        nets: (0..nets).map(|index| net(&format!("n{index}"), &format!("t{index}"))).collect(),
        ..config()
    };
    assert_eq!(
        (with(10, 9).validate(HOST), with(10, 9).windows().len(), with(10, 9).has_entropy()),
        (Ok(()), 19, false)
    );
    assert_eq!((with(10, 8).windows().len(), with(10, 8).has_entropy()), (19, true));
    let refused = ConfigError::TooManyDevices { id: "n9".to_owned(), number: 20 };
    assert_eq!(with(10, 10).validate(HOST), Err(refused));
}
