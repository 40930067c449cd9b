use super::*;
use crate::config::{
    CacheMode, DiskEngine, DiskTuning, Honour, HostFacts, HostNodes, LimiterConfig, Limits, MemoryPlacement, NetSource,
    NetTuning, NodePolicy, Pages, Rate, RootDevice,
};

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
    let config = parse(FILE).unwrap().machine;
    assert_eq!((config.cpus, config.memory.size_bytes), (2, 1024 * MIB));
    assert_eq!(config.boot.as_ref().unwrap().cmdline.as_deref(), Some("console=ttyS0 reboot=k"));
    let ids: Vec<_> = config.disks.iter().map(|disk| (disk.id.as_str(), disk.read_only)).collect();
    assert_eq!(ids, [("rootfs", false), ("data", true)]);
    assert_eq!(config.disks[0].root, RootDevice::Whole);
    assert_eq!(config.entropy, Entropy::Off);
    assert_eq!(config.cmdline().split_once(" root=").unwrap().1.split_once(" virtio").unwrap().0, "/dev/vda rw");
}

#[test]
fn what_is_absent_has_firecrackers_defaults() {
    let config = parse(r#"{"boot-source": {"kernel_image_path": "k"}}"#).unwrap().machine;
    assert_eq!((config.cpus, config.memory.size_bytes), (1, 128 * MIB));
    assert_eq!(config.boot.as_ref().unwrap().cmdline.as_deref(), Some(DEFAULT_BOOT_ARGS));
    assert!(config.disks.is_empty());
}

#[test]
fn entropy_and_a_serial_file_are_taken() {
    let config = parse(&with(r#""entropy": {}, "serial": {"serial_out_path": "/tmp/out"}"#)).unwrap().machine;
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
fn huge_pages_and_husks_own_key_say_where_memory_is() {
    let placement = |sections: &str| parse(&with(sections)).unwrap().machine.memory.placement;
    let huge =
        |pages: &str| format!(r#""machine-config": {{"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "{pages}"}}"#);
    assert_eq!(placement(&huge("None")), MemoryPlacement::default());
    assert_eq!(placement(&huge("Transparent")).pages, Pages::Transparent);
    assert_eq!(placement(&huge("2M")).pages, Pages::Huge2M);
    let memory = r#""memory": {"nodes": "0,2", "policy": "interleave", "prefault": true}"#;
    let own = format!(r#""husk": {{"placement": {{{memory}, "best_effort": true}}}}"#);
    let given = placement(&format!("{}, {own}", huge("2M")));
    let nodes = HostNodes { nodes: "0,2".parse().unwrap(), policy: NodePolicy::Interleave };
    assert_eq!((given.pages, given.nodes), (Pages::Huge2M, Some(nodes)));
    assert!(given.prefault && !given.lock && given.honour == Honour::BestEffort);
    let wrong = refused(&with(r#""husk": {"placement": {"memory": {"nodes": "0-x"}}}"#));
    assert!(wrong.starts_with("husk.placement.memory.nodes: `0-x` is neither a number"), "{wrong}");
    let unknown = refused(&with(r#""husk": {"placement": {"memory": {"node": "0"}}}"#));
    assert!(unknown.starts_with("husk.placement.memory.node: unknown field"), "{unknown}");
}

#[test]
fn tracking_of_dirty_pages_is_what_was_asked_and_is_told_again() {
    let machine = |track: &str| {
        let text = with(&format!(r#""machine-config": {{"vcpu_count": 1, "mem_size_mib": 64{track}}}"#));
        parse(&text).unwrap().machine
    };
    for (track, on) in [("", false), (r#", "track_dirty_pages": true"#, true)] {
        let config = machine(track);
        assert_eq!((config.memory.track_dirty_pages, describe::machine(&config).track_dirty_pages), (on, on));
    }
}

#[test]
fn what_husk_cannot_honour_yet_is_refused_by_name() {
    for (section, name) in [
        (r#""vsock": {"guest_cid": 3, "uds_path": "v"}"#, "vsock"),
        (r#""pmem": [{"id": "p"}]"#, "pmem"),
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
        parse(&with(&format!(r#""drives": [{{{drive}{fields}}}]"#))).unwrap().machine.disks.remove(0).tuning
    };
    assert_eq!(tuning(""), DiskTuning::default());
    assert_eq!(tuning(r#", "io_engine": null, "cache_type": null, "rate_limiter": null"#), DiskTuning::default());
    assert_eq!(tuning(r#", "io_engine": "Async""#).engine, DiskEngine::IoUring);
    assert_eq!(tuning(r#", "io_engine": "Sync""#).engine, DiskEngine::Sync);
    assert_eq!(tuning(r#", "cache_type": "Unsafe""#).cache, Some(CacheMode::Unsafe));
    assert_eq!(tuning(r#", "cache_type": "Writeback""#).cache, Some(CacheMode::Writeback));
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
    let config = parse(&text).unwrap().machine;
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
    assert!(matches!(group, BodyError::Mac { source: MacAddressError::Multicast { .. }, .. }));
    let text = refused(&interface(r#", "mtu": "1500""#));
    assert!(text.starts_with("network-interfaces[0].mtu: invalid type: string"), "{text}");
    assert!(refused(&interface(r#", "mtu": 65536"#)).starts_with("network-interfaces[0].mtu: invalid value"));
    assert!(refused(&interface(r#", "mac": "x""#)).starts_with("network-interfaces[0]"));
    let missing = refused(&with(r#""network-interfaces": [{"iface_id": "eth0"}]"#));
    assert!(missing.contains("missing field `host_dev_name`"), "{missing}");
}

#[test]
fn a_network_interfaces_mtu_and_limits_are_taken_and_told() {
    let limiter = r#"{"bandwidth": {"size": 1000, "one_time_burst": 500, "refill_time": 100}, "ops": null}"#;
    let interface = format!(
        r#"{{"iface_id": "eth0", "host_dev_name": "tap0", "mtu": 9000, "rx_rate_limiter": {limiter},
             "tx_rate_limiter": {{"ops": {{"size": 10, "refill_time": 1000}}}}}}"#
    );
    let config = parse(&with(&format!(r#""network-interfaces": [{interface}]"#))).unwrap().machine;
    let limits = LimiterConfig {
        inward: Limits { bytes: Rate::new(1000, 500, 100), operations: None },
        outward: Limits { bytes: None, operations: Rate::new(10, 0, 1000) },
        total: Limits::default(),
    };
    assert_eq!(config.nets[0].tuning, NetTuning { mtu: Some(9000), limits, ..NetTuning::default() });
    let told = serde_json::to_value(describe::full(&config)).unwrap();
    assert_eq!(told["network-interfaces"][0]["mtu"], 9000);
    assert_eq!(told["network-interfaces"][0]["rx_rate_limiter"], body::<Value>(limiter));
    assert_eq!(told["network-interfaces"][0]["tx_rate_limiter"]["ops"]["size"], 10);
    let small = Change::NetworkInterface(Box::new(body(r#"{"iface_id": "e", "host_dev_name": "t", "mtu": 67}"#)));
    let refused = chain(&small.apply(&mut blank(), HOST).unwrap_err());
    assert!(refused.starts_with("mtu: "), "{refused}");
}

/// An error with what it stems from, as a user reads it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

const HOST: HostFacts = HostFacts { memory_bytes: 8 << 30 };

fn body<T: serde::de::DeserializeOwned>(text: &str) -> T {
    from_json(text).unwrap()
}

fn drive(fields: &str) -> Change {
    Change::Drive(Box::new(body(&format!(r#"{{"path_on_host": "p", {fields}}}"#))))
}

#[test]
fn a_machine_described_by_bodies_is_told_in_them() {
    let mut config = blank();
    assert_eq!(describe::machine(&config), MachineConfiguration::default());
    let put = |config: &mut VmConfig, change: Change| change.apply(config, HOST).unwrap();
    put(&mut config, Change::Machine(body(r#"{"vcpu_count": 2, "mem_size_mib": 256}"#)));
    put(&mut config, Change::MachinePart(body(r#"{"mem_size_mib": 512}"#)));
    put(&mut config, Change::BootSource(body(r#"{"kernel_image_path": "k", "boot_args": "quiet"}"#)));
    put(&mut config, drive(r#""drive_id": "data", "is_root_device": false, "is_read_only": true"#));
    let limiter = r#"{"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100}, "ops": null}"#;
    put(&mut config, drive(&format!(r#""drive_id": "root", "is_root_device": true, "rate_limiter": {limiter}"#)));
    put(&mut config, Change::NetworkInterface(Box::new(body(r#"{"iface_id": "eth0", "host_dev_name": "tap0"}"#))));
    put(&mut config, Change::Entropy(body(&format!(r#"{{"rate_limiter": {limiter}}}"#))));
    assert_eq!(config.entropy_limits, config.disks[0].tuning.limits);
    put(&mut config, Change::CpuConfig(Box::new(body(r#"{"kvm_capabilities": ["!56"]}"#))));
    let told = serde_json::to_value(describe::full(&config)).unwrap();
    assert_eq!(told["machine-config"]["vcpu_count"], 2);
    assert_eq!(told["machine-config"]["mem_size_mib"], 512);
    assert_eq!(told["boot-source"]["boot_args"], "quiet");
    assert_eq!(told["drives"][0]["drive_id"], "root");
    assert_eq!(told["drives"][0]["is_read_only"], false);
    assert_eq!(told["drives"][0]["cache_type"], "Unsafe");
    assert_eq!(told["drives"][0]["io_engine"], "Sync");
    assert_eq!(told["drives"][0]["rate_limiter"], body::<Value>(limiter));
    assert_eq!(told["network-interfaces"][0]["host_dev_name"], "tap0");
    assert_eq!(told["entropy"]["rate_limiter"], body::<Value>(limiter));
    put(&mut config, Change::BootSource(body(r#"{"kernel_image_path": "k"}"#)));
    let told_boot = serde_json::to_value(describe::full(&config)).unwrap()["boot-source"].clone();
    assert_eq!(told_boot, body::<Value>(r#"{"kernel_image_path": "k", "initrd_path": null, "boot_args": null}"#));
    assert!(config.cmdline().starts_with(DEFAULT_BOOT_ARGS), "{}", config.cmdline());
    assert_eq!(told["cpu-config"]["kvm_capabilities"], body::<Value>(r#"["!56"]"#));
}

#[test]
fn the_static_cpu_template_none_ends_a_custom_one_and_no_other_is_taken() {
    let mut config = blank();
    let custom = || Change::CpuConfig(Box::new(body(r#"{"kvm_capabilities": ["!56"]}"#)));
    for (change, stays) in [
        (Change::Machine(body(r#"{"vcpu_count": 1, "mem_size_mib": 64}"#)), true),
        (Change::MachinePart(body(r#"{"vcpu_count": 1}"#)), true),
        (Change::Machine(body(r#"{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "None"}"#)), false),
        (Change::MachinePart(body(r#"{"cpu_template": "None"}"#)), false),
    ] {
        custom().apply(&mut config, HOST).unwrap();
        let text = format!("{change:?}");
        change.apply(&mut config, HOST).unwrap();
        assert_eq!(config.cpu_template.is_some(), stays, "{text}");
    }
    let refused = Change::MachinePart(body(r#"{"cpu_template": "T2"}"#)).apply(&mut config, HOST).unwrap_err();
    assert_eq!(refused.field(), Some("cpu_template"));
    let message = refused.to_string();
    assert!(message.contains("T2") && message.contains("PUT /cpu-config"), "{message}");
    let misspelt = super::from_json::<super::bodies::MachineConfigurationPart>(r#"{"cpu_template": "T3"}"#)
        .unwrap_err()
        .to_string();
    assert!(misspelt.contains("T3") && misspelt.contains("`T2CL`"), "{misspelt}");
}

#[test]
fn a_drive_is_replaced_by_its_id_and_a_refused_body_changes_nothing() {
    let mut config = blank();
    drive(r#""drive_id": "a", "is_root_device": false"#).apply(&mut config, HOST).unwrap();
    drive(r#""drive_id": "b", "is_root_device": true"#).apply(&mut config, HOST).unwrap();
    drive(r#""drive_id": "a", "is_root_device": false, "is_read_only": true"#).apply(&mut config, HOST).unwrap();
    let ids = |config: &VmConfig| config.disks.iter().map(|disk| disk.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&config), ["b", "a"]);
    assert!(config.disks[1].read_only);
    let before = format!("{config:?}");
    let mut refused = |change: Change| {
        let message = chain(&change.apply(&mut config, HOST).unwrap_err());
        assert_eq!(format!("{config:?}"), before);
        message
    };
    let root = refused(drive(r#""drive_id": "c", "is_root_device": true"#));
    assert_eq!(root, "is_root_device: another drive is the root device");
    let cpus = refused(Change::Machine(body(r#"{"vcpu_count": 0, "mem_size_mib": 64}"#)));
    assert!(cpus.starts_with("vcpu_count: cpus: "), "{cpus}");
    let memory = refused(Change::MachinePart(body(r#"{"mem_size_mib": 0}"#)));
    assert!(memory.starts_with("mem_size_mib: memory: 0 bytes"), "{memory}");
    assert_eq!(memory.matches("memory: 0 bytes").count(), 1, "a limit is told once: {memory}");
    let id = refused(drive(r#""drive_id": "a b", "is_root_device": false"#));
    assert!(id.starts_with("device id `a b`: use 1 to 64"), "{id}");
}

#[test]
fn two_interfaces_do_not_share_an_address() {
    let mut config = blank();
    let interface = |id: &str, tap: &str| {
        let text = format!(r#"{{"iface_id": "{id}", "host_dev_name": "{tap}", "guest_mac": "02:00:00:00:00:01"}}"#);
        Change::NetworkInterface(Box::new(body(&text)))
    };
    interface("eth0", "tap0").apply(&mut config, HOST).unwrap();
    interface("eth0", "tap1").apply(&mut config, HOST).unwrap();
    let refused = interface("eth1", "tap2").apply(&mut config, HOST).unwrap_err();
    assert_eq!(refused.to_string(), "guest_mac: is the address of another interface");
    assert_eq!(config.nets.len(), 1);
}
