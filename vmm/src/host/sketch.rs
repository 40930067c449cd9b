//! Hosts drawn by their shape, as the files that their kernels would have: what a recording of hundreds of files would
//! say, in a few lines.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::facts::Facts;
use super::id_list::IdList;
use super::tests::all_works;
use super::tree::Tree;

/// A host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sketch {
    pub(crate) nodes: &'static [NodeSketch],
    pub(crate) present: &'static str,
    pub(crate) online: &'static str,
    pub(crate) isolated: &'static str,
    /// CPU `n` and CPU `n + sibling_offset` are one core; 0 where a core has one thread.
    pub(crate) sibling_offset: u16,
    /// CPUs of each last-level cache.
    pub(crate) l3: &'static [&'static str],
}

/// A node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NodeSketch {
    pub(crate) cpus: &'static str,
    pub(crate) total_mib: u64,
    pub(crate) free_mib: u64,
    pub(crate) distances: &'static str,
    /// KiB of a page, pages, free pages.
    pub(crate) pools: &'static [(u64, u64, u64)],
}

const GIB: u64 = 1024;
const KIB_1G: u64 = 1 << 20;
const KIB_2M: u64 = 2 << 10;

/// Two sockets of 16 cores with two threads each; 1 GiB pages on both, 2 MiB pages on the first.
pub(crate) const TWO_SOCKETS: Sketch = Sketch {
    nodes: &[
        NodeSketch {
            cpus: "0-15,32-47",
            total_mib: 256 * GIB,
            free_mib: 96 * GIB,
            distances: "10 21",
            pools: &[(KIB_2M, 8192, 8192), (KIB_1G, 128, 100)],
        },
        NodeSketch {
            cpus: "16-31,48-63",
            total_mib: 256 * GIB,
            free_mib: 120 * GIB,
            distances: "21 10",
            pools: &[(KIB_2M, 0, 0), (KIB_1G, 128, 128)],
        },
    ],
    present: "0-63",
    online: "0-63",
    isolated: "4-15,20-31,36-47,52-63",
    sibling_offset: 32,
    l3: &["0-15,32-47", "16-31,48-63"],
};

/// A 64-core EPYC set to four nodes a socket: two caches of 8 cores on each node.
pub(crate) const EPYC_NPS4: Sketch = Sketch {
    nodes: &[
        nps4_node("0-15,64-79", "10 12 12 12"),
        nps4_node("16-31,80-95", "12 10 12 12"),
        nps4_node("32-47,96-111", "12 12 10 12"),
        nps4_node("48-63,112-127", "12 12 12 10"),
    ],
    present: "0-127",
    online: "0-127",
    isolated: "",
    sibling_offset: 64,
    l3: &[
        "0-7,64-71",
        "8-15,72-79",
        "16-23,80-87",
        "24-31,88-95",
        "32-39,96-103",
        "40-47,104-111",
        "48-55,112-119",
        "56-63,120-127",
    ],
};

const fn nps4_node(cpus: &'static str, distances: &'static str) -> NodeSketch {
    let (total_mib, free_mib) = (128 * GIB, 124 * GIB);
    NodeSketch { cpus, total_mib, free_mib, distances, pools: &[(KIB_2M, 32768, 32768), (KIB_1G, 0, 0)] }
}

/// One node of eight CPUs without SMT.
pub(crate) const SINGLE: Sketch = Sketch {
    nodes: &[NodeSketch {
        cpus: "0-7",
        total_mib: 32 * GIB,
        free_mib: 24 * GIB,
        distances: "10",
        pools: &[(KIB_2M, 1024, 1024)],
    }],
    present: "0-7",
    online: "0-7",
    isolated: "",
    sibling_offset: 0,
    l3: &["0-7"],
};

/// The second threads of some cores, and all of others, are offline.
pub(crate) const OFFLINE_CPUS: Sketch = Sketch {
    nodes: &[NodeSketch { cpus: "0-2,4,8-9", distances: "10", ..SINGLE.nodes[0] }],
    present: "0-15",
    online: "0-2,4,8-9",
    isolated: "",
    sibling_offset: 8,
    l3: &["0-3,8-11", "4-7,12-15"],
};

/// Node 1 has CPUs and no memory; node 2 memory and no CPUs.
pub(crate) const UNEVEN_NODES: Sketch = Sketch {
    nodes: &[
        NodeSketch { cpus: "0-3", total_mib: 32 * GIB, free_mib: 16 * GIB, distances: "10 20 30", pools: &[] },
        NodeSketch { cpus: "4-7", total_mib: 0, free_mib: 0, distances: "20 10 40", pools: &[] },
        NodeSketch { cpus: "", total_mib: 64 * GIB, free_mib: 64 * GIB, distances: "30 40 10", pools: &[] },
    ],
    present: "0-7",
    online: "0-7",
    isolated: "",
    sibling_offset: 0,
    l3: &["0-3", "4-7"],
};

