//! CPUs for threads that shall have some and do not say which. Pure: the host's cores are a value.

use std::collections::{BTreeMap, BTreeSet};

use super::threads::ThreadError;
use crate::config::{Cpus, Siblings, ThreadName, ThreadPlacement};
use crate::host::IdList;
use crate::plan::cores::{Choice, Cores};
use crate::plan::{Core, Ground, Overcommit};

/// `placement`, which has terms for each thread by its name, with a list in the place of each `auto`. `home` has the host's
/// nodes of a vCPU's memory, if that has some, and `served` the vCPUs that an I/O thread works for. The host is asked only
/// where there is an `auto`.
///
/// # Errors
/// It has too few CPUs.
pub(crate) fn choose(
    placement: &ThreadPlacement,
    home: impl Fn(u8) -> Option<IdList>,
    served: impl Fn(&str) -> Vec<u8>,
) -> Result<ThreadPlacement, ThreadError> {
    if !placement.terms.values().any(|terms| matches!(terms.cpus, Some(Cpus::Auto(_)))) {
        return Ok(placement.clone());
    }
    choose_on(&Ground::of_cpus()?, placement, home, served)
}

/// Where the vCPUs of one home are.
#[derive(Debug, Default)]
struct Place {
    /// The nodes that they were looked for on; `None` for all.
    near: Vec<Option<IdList>>,
    /// Their CPUs, with the siblings that they keep idle.
    own: Vec<u16>,
}

/// As [`choose`], on a host of this shape. vCPUs come first, node by node, isolated CPUs first among them, on no CPU of
/// another vCPU's list; an I/O thread shares what is left on the nodes of those that it works for and is not isolated, or
/// else the CPUs of the vCPUs' cores there; the other threads work for all.
pub(crate) fn choose_on(
    ground: &Ground,
    placement: &ThreadPlacement,
    home: impl Fn(u8) -> Option<IdList>,
    served: impl Fn(&str) -> Vec<u8>,
) -> Result<ThreadPlacement, ThreadError> {
    // Those that have the same home and the same siblings are placed together; who has the least choice of nodes, first.
    let choice = |home: &Option<IdList>| home.as_ref().map_or(usize::MAX, IdList::len);
    let mut groups: BTreeMap<(usize, Option<IdList>, Siblings), Vec<u8>> = BTreeMap::new();
    let mut vcpus = Vec::new();
    for (name, terms) in &placement.terms {
        let ThreadName::Vcpu(vcpu) = name else { continue };
        vcpus.push(*vcpu);
        if let Some(Cpus::Auto(siblings)) = terms.cpus {
            let home = home(*vcpu);
            groups.entry((choice(&home), home, siblings)).or_default().push(*vcpu);
        }
    }
    let listed = listed_vcpus(placement);
    let (mut chosen, mut taken) = (placement.clone(), listed.clone());
    let mut places = BTreeMap::<Option<IdList>, Place>::new();
    for ((_, home, siblings), vcpus) in groups {
        let (near, cores) = cores_for(ground, home.as_ref(), &taken, vcpus.len(), siblings)?;
        let choice = promise(&cores, vcpus.len(), siblings);
        for (vcpu, pick) in vcpus.iter().zip(&choice.picks) {
            let cpus = IdList::from_iter([choice.after.cpu(*pick)]);
            chosen.terms.entry(ThreadName::Vcpu(*vcpu)).or_default().cpus = Some(Cpus::List(cpus));
        }
        // All threads of a core: what is idle stays so.
        let own = choice.after.own(&choice.picks);
        taken.extend(own.iter());
        let place = places.entry(home).or_default();
        place.near.push(near);
        place.own.extend(own.iter());
    }
    let spare = |nodes: Option<&IdList>| spare(ground, nodes, &listed, &taken);
    let beside = |home: Option<IdList>| -> Vec<u16> {
        let candidates = match places.get(&home) {
            Some(Place { near, own }) => {
                vec![near.iter().flat_map(|nodes| spare(nodes.as_ref())).collect(), own.clone()]
            }
            // Nobody has to be on these nodes, which may have no CPU.
            None => vec![spare(home.as_ref()), spare(None), listed.clone()],
        };
        let all = || ground.cores_of(None).into_iter().flat_map(|core| core.cpus).collect();
        candidates.into_iter().find(|cpus| !cpus.is_empty()).unwrap_or_else(all)
    };
    for (name, terms) in &mut chosen.terms {
        if matches!(name, ThreadName::Vcpu(_)) || !matches!(terms.cpus, Some(Cpus::Auto(_))) {
            continue;
        }
        let served = if let ThreadName::Io(name) = name { served(name) } else { Vec::new() };
        let served = if served.is_empty() { &vcpus } else { &served };
        let homes: BTreeSet<Option<IdList>> = served.iter().map(|vcpu| home(*vcpu)).collect();
        terms.cpus = Some(Cpus::List(homes.into_iter().flat_map(beside).collect()));
    }
    Ok(chosen)
}

