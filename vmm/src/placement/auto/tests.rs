use super::*;
use crate::config::{Priority, ThreadTerms};
use crate::host::sketch::{EPYC_NPS4, OFFLINE_CPUS, SINGLE, Sketch, TWO_SOCKETS, UNEVEN_NODES};

/// The CPUs of each thread: `asked` and `names` are words, `homes` the nodes of each vCPU's memory.
fn chosen(sketch: &Sketch, asked: &[(&str, &str)], names: &[&str], homes: &[&str]) -> Result<Vec<String>, String> {
    let ground = Ground::of(&sketch.facts()).unwrap();
    let name = |text: &&str| text.parse::<ThreadName>().unwrap();
    let terms = |cpus: &str| ThreadTerms { cpus: Some(cpus.parse().unwrap()), priority: None };
    let placement = ThreadPlacement {
        terms: asked.iter().map(|(thread, cpus)| (name(thread), terms(cpus))).collect(),
        ..ThreadPlacement::default()
    };
    let names: Vec<ThreadName> = names.iter().map(name).collect();
    let home = |vcpu: u8| homes.get(usize::from(vcpu)).map(|nodes| nodes.parse().unwrap());
    let own = names.iter().map(|name| (name.clone(), placement.of(name))).collect();
    let chosen = choose_on(&ground, &ThreadPlacement { terms: own, ..placement }, home, served);
    let chosen = chosen.map_err(|error| error.to_string())?;
    Ok(names.iter().map(|name| chosen.of(name).cpus.map_or_else(String::new, |cpus| cpus.to_string())).collect())
}

/// `io:disk0-N` works for vCPU N, others for all.
fn served(thread: &str) -> Vec<u8> {
    thread.strip_prefix("disk0-").map(|number| number.parse().unwrap()).into_iter().collect()
}

const FOUR: [&str; 4] = ["vcpu0", "vcpu1", "vcpu2", "vcpu3"];
const TWO_AND_IO: [&str; 4] = ["vcpu0", "vcpu1", "io:disk0", "api"];
const ALL: [(&str, &str); 3] = [("vcpu", "auto"), ("io", "auto"), ("api", "auto")];

#[test]
fn threads_get_cpus_of_their_memorys_node_isolated_ones_first_and_siblings_only_when_told() {
    let auto = [("vcpu", "auto")];
    let shared = [("vcpu", "auto:shared")];
    for (sketch, asked, names, homes, expected) in [
        // A core each: the siblings of 4 to 7 (36 to 39) stay idle.
        (&TWO_SOCKETS, &auto[..], FOUR, vec!["0"; 4], ["4", "5", "6", "7"]),
        (&TWO_SOCKETS, &shared, FOUR, vec!["0"; 4], ["4", "36", "5", "37"]),
        (&TWO_SOCKETS, &auto, FOUR, vec!["1"; 4], ["20", "21", "22", "23"]),
        // Guest nodes on both of the host's.
        (&TWO_SOCKETS, &auto, FOUR, vec!["0", "1", "0", "1"], ["4", "20", "5", "21"]),
        // Memory that is anywhere: the first node that has room.
        (&TWO_SOCKETS, &auto, FOUR, vec![], ["4", "5", "6", "7"]),
        (&EPYC_NPS4, &auto, FOUR, vec!["2"; 4], ["32", "33", "34", "35"]),
        (&SINGLE, &auto, FOUR, vec!["0"; 4], ["0", "1", "2", "3"]),
        // A list goes before.
        (&SINGLE, &[("vcpu", "auto"), ("vcpu3", "7")], FOUR, vec![], ["0", "1", "2", "7"]),
        (&TWO_SOCKETS, &ALL, TWO_AND_IO, vec!["0"; 2], ["4", "5", "0-3,32-35", "0-3,32-35"]),
        // The list of another vCPU is nobody else's, and its sibling is not either where cores are not shared.
        (&SINGLE, &[("vcpu", "auto"), ("vcpu0", "0")], FOUR, vec![], ["0", "1", "2", "3"]),
        (&TWO_SOCKETS, &[("vcpu", "auto"), ("vcpu0", "36")], FOUR, vec!["0"; 4], ["36", "5", "6", "7"]),
        (&TWO_SOCKETS, &[("vcpu", "auto:shared"), ("vcpu0", "36")], FOUR, vec!["0"; 4], ["36", "4", "5", "37"]),
        // Nobody's CPUs are left of the vCPUs' own node but those that are not promised.
        (&SINGLE, &ALL, TWO_AND_IO, vec![], ["0", "1", "2-7", "2-7"]),
        // The threads of others alone.
        (&TWO_SOCKETS, &[("io", "auto")], TWO_AND_IO, vec!["1"; 2], ["", "", "16-19,48-51", ""]),
        // Beside vCPUs that have lists, and where their memory's node has no CPUs.
        (&SINGLE, &[("io", "auto"), ("vcpu", "0-3")], TWO_AND_IO, vec![], ["0-3", "0-3", "4-7", ""]),
        (&SINGLE, &[("io", "auto"), ("vcpu", "0-7")], TWO_AND_IO, vec![], ["0-7", "0-7", "0-7", ""]),
        (&UNEVEN_NODES, &[("io", "auto"), ("vcpu", "0")], TWO_AND_IO, vec!["2"; 2], ["0", "0", "1-7", ""]),
    ] {
        let found = chosen(sketch, asked, &names, &homes).unwrap();
        assert_eq!(found, expected, "{asked:?} {homes:?}");
    }
}

