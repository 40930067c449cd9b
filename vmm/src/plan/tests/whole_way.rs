//! From a plan to its placement, on hosts that this machine is not: what a plan promises of a host is what husk grants there.

use super::*;
use crate::config::firecracker;
use crate::config::{Cpus, Pages, ThreadName, ThreadPlacement, ThreadTerms, VmConfig};
use crate::host::KnownMemory;
use crate::placement::{HostCpus, Settled, choose_cpus_on, settle, settle_threads};

/// One of the hosts gives husk less memory than it has.
static FACTS: LazyLock<[Facts; 5]> = LazyLock::new(|| {
    let mut facts = SKETCHES.map(Sketch::facts);
    facts[3].limits.memory_bytes = Some(Limit { value: 24 * GIB, file: "/g/memory.max".to_owned() });
    facts
});
static GROUNDS: LazyLock<[Ground; 5]> = LazyLock::new(|| FACTS.each_ref().map(|facts| Ground::of(facts).unwrap()));

/// The file of a VM that asks for so much.
fn file(vm: &VmDemand) -> String {
    let pages = match vm.page_bytes {
        None => Pages::HostsChoice,
        Some(GIB) => Pages::Huge1G,
        Some(_) => Pages::Huge2M,
    };
    let node = |node: &GuestNode| serde_json::json!({ "cpus": node.vcpus, "mem_size_mib": node.memory_bytes / MIB });
    let numa: Vec<_> = vm.nodes.iter().filter(|_| vm.nodes.len() > 1).map(node).collect();
    serde_json::json!({
        "boot-source": { "kernel_image_path": "/vmlinux" },
        "machine-config": { "vcpu_count": vm.vcpus(), "mem_size_mib": vm.memory_bytes() / MIB },
        "husk": { "placement": { "memory": { "pages": pages, "prefault": true }, "numa": numa } },
    })
    .to_string()
}

/// The nodes of a vCPU's memory.
fn home(config: &VmConfig, vcpu: u8) -> Option<crate::host::IdList> {
    let node = config.numa.iter().position(|node| node.cpus.contains(vcpu.into())).unwrap_or(0);
    config.memory_parts()[node].nodes.as_ref().map(|nodes| nodes.nodes.clone())
}

fn names(config: &VmConfig) -> Vec<ThreadName> {
    (0..u8::try_from(config.cpus).unwrap()).map(ThreadName::Vcpu).chain([ThreadName::Main]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_a_plan_writes_is_granted_as_it_is_written(which in 0..5usize, vms in any_vms()) {
        let (facts, ground) = (&FACTS[which], &GROUNDS[which]);
        let (memory, cpus) = (KnownMemory::of(facts), HostCpus::of(facts));
        for (vm, told) in vms.iter().zip(plan(ground, &vms, Overcommit::NONE).vms) {
            if told.parts.is_empty() {
                continue;
            }
            let text = with_placement(&file(vm), &told).unwrap();
            let config = firecracker::parse(&text).unwrap().machine;
            let asked = Settled::as_asked(&config.memory.placement, config.memory_parts());
            let settled = settle(asked.clone(), config.memory.backing, &memory);
            prop_assert_eq!(settled.map_err(|error| error.to_string()), Ok(asked), "{}", text);
            let as_written = |placement: &ThreadPlacement| Ok(placement.clone());
            let threads = settle_threads(&config.threads, &names(&config), &cpus, as_written);
            prop_assert!(threads.is_ok(), "{text}: {threads:?}");
        }
    }

    #[test]
    fn a_vm_that_fits_alone_finds_its_cpus_by_auto(which in 0..5usize, vm in any_vm()) {
        let ground = &GROUNDS[which];
        let told = plan(ground, std::slice::from_ref(&vm), Overcommit::NONE).vms.remove(0);
        if !told.parts.is_empty() {
            let config = firecracker::parse(&with_placement(&file(&vm), &told).unwrap()).unwrap().machine;
            let auto = ThreadTerms { cpus: Some(Cpus::Auto(vm.siblings)), priority: None };
            let terms = names(&config).into_iter().map(|name| (name, auto.clone())).collect();
            let asked = ThreadPlacement { terms, ..ThreadPlacement::default() };
            let chosen = choose_cpus_on(ground, &asked, |vcpu| home(&config, vcpu), |_| Vec::new()).unwrap();
            let cpus = chosen.terms.values().filter_map(|terms| terms.cpus.as_ref()?.list());
            prop_assert!(cpus.clone().all(|cpus| !cpus.is_empty()), "{:?}", chosen);
            let vcpus: Vec<u16> = names(&config)
                .iter()
                .filter(|name| **name != ThreadName::Main)
                .flat_map(|name| chosen.terms[name].cpus.as_ref().unwrap().list().unwrap().iter().collect::<Vec<_>>())
                .collect();
            let different: BTreeSet<u16> = vcpus.iter().copied().collect();
            prop_assert_eq!((vcpus.len(), different.len()), (names(&config).len() - 1, vcpus.len()), "a CPU each");
        }
    }
}
