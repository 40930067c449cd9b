use super::*;

/// A file of the shape that Firecracker's users have, nulls and all.
const FILE: &str = r#"{
  "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0 reboot=k", "initrd_path": null},
  "drives": [
    {"drive_id": "data", "is_root_device": false, "is_read_only": true, "path_on_host": "data.img"},
    {"drive_id": "rootfs", "partuuid": null, "is_root_device": true, "cache_type": "Unsafe", "is_read_only": false,
     "path_on_host": "rootfs.ext4", "io_engine": "Sync", "rate_limiter": null, "socket": null}
  ],
  "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false,
                     "huge_pages": "None"},
  "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null, "logger": null, "metrics": null,
  "mmds-config": null, "entropy": null, "pmem": [], "memory-hotplug": null
}"#;

fn refused(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

fn with(section: &str) -> String {
    format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, {section}}}"#)
}

#[test]
fn a_users_file_is_taken_as_it_is_and_the_root_drive_comes_first() {
    let config = parse(FILE).unwrap();
    assert_eq!((config.cpus, config.memory.size_bytes), (2, 1024 * MIB));
    assert_eq!(config.boot.cmdline.as_deref(), Some("console=ttyS0 reboot=k"));
    let ids: Vec<_> = config.disks.iter().map(|disk| (disk.id.as_str(), disk.read_only)).collect();
    assert_eq!(ids, [("rootfs", false), ("data", true)]);
    assert_eq!(config.disks[0].root, RootDevice::Whole);
    assert_eq!(config.entropy, Entropy::Off);
    assert_eq!(config.cmdline().split_once(" root=").unwrap().1.split_once(" virtio").unwrap().0, "/dev/vda rw");
}