/// The CPUs of vCPUs that have a list.
fn listed_vcpus(placement: &ThreadPlacement) -> Vec<u16> {
    let vcpus = placement.terms.iter().filter(|(name, _)| matches!(name, ThreadName::Vcpu(_)));
    let lists = vcpus.filter_map(|(_, terms)| terms.cpus.as_ref()?.list());
    lists.flat_map(IdList::iter).collect()
}

/// What is promised to nobody on some nodes, or on all, and not isolated. A list keeps the siblings of its CPUs idle.
fn spare(ground: &Ground, nodes: Option<&IdList>, listed: &[u16], taken: &[u16]) -> Vec<u16> {
    let mut cores = free_cores(ground, nodes, listed, Siblings::Idle);
    cores.iter_mut().for_each(|core| core.cpus.retain(|cpu| !taken.contains(cpu)));
    cores.retain(|core| !core.cpus.is_empty());
    Cores::new(&cores, Overcommit::NONE).spare().iter().collect()
}

/// The cores of some nodes, or of all, without what is taken: whole cores for those who keep siblings idle.
fn free_cores(ground: &Ground, nodes: Option<&IdList>, taken: &[u16], siblings: Siblings) -> Vec<Core> {
    let mut cores = ground.cores_of(nodes);
    for core in &mut cores {
        let threads = core.cpus.len();
        core.cpus.retain(|cpu| !taken.contains(cpu));
        if siblings == Siblings::Idle && core.cpus.len() < threads {
            core.cpus.clear();
        }
    }
    cores.retain(|core| !core.cpus.is_empty());
    cores
}

fn promise(cores: &[Core], vcpus: usize, siblings: Siblings) -> Choice<'_> {
    Cores::new(cores, Overcommit::NONE).choose(u32::try_from(vcpus).unwrap_or(u32::MAX), siblings)
}

/// Cores that have room for so many vCPUs, and the nodes that they are on: their own; without any those of the first node
/// that has room, or of all.
fn cores_for(
    ground: &Ground,
    nodes: Option<&IdList>,
    taken: &[u16],
    vcpus: usize,
    siblings: Siblings,
) -> Result<(Option<IdList>, Vec<Core>), ThreadError> {
    let free = |nodes: Option<&IdList>| free_cores(ground, nodes, taken, siblings);
    let found = |cores: &[Core]| promise(cores, vcpus, siblings).picks.len();
    if nodes.is_none() {
        let alone = ground.node_ids().map(|id| IdList::from_iter([id])).map(|node| (free(Some(&node)), node));
        if let Some((cores, node)) = alone.into_iter().find(|(cores, _)| found(cores) == vcpus) {
            return Ok((Some(node), cores));
        }
    }
    let cores = free(nodes);
    match found(&cores) {
        all if all == vcpus => Ok((nodes.cloned(), cores)),
        found => Err(ThreadError::NoRoom {
            wanted: vcpus,
            unit: if siblings == Siblings::Idle { "core" } else { "CPU" },
            place: nodes.map_or_else(|| "the host".to_owned(), |nodes| format!("node {nodes}")),
            found,
            hint: if siblings == Siblings::Idle { ", or auto:shared" } else { "" },
        }),
    }
}

#[cfg(test)]
mod tests;
