//! `husk plan`: where VMs would fit on this host, or on one recorded with `husk host --json`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use thiserror::Error;
use vmm::config::firecracker::{BodyError, read_text};
use vmm::host::{Asked, AskedError, Facts};
use vmm::plan::{
    Ground, GroundError, Miss, NodePlan, Overcommit, Part, Plan, Siblings, VmDemand, VmPlan, WriteError, plan,
    with_placement,
};

use super::RunError;
use crate::exit::ExitStatus;

/// Arguments of `husk plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// A VM's configuration file; `,siblings=shared` lets its vCPUs run on all threads of a core. Give one for each VM.
    #[arg(long = "vm", value_name = "FILE[,siblings=shared|idle]", required = true)]
    vms: Vec<VmArg>,
    /// Plan for the host that printed this file (husk host --json), not for this one.
    #[arg(long, value_name = "FILE")]
    host: Option<PathBuf>,
    /// How many vCPUs may be promised for each CPU, 1 to 64.
    #[arg(long, value_name = "RATIO", default_value = "1.0")]
    overcommit: Overcommit,
    /// Put the placement into the VMs' files, if all of them fit.
    #[arg(long)]
    write: bool,
    /// Print one JSON object, `{"vms": [...], "nodes": [...], "mend": [...]}`, in place of the tables.
    #[arg(long)]
    json: bool,
}

/// A VM's file and how it is planned.
#[derive(Debug, Clone)]
struct VmArg {
    path: PathBuf,
    siblings: Siblings,
}

/// What keeps a plan from being made, or written.
#[derive(Debug, Error)]
pub(crate) enum PlanError {
    /// A file that cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// A VM's file that tells of no VM.
    #[error("VM {}", path.display())]
    Vm {
        /// Its path.
        path: PathBuf,
        /// Which field, and why.
        source: BodyError,
    },
    /// The same file twice.
    #[error("VM {}: named twice: give each VM its own file", path.display())]
    Twice {
        /// Its path.
        path: PathBuf,
    },
    /// A description of a host that is none.
    #[error("host {}", path.display())]
    Host {
        /// Where it is from.
        path: PathBuf,
        /// What is wrong.
        source: GroundError,
    },
    /// This host cannot be described.
    #[error(transparent)]
    Asked(#[from] AskedError),
    /// A file that takes no placement.
    #[error("VM {}", path.display())]
    Place {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
    /// A file that cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Its path.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The plan cannot be printed.
    #[error("cannot print the plan")]
    Print(#[source] io::Error),
}

impl std::str::FromStr for VmArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, siblings) = match text.rsplit_once(",siblings=") {
            None => (text, Siblings::Idle),
            Some((path, "idle")) => (path, Siblings::Idle),
            Some((path, "shared")) => (path, Siblings::Shared),
            Some((_, other)) => return Err(format!("siblings=`{other}`: use shared or idle")),
        };
        Ok(Self { path: PathBuf::from(path), siblings })
    }
}

impl PlanArgs {
    /// Success says that all VMs fit.
    pub(super) fn run(self) -> Result<ExitStatus, RunError> {
        Ok(self.plan()?)
    }

    fn plan(self) -> Result<ExitStatus, PlanError> {
        let (texts, demands) = read_vms(&self.vms)?;
        let ground = read_host(self.host.as_deref())?;
        let plan = plan(&ground, &demands, self.overcommit);
        let left_out = plan.vms.iter().filter(|vm| vm.parts.is_empty()).count();
        if self.write && left_out == 0 {
            write_files(&self.vms, &texts, &plan)?;
        }
        let text = if self.json { json(&plan) } else { table(&plan) };
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            // Who reads only the first lines (`husk plan ... | head`) has what they want.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            printed => printed.map_err(PlanError::Print)?,
        }
        if left_out == 0 {
            return Ok(ExitStatus::Success);
        }
        let written = if self.write { ", nothing is written" } else { "" };
        let lacks = plan.mend.first().map(|mend| format!(": lacks {}: {}", mend.lacks, mend.fix)).unwrap_or_default();
        eprintln!("husk: {left_out} of {} VMs do not fit{written}{lacks}", plan.vms.len());
        Ok(ExitStatus::Failure)
    }
}

fn read(path: &Path) -> Result<String, PlanError> {
    read_text(path).map_err(|source| PlanError::Read { path: path.to_owned(), source })
}

fn read_vms(vms: &[VmArg]) -> Result<(Vec<String>, Vec<VmDemand>), PlanError> {
    let mut seen = BTreeSet::new();
    let (mut texts, mut demands) = (Vec::new(), Vec::new());
    for VmArg { path, siblings } in vms {
        let text = read(path)?;
        let place = fs::canonicalize(path).map_err(|source| PlanError::Read { path: path.clone(), source })?;
        if !seen.insert(place) {
            return Err(PlanError::Twice { path: path.clone() });
        }
        let demand = VmDemand::parse(&path.display().to_string(), &text, *siblings);
        demands.push(demand.map_err(|source| PlanError::Vm { path: path.clone(), source })?);
        texts.push(text);
    }
    Ok((texts, demands))
}

fn read_host(path: Option<&Path>) -> Result<Ground, PlanError> {
    let ground = match path {
        Some(path) => Ground::parse(&read(path)?),
        None => Ground::of(&Facts::read(&Asked::default())?),
    };
    ground.map_err(|source| PlanError::Host { path: path.unwrap_or(Path::new("/sys")).to_owned(), source })
}