#[test]
fn what_is_absent_has_firecrackers_defaults() {
    let config = parse(r#"{"boot-source": {"kernel_image_path": "k"}}"#).unwrap();
    assert_eq!((config.cpus, config.memory.size_bytes), (1, 128 * MIB));
    assert_eq!(config.boot.cmdline.as_deref(), Some(DEFAULT_BOOT_ARGS));
    assert!(config.disks.is_empty());
}

#[test]
fn entropy_and_a_serial_file_are_taken() {
    let config = parse(&with(r#""entropy": {}, "serial": {"serial_out_path": "/tmp/out"}"#)).unwrap();
    assert_eq!(config.entropy, Entropy::On);
    assert_eq!(config.serial, SerialTarget::File("/tmp/out".into()));
}

#[test]
fn a_wrong_field_is_named_with_its_place() {
    let unknown = refused(&with(r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "vcpus": 2}"#));
    assert!(unknown.starts_with("machine-config") && unknown.contains("unknown field `vcpus`"), "{unknown}");
    assert!(unknown.contains("line 1 column"), "{unknown}");
    let doubled = refused(&with(r#""machine-config": {"vcpu_count": 1, "vcpu_count": 1, "mem_size_mib": 64}"#));
    assert!(doubled.contains("duplicate field `vcpu_count`"), "{doubled}");
    let missing = refused(&with(r#""machine-config": {"vcpu_count": 1}"#));
    assert!(missing.contains("missing field `mem_size_mib`"), "{missing}");
    let mistyped = refused(&with(r#""drives": [{"drive_id": 7, "is_root_device": false}]"#));
    assert!(mistyped.starts_with("drives[0].drive_id: invalid type: integer `7`"), "{mistyped}");
    assert!(refused("{}").contains("missing field `boot-source`"));
    assert!(refused("").contains("EOF"));
    assert!(refused(&format!("{FILE} x")).contains("trailing"));
    assert!(refused(&with(r#""drives": null, "drives": null"#)).contains("duplicate field `drives`"));
}

#[test]
fn what_husk_cannot_honour_yet_is_refused_by_name() {
    for (section, name) in [
        (r#""vsock": {"guest_cid": 3, "uds_path": "v"}"#, "vsock"),
        (r#""balloon": {"amount_mib": 1}"#, "balloon"),
        (r#""pmem": [{"id": "p"}]"#, "pmem"),
        (r#""entropy": {"rate_limiter": {}}"#, "entropy.rate_limiter"),
        (r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "2M"}"#, "machine-config.huge_pages"),
        (r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "smt": true}"#, "machine-config.smt"),
        (
            r#""drives": [{"drive_id": "d", "is_root_device": true, "is_read_only": true, "path_on_host": "p",
                 "socket": "s"}]"#,
            "drives[0].socket",
        ),
    ] {
        let message = refused(&with(section));
        assert!(
            message.starts_with(&format!("{name}: ")) && message.ends_with("not supported yet: remove it"),
            "{message}"
        );
    }
}

#[test]
fn a_second_root_drive_and_a_drive_without_a_path_are_refused() {
    let drive = |id: &str| {
        format!(r#"{{"drive_id": "{id}", "is_root_device": true, "is_read_only": true, "path_on_host": "p"}}"#)
    };
    let two = refused(&with(&format!(r#""drives": [{}, {}]"#, drive("a"), drive("b"))));
    assert_eq!(two, "drives[1].is_root_device: another drive is the root device");
    let none = refused(&with(r#""drives": [{"drive_id": "a", "is_root_device": false, "is_read_only": true}]"#));
    assert_eq!(none, "drives[0].path_on_host: is missing: a drive needs it");
}

#[test]
fn a_drives_engine_cache_and_limits_are_taken() {
    let tuning = |fields: &str| {
        let drive = r#""drive_id": "d", "is_root_device": false, "is_read_only": true, "path_on_host": "p""#;
        parse(&with(&format!(r#""drives": [{{{drive}{fields}}}]"#))).unwrap().disks.remove(0).tuning
    };
    assert_eq!(tuning(""), DiskTuning::default());
    assert_eq!(tuning(r#", "io_engine": null, "cache_type": null, "rate_limiter": null"#), DiskTuning::default());
    assert_eq!(tuning(r#", "io_engine": "Async""#).engine, DiskEngine::IoUring);
    assert_eq!(tuning(r#", "io_engine": "Sync""#).engine, DiskEngine::Sync);
    assert_eq!(tuning(r#", "cache_type": "Unsafe""#).cache, CacheMode::Unsafe);
    assert_eq!(tuning(r#", "cache_type": "Writeback""#).cache, CacheMode::Writeback);
    let limited = tuning(
        r#", "rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 500, "refill_time": 100},
                             "ops": {"size": 10, "refill_time": 1000}}"#,
    );
    let total = Limits { bytes: Rate::new(1000, 500, 100), operations: Rate::new(10, 0, 1000) };
    assert_eq!(limited.limits, LimiterConfig { total, ..LimiterConfig::default() });
    let unlimited = tuning(r#", "rate_limiter": {"ops": {"size": 0, "refill_time": 0}}"#);
    assert!(unlimited.limits.is_unlimited());
}

#[test]
fn network_interfaces_are_taken_in_their_order() {
    let text = with(
        r#""network-interfaces": [
            {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:AC:10:00:02", "rx_rate_limiter": null},
            {"iface_id": "eth1", "host_dev_name": "tap1"}]"#,
    );
    let config = parse(&text).unwrap();
    let nets: Vec<_> = config.nets.iter().map(|net| (net.id.as_str(), net.source.clone())).collect();
    let tap = |name: &str| NetSource::Tap(name.to_owned());
    assert_eq!(nets, [("eth0", tap("tap0")), ("eth1", tap("tap1"))]);
    assert_eq!(config.nets[0].mac.unwrap().bytes(), [6, 0, 0xac, 0x10, 0, 2]);
    assert_eq!(config.nets[1].mac, None);
}

#[test]
fn a_network_interface_that_cannot_be_is_refused_by_its_field() {
    let interface =
        |more: &str| with(&format!(r#""network-interfaces": [{{"iface_id": "eth0", "host_dev_name": "tap0"{more}}}]"#));
    let group = parse(&interface(r#", "guest_mac": "01:00:00:00:00:01""#)).unwrap_err();
    assert_eq!(group.to_string(), "network-interfaces[0].guest_mac");
    assert!(matches!(group, FileError::Mac { source: MacAddressError::Multicast { .. }, .. }));
    for field in ["mtu", "rx_rate_limiter", "tx_rate_limiter"] {
        let message = refused(&interface(&format!(r#", "{field}": {{"size": 1}}"#)));
        assert_eq!(message, format!("network-interfaces[0].{field}: this section is not supported yet: remove it"));
    }
    assert!(refused(&interface(r#", "mac": "x""#)).starts_with("network-interfaces[0]"));
    let missing = refused(&with(r#""network-interfaces": [{"iface_id": "eth0"}]"#));
    assert!(missing.contains("missing field `host_dev_name`"), "{missing}");
}
