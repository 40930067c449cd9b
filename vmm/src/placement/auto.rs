//! CPUs for threads that shall have some and do not say which. Pure: the host's cores are a value.

use std::collections::BTreeMap;

use super::threads::ThreadError;
use crate::config::{Cpus, Siblings, ThreadName, ThreadPlacement};
use crate::host::IdList;
use crate::plan::cores::{Choice, Cores};
use crate::plan::{Core, Ground, Overcommit};

/// `placement`, which has terms for each thread by its name, with a list in the place of each `auto`. `home` has the host's
/// nodes of a vCPU's memory, if that has some. The host is asked only where there is an `auto`.
///
/// # Errors
/// It has too few CPUs.
pub(crate) fn choose(
    placement: &ThreadPlacement,
    home: impl Fn(u8) -> Option<IdList>,
) -> Result<ThreadPlacement, ThreadError> {
    if !placement.terms.values().any(|terms| matches!(terms.cpus, Some(Cpus::Auto(_)))) {
        return Ok(placement.clone());
    }
    choose_on(&Ground::of_cpus()?, placement, home)
}

/// As [`choose`], on a host of this shape. vCPUs come first, node by node, isolated CPUs first among them, on no CPU of
/// another vCPU's list; the other threads share what is left there that is not isolated, or else the CPUs of the vCPUs' cores.
pub(crate) fn choose_on(
    ground: &Ground,
    placement: &ThreadPlacement,
    home: impl Fn(u8) -> Option<IdList>,
) -> Result<ThreadPlacement, ThreadError> {
    // Those that have the same home and the same siblings are placed together.
    let mut groups: BTreeMap<(Option<String>, Siblings), Vec<u8>> = BTreeMap::new();
    for (name, terms) in &placement.terms {
        if let (ThreadName::Vcpu(vcpu), Some(Cpus::Auto(siblings))) = (name, &terms.cpus) {
            groups.entry((home(*vcpu).map(|nodes| nodes.to_string()), *siblings)).or_default().push(*vcpu);
        }
    }
    let listed = listed_vcpus(placement);
    let mut chosen = placement.clone();
    let (mut taken, mut others) = (listed.clone(), Vec::<u16>::new());
    for ((_, siblings), vcpus) in &groups {
        let nodes = vcpus.first().and_then(|vcpu| home(*vcpu));
        let cores = cores_for(ground, nodes.as_ref(), &taken, vcpus.len(), *siblings)?;
        let choice = promise(&cores, vcpus.len(), *siblings);
        for (vcpu, pick) in vcpus.iter().zip(&choice.picks) {
            let cpus = IdList::from_iter([choice.after.cpu(*pick)]);
            chosen.terms.entry(ThreadName::Vcpu(*vcpu)).or_default().cpus = Some(Cpus::List(cpus));
        }
        let spare = choice.after.spare();
        let beside = if spare.is_empty() { choice.after.own(&choice.picks) } else { spare };
        others.extend(beside.iter());
        // All threads of a core: what is idle stays so.
        let promised = choice.after.own(&choice.picks);
        taken.extend(promised.iter());
    }
    if groups.is_empty() {
        others = beside_lists(ground, home(0).as_ref(), &listed);
    }
    let others: IdList = others.into_iter().collect();
    for (name, terms) in &mut chosen.terms {
        if !matches!(name, ThreadName::Vcpu(_)) && matches!(terms.cpus, Some(Cpus::Auto(_))) {
            terms.cpus = Some(Cpus::List(others.clone()));
        }
    }
    Ok(chosen)
}

/// The CPUs of vCPUs that have a list.
fn listed_vcpus(placement: &ThreadPlacement) -> Vec<u16> {
    let vcpus = placement.terms.iter().filter(|(name, _)| matches!(name, ThreadName::Vcpu(_)));
    let lists = vcpus.filter_map(|(_, terms)| terms.cpus.as_ref()?.list());
    lists.flat_map(IdList::iter).collect()
}

/// CPUs for the other threads where no vCPU is `auto`: what is spare on the memory's nodes, or else anywhere; or else the
/// vCPUs' own, or any.
fn beside_lists(ground: &Ground, home: Option<&IdList>, listed: &[u16]) -> Vec<u16> {
    let spare = |nodes: Option<&IdList>| -> Vec<u16> {
        let cores = free_cores(ground, nodes, listed, Siblings::Idle);
        Cores::new(&cores, Overcommit::NONE).spare().iter().collect()
    };
    let all = || ground.cores_of(None).into_iter().flat_map(|core| core.cpus).collect();
    [spare(home), spare(None), listed.to_vec()].into_iter().find(|cpus| !cpus.is_empty()).unwrap_or_else(all)
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

/// Cores that have room for so many vCPUs: those of their nodes; without nodes those of the first node that has, or of all.
fn cores_for(
    ground: &Ground,
    nodes: Option<&IdList>,
    taken: &[u16],
    vcpus: usize,
    siblings: Siblings,
) -> Result<Vec<Core>, ThreadError> {
    let free = |nodes: Option<&IdList>| free_cores(ground, nodes, taken, siblings);
    let found = |cores: &[Core]| promise(cores, vcpus, siblings).picks.len();
    if nodes.is_none() {
        let alone = ground.node_ids().map(|id| free(Some(&IdList::from_iter([id]))));
        if let Some(cores) = alone.into_iter().find(|cores| found(cores) == vcpus) {
            return Ok(cores);
        }
    }
    let cores = free(nodes);
    match found(&cores) {
        all if all == vcpus => Ok(cores),
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