/// Puts each VM's placement into its file: all new files are made before the first takes an old one's place.
fn write_files(vms: &[VmArg], texts: &[String], plan: &Plan) -> Result<(), PlanError> {
    let mut made = Vec::with_capacity(vms.len());
    for ((VmArg { path, .. }, text), vm) in vms.iter().zip(texts).zip(&plan.vms) {
        let placed = with_placement(text, vm).map_err(|source| PlanError::Place { path: path.clone(), source });
        let new = placed.and_then(|text| Replacement::make(path, &text));
        made.push(new?);
    }
    made.into_iter().try_for_each(Replacement::put)
}

/// A new file beside the one whose place it takes; it is gone if it never does.
struct Replacement {
    path: PathBuf,
    beside: PathBuf,
}

impl Replacement {
    fn make(path: &Path, text: &str) -> Result<Self, PlanError> {
        let failed = |source| PlanError::Write { path: path.to_owned(), source };
        // A link stays one: what it leads to is replaced.
        let path = fs::canonicalize(path).map_err(failed)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let new = Self { beside: path.with_file_name(name), path };
        let mode = fs::metadata(&new.path).map_err(failed)?.permissions();
        let mut file = File::create_new(&new.beside).map_err(failed)?;
        let filled =
            file.set_permissions(mode).and_then(|()| file.write_all(text.as_bytes())).and_then(|()| file.sync_all());
        filled.map_err(failed)?;
        Ok(new)
    }

    fn put(self) -> Result<(), PlanError> {
        fs::rename(&self.beside, &self.path).map_err(|source| PlanError::Write { path: self.path.clone(), source })
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After `put` there is none.
        let _ = fs::remove_file(&self.beside);
    }
}

fn json(plan: &Plan) -> String {
    let mut text = serde_json::to_string_pretty(plan).expect("a plan holds nothing that JSON cannot");
    text.push('\n');
    text
}

fn table(plan: &Plan) -> String {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{}", line.trim_end()).expect("a String takes every write");
    let width = plan.vms.iter().map(|vm| vm.vm.chars().count()).max().unwrap_or(0).max(2);
    line(format!("{:width$}  node  {:20}  {:24}  {:16}  CPU time", "VM", "vCPUs on CPUs", "memory", "I/O on CPUs"));
    for vm in &plan.vms {
        vm_lines(vm, width).into_iter().for_each(&mut line);
    }
    line(format!(
        "\n{:>4}  {:>5}  {:>5}  {:>10}  {:>8}  memory promised, left",
        "node", "CPUs", "vCPUs", "overcommit", "CPU time"
    ));
    for node in &plan.nodes {
        line(node_line(node));
    }
    for mend in &plan.mend {
        let node = mend.node.map(|node| format!("node {node} ")).unwrap_or_default();
        line(format!("\n{node}lacks {}\n  fix: {}", mend.lacks, mend.fix));
    }
    text
}

fn vm_lines(vm: &VmPlan, width: usize) -> Vec<String> {
    if vm.parts.is_empty() {
        let lacks = vm.misses.iter().map(lack).collect::<Vec<_>>().join("; ");
        return vec![format!("{:width$}  does not fit: {lacks}", vm.vm)];
    }
    let time = vm.cpu_time.map(percent).unwrap_or_default();
    let part = |(index, part): (usize, &Part)| {
        let (name, io, time) =
            if index == 0 { (vm.vm.as_str(), vm.io_cpus.to_string(), time.as_str()) } else { ("", String::new(), "") };
        let cpus = part.cpus.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let mib = part.memory_bytes >> 20;
        let memory = match part.page_bytes {
            Some(page) => format!("{mib} MiB: {} x {} MiB", part.pages, page >> 20),
            None => format!("{mib} MiB"),
        };
        format!("{name:width$}  {:4}  {cpus:20}  {memory:24}  {io:16}  {time}", part.node)
    };
    let grows = (vm.may_grow_bytes > 0).then(|| {
        format!("{:width$}        may grow by {} MiB, which nobody has promised", "", vm.may_grow_bytes >> 20)
    });
    vm.parts.iter().enumerate().map(part).chain(grows).collect()
}

fn lack(miss: &Miss) -> String {
    let mut lacks = Vec::new();
    if miss.vcpus > 0 {
        lacks.push(format!("{} CPUs", miss.vcpus));
    }
    if miss.memory_bytes > 0 {
        lacks.push(format!("{} MiB", miss.memory_bytes.div_ceil(1 << 20)));
    }
    if let Some(page) = miss.page_bytes.filter(|_| miss.pages > 0) {
        lacks.push(format!("{} pages of {} MiB", miss.pages, page >> 20));
    }
    format!("node {} lacks {}", miss.node, lacks.join(", "))
}

fn node_line(node: &NodePlan) -> String {
    let NodePlan { node: id, cpus, vcpus, overcommit, cpu_time, memory_bytes, memory_left_bytes, pools } = node;
    let mut memory = format!("{} MiB, {} MiB", memory_bytes >> 20, memory_left_bytes >> 20);
    for pool in pools {
        write!(memory, "; {} MiB pages: {}, {}", pool.page_bytes >> 20, pool.pages, pool.pages_left)
            .expect("a String takes every write");
    }
    format!("{id:4}  {cpus:5}  {vcpus:5}  {overcommit:10.3}  {:>8}  {memory}", percent(*cpu_time))
}

fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}