#[test]
fn an_io_thread_is_near_the_memory_of_those_that_it_works_for() {
    let names = ["vcpu0", "vcpu1", "io:disk0-0", "io:disk0-1", "io:net0", "main"];
    let (auto, lists) = ([ALL[0], ALL[1], ("main", "auto")], [ALL[1], ("vcpu0", "4"), ("vcpu1", "20")]);
    let both = "0-3,16-19,32-35,48-51";
    for (asked, expected) in [
        (auto, ["4", "20", "0-3,32-35", "16-19,48-51", both, both]),
        (lists, ["4", "20", "0-3,32-35", "16-19,48-51", both, ""]),
    ] {
        assert_eq!(chosen(&TWO_SOCKETS, &asked, &names, &["0", "1"]).unwrap(), expected, "{asked:?}");
    }
}

#[test]
fn what_is_spare_is_what_no_vcpu_of_any_kind_has() {
    let asked = [("vcpu0", "auto"), ("vcpu1", "auto:shared"), ("io", "auto")];
    let found = chosen(&SINGLE, &asked, &["vcpu0", "vcpu1", "io:net0"], &[]).unwrap();
    assert_eq!(found, ["0", "1", "2-7"]);
}

#[test]
fn threads_share_the_vcpus_own_cores_where_nothing_is_spare() {
    let names = ["vcpu0", "vcpu1", "vcpu2", "vcpu3", "vcpu4", "vcpu5", "vcpu6", "vcpu7", "io:disk0"];
    let found = chosen(&SINGLE, &ALL[..2], &names, &[]).unwrap();
    assert_eq!(found.last().unwrap(), "0-7");
}

/// 12 isolated cores and 4 others on each of two nodes.
#[test]
fn vcpus_that_have_the_least_choice_of_nodes_choose_first() {
    let names: Vec<String> = (0..20).map(|vcpu| format!("vcpu{vcpu}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (wide, narrow) in [(None, "0"), (Some("0-1"), "0"), (Some("0-1"), "1")] {
        // Those of the second half may be anywhere, or on both.
        let homes: Vec<&str> = [narrow; 10].into_iter().chain(wide.into_iter().flat_map(|nodes| [nodes; 10])).collect();
        let found = chosen(&TWO_SOCKETS, &[("vcpu", "auto")], &names, &homes);
        assert!(found.is_ok(), "{wide:?} {narrow}: {found:?}");
    }
}

#[test]
fn too_few_cpus_are_named_with_what_would_do() {
    let five = ["vcpu0", "vcpu1", "vcpu2", "vcpu3", "vcpu4"];
    let refused = |sketch, asked: &str, homes: &[&str]| chosen(sketch, &[("vcpu", asked)], &five, homes).unwrap_err();
    assert_eq!(
        refused(&OFFLINE_CPUS, "auto", &[]).as_str(),
        "threads: cpus=auto: 5 vCPUs need a core each, and the host has 4 for them: use fewer, or auto:shared"
    );
    let bare = "threads: cpus=auto: 5 vCPUs need a CPU each, and node 2 has 0 for them: use fewer";
    assert_eq!(refused(&UNEVEN_NODES, "auto:shared", &["2"; 5]), bare);
}

#[test]
fn priorities_stay_beside_the_cpus_that_are_chosen() {
    let ground = Ground::of(&SINGLE.facts()).unwrap();
    let terms = ThreadTerms { cpus: Some(Cpus::Auto(Siblings::Idle)), priority: Some(Priority::Fifo(3)) };
    let placement = ThreadPlacement { terms: [(ThreadName::Vcpu(0), terms)].into(), ..ThreadPlacement::default() };
    let chosen = choose_on(&ground, &placement, |_| None, served).unwrap();
    let list = Cpus::List(IdList::from_iter([0]));
    assert_eq!(chosen.of(&ThreadName::Vcpu(0)), ThreadTerms { cpus: Some(list), priority: Some(Priority::Fifo(3)) });
    assert_eq!(chosen.of(&ThreadName::Main), ThreadTerms::default());
}
