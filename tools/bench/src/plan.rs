//! `tools/dev bench plan`: what it takes to plan 500 VMs on a host of four nodes, from exec to exit, the reading of their
//! files included.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

use crate::report::Row;
use crate::stats::median;
use crate::{BenchError, Wanted};

const VMS: u64 = 500;
const ROUNDS: usize = 11;
const NODES: u64 = 4;
/// Two threads a core: CPU `n` and CPU `n + 256`.
const CORES_PER_NODE: u64 = 64;

/// Name, ratio and exit code. All fit; some are left out, and what would mend it is looked for.
const ROWS: [(&str, &str, i32); 2] = [("plan-500-vms", "6.0", 0), ("plan-500-vms-left-out", "4.0", 1)];

pub(crate) fn run(wanted: &Wanted) -> Result<Vec<Row>, BenchError> {
    let scene =
        Scene::make().map_err(|source| BenchError::Proc { path: Scene::folder().display().to_string(), source })?;
    let rows = ROWS.iter().filter(|(name, ..)| wanted.has(name));
    rows.map(|(name, overcommit, code)| {
        let times = (0..ROUNDS).map(|_| scene.time(overcommit, *code)).collect::<Result<Vec<f64>, BenchError>>()?;
        Ok(Row::less_is_better(*name, "ms", median(times), None, None))
    })
    .collect()
}

/// The files, gone again when dropped.
struct Scene {
    vms: Vec<PathBuf>,
    host: PathBuf,
}

impl Scene {
    fn folder() -> PathBuf {
        std::env::temp_dir().join(format!("husk-bench-plan-{}", std::process::id()))
    }

    fn make() -> std::io::Result<Self> {
        let folder = Self::folder();
        fs::create_dir_all(&folder)?;
        let host = folder.join("host.json");
        let scene = Self { vms: (0..VMS).map(|vm| folder.join(format!("vm{vm}.json"))).collect(), host };
        fs::write(&scene.host, host_document().to_string())?;
        for (path, vm) in scene.vms.iter().zip(0..) {
            fs::write(path, vm_document(vm).to_string())?;
        }
        Ok(scene)
    }

    /// One run, in milliseconds.
    fn time(&self, overcommit: &str, code: i32) -> Result<f64, BenchError> {
        let program = std::env::var("HUSK_BENCH_HUSK").unwrap_or_else(|_| "target/release/husk".to_owned());
        if !Path::new(&program).exists() {
            return Err(BenchError::Missing { what: "husk", path: program });
        }
        let mut command = Command::new(&program);
        command.args(["plan", "--json", "--overcommit", overcommit, "--host"]).arg(&self.host);
        self.vms.iter().for_each(|vm| {
            command.arg("--vm").arg(vm);
        });
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let status = command.status().and_then(|status| match status.code() {
            Some(ended) if ended == code => Ok(()),
            _ => Err(std::io::Error::other(format!("it ended with {status}, not {code}"))),
        });
        let took = began.elapsed();
        status.map_err(|source| BenchError::Start { program, source })?;
        Ok(took.as_secs_f64() * 1000.0)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(Self::folder());
    }
}

/// One to four vCPUs, half of the VMs on 2 MiB pages.
fn vm_document(vm: u64) -> Value {
    let huge_pages = if vm.is_multiple_of(2) { "2M" } else { "None" };
    json!({
        "boot-source": { "kernel_image_path": "/vmlinux" },
        "machine-config": { "vcpu_count": 1 + vm % 4, "mem_size_mib": 512 + 256 * (vm % 3), "huge_pages": huge_pages },
    })
}

/// Four nodes of 64 cores with two threads, 512 GiB and 256 GiB of 2 MiB pages each.
fn host_document() -> Value {
    let cores = NODES * CORES_PER_NODE;
    let pool = |pages: u64| {
        json!({
            "page_bytes": 2 << 20, "total": pages, "free": pages, "reserved": 0, "surplus": 0, "overcommit": 0
        })
    };
    let node = |node: u64| {
        let first = node * CORES_PER_NODE;
        let last = first + CORES_PER_NODE - 1;
        let distances: serde_json::Map<String, Value> =
            (0..NODES).map(|other| (other.to_string(), json!(if other == node { 10 } else { 12 }))).collect();
        json!({
            "id": node, "cpus": format!("{first}-{last},{}-{}", first + cores, last + cores),
            "total_bytes": 512u64 << 30, "free_bytes": 256u64 << 30, "file_cache_bytes": 0,
            "distances": distances, "pools": [pool(128 << 10)],
        })
    };
    let l3 = |cache: u64| format!("{}-{},{}-{}", cache * 8, cache * 8 + 7, cache * 8 + cores, cache * 8 + 7 + cores);
    json!({ "facts": {
        "cpu": {
            "online": format!("0-{}", 2 * cores - 1), "isolated": "",
            "cores": (0..cores).map(|core| format!("{core},{}", core + cores)).collect::<Vec<_>>(),
            "l3": (0..cores / 8).map(l3).collect::<Vec<_>>(),
            "nodes": (0..NODES).map(node).collect::<Vec<_>>(),
        },
        "memory": { "available_bytes": 1u64 << 40, "pools": [pool(512 << 10)] },
        "limits": { "cpuset_cpus": null, "cpuset_mems": null },
    } })
}