/// Files below a root that is gone with the first of the two. A content that begins with `-> ` is a link.
pub(super) fn record(files: impl IntoIterator<Item = (impl AsRef<str>, impl AsRef<[u8]>)>) -> (TempDir, Tree) {
    // In memory: a host is a thousand small files.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    for (path, content) in files {
        let path = folder.path().join(path.as_ref());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.as_ref().strip_prefix(b"-> ") {
            Some(target) => symlink(std::str::from_utf8(target).unwrap().trim(), path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    let tree = Tree::at(folder.path());
    (folder, tree)
}

impl Sketch {
    /// What husk finds there.
    pub(crate) fn facts(&self) -> Facts {
        self.recorded(&[]).1
    }

    /// Its files and some more, for as long as the folder is there, and what husk finds in them.
    pub(crate) fn recorded(&self, more: &[(&str, &str)]) -> (TempDir, Facts) {
        let more = more.iter().map(|&(path, content)| (path.to_owned(), content.to_owned()));
        let (folder, tree) = record(self.files().into_iter().chain(more));
        (folder, Facts::from_parts(&tree, all_works(), Vec::new(), &[]).unwrap())
    }

    pub(super) fn files(&self) -> Vec<(String, String)> {
        let mut files = Vec::new();
        let mut file = |path: String, content: String| files.push((path, format!("{content}\n")));
        let cpus = "sys/devices/system/cpu";
        for (name, list) in [("present", self.present), ("online", self.online), ("isolated", self.isolated)] {
            file(format!("{cpus}/{name}"), list.to_owned());
        }
        for cpu in list(self.online).iter() {
            let folder = format!("{cpus}/cpu{cpu}");
            // As the kernel does, only threads that are online.
            let first = if self.sibling_offset == 0 { cpu } else { cpu % self.sibling_offset };
            let core: IdList = [first, first + self.sibling_offset].into_iter().collect();
            file(format!("{folder}/topology/core_cpus_list"), core.and(&list(self.online)).to_string());
            let l3 = self.l3.iter().map(|cpus| list(cpus)).find(|cpus| cpus.contains(cpu)).unwrap();
            for (index, level, shared) in [(0, 1, &core), (1, 1, &core), (2, 2, &core), (3, 3, &l3)] {
                file(format!("{folder}/cache/index{index}/level"), level.to_string());
                file(
                    format!("{folder}/cache/index{index}/shared_cpu_list"),
                    shared.and(&list(self.online)).to_string(),
                );
            }
        }
        file("sys/devices/system/node/online".to_owned(), format!("0-{}", self.nodes.len() - 1));
        for (id, node) in self.nodes.iter().enumerate() {
            node.files(id, &mut file);
        }
        let mut pools = BTreeMap::<u64, (u64, u64)>::new();
        for (kib, total, free) in self.nodes.iter().flat_map(|node| node.pools) {
            let pool = pools.entry(*kib).or_default();
            *pool = (pool.0 + total, pool.1 + free);
        }
        for (kib, (total, free)) in pools {
            for (name, pages) in [("nr_hugepages", total), ("free_hugepages", free), ("resv_hugepages", 0)] {
                file(format!("sys/kernel/mm/hugepages/hugepages-{kib}kB/{name}"), pages.to_string());
            }
        }
        files
    }
}

impl NodeSketch {
    fn files(&self, id: usize, file: &mut impl FnMut(String, String)) {
        let folder = format!("sys/devices/system/node/node{id}");
        file(format!("{folder}/cpulist"), self.cpus.to_owned());
        file(format!("{folder}/distance"), self.distances.to_owned());
        let (total, free) = (self.total_mib * 1024, self.free_mib * 1024);
        let meminfo = format!("Node {id} MemTotal: {total} kB\nNode {id} MemFree: {free} kB\n");
        file(format!("{folder}/meminfo"), meminfo);
        for (kib, total, free) in self.pools {
            for (name, pages) in [("nr_hugepages", total), ("free_hugepages", free), ("surplus_hugepages", &0)] {
                file(format!("{folder}/hugepages/hugepages-{kib}kB/{name}"), pages.to_string());
            }
        }
    }
}

fn list(text: &str) -> IdList {
    text.parse().unwrap()
}
