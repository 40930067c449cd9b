//! `husk snapshot`: snapshots as they lie on disk, without a VM.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use thiserror::Error;
use vmm::epoch::shelf::{self, DropError};
use vmm::epoch::{Digest, FileError, Point, PointError, PointFiles, PointId, SectionHead, StateError, StateHeader};

use super::RunError;
use crate::exit::{self, ExitStatus};
use crate::logging;

/// Arguments of `husk snapshot`.
#[derive(Debug, Args)]
pub(super) struct SnapshotArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// List the snapshots in a folder: id, parent, time, memory, pages and bytes on disk of their own.
    #[command(after_help = "Example: husk snapshot list /var/lib/husk/vm1")]
    List {
        /// A folder of snapshots, or a snapshot's own.
        #[arg(value_name = "DIR", required = true)]
        folders: Vec<PathBuf>,
        /// Print one JSON object, `{"points": [...]}`, in place of the table.
        #[arg(long)]
        json: bool,
    },
    /// Show what a snapshot is: its header, the parts of its state, the layers of its memory.
    #[command(after_help = "Example: husk snapshot inspect /var/lib/husk/vm1/monday --json")]
    Inspect(Points),
    /// Read a snapshot whole, its parents' memory too, and hold every byte against its hash.
    #[command(after_help = "Example: husk snapshot verify vm.state --memory vm.mem")]
    Verify(Points),
    /// Remove a snapshot's folder. The snapshots that are based on it keep what they need.
    #[command(after_help = "Example: husk snapshot drop /var/lib/husk/vm1/monday")]
    Drop {
        /// A snapshot's folder.
        #[arg(value_name = "DIR", required = true)]
        folders: Vec<PathBuf>,
        /// Print one JSON object, `{"points": [...]}`, in place of the lines.
        #[arg(long)]
        json: bool,
    },
}

/// Snapshots that are looked at.
#[derive(Debug, Args)]
struct Points {
    /// A snapshot's folder, or its state file.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// The memory file that belongs to the state file.
    #[arg(long, value_name = "FILE")]
    memory: Option<PathBuf>,
    /// Print one JSON object, `{"points": [...]}`, in place of the text.
    #[arg(long)]
    json: bool,
}

/// What is wrong with a snapshot.
#[derive(Debug, Error)]
pub(crate) enum SnapshotError {
    /// Its state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its memory.
    #[error(transparent)]
    Point(#[from] PointError),
    /// A folder of snapshots.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not to be dropped.
    #[error(transparent)]
    Drop(#[from] DropError),
    /// A folder without one.
    #[error("there is no snapshot in {}", path.display())]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// A state file alone.
    #[error("state file {}: its memory file is not known: name it with --memory", path.display())]
    NoMemory {
        /// The state file.
        path: PathBuf,
    },
}

/// What is told of one snapshot: for people, and for programs.
struct Told {
    text: String,
    json: Value,
}

impl SnapshotArgs {
    /// Success says that every snapshot asked for is as it should be.
    pub(super) fn run(self) -> Result<ExitStatus, RunError> {
        match self.verb {
            Verb::List { folders, json } => list(&folders, json),
            Verb::Inspect(points) => points.each(inspect),
            Verb::Verify(points) => points.each(verify),
            Verb::Drop { folders, json } => each(&folders, json, "", drop_one),
        }
    }
}

impl Points {
    fn each(self, tell: fn(&Files) -> Result<Told, SnapshotError>) -> Result<ExitStatus, RunError> {
        let Self { paths, memory, json } = self;
        each(&paths, json, "", |path| tell(&Files::at(path, memory.as_deref())))
    }
}

/// The files of a snapshot, as far as they are known.
struct Files {
    state: PathBuf,
    memory: Option<PathBuf>,
}

impl Files {
    fn at(path: &Path, memory: Option<&Path>) -> Self {
        if path.is_dir() {
            let PointFiles { state, memory: own, .. } = PointFiles::in_folder(path);
            Self { state, memory: Some(memory.map_or(own, Path::to_owned)) }
        } else {
            Self { state: path.to_owned(), memory: memory.map(Path::to_owned) }
        }
    }
}

/// Tells of each path. What is wrong with one is said on standard error and does not keep the others from being told.
fn each(
    paths: &[PathBuf],
    as_json: bool,
    heading: &str,
    tell: impl Fn(&Path) -> Result<Told, SnapshotError>,
) -> Result<ExitStatus, RunError> {
    let mut status = ExitStatus::Success;
    let mut points = Vec::with_capacity(paths.len());
    let mut out = io::stdout().lock();
    let mut print = |text: &str| match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Who reads only the first lines has what they want.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.map_err(|source| RunError::Host { what: "print", source }),
    };
    if !as_json {
        print(heading)?;
    }
    for path in paths {
        match tell(path) {
            Ok(told) if as_json => points.push(told.json),
            Ok(told) => print(&told.text)?,
            Err(error) => {
                let why = exit::describe(&error);
                exit::say(&why);
                status = ExitStatus::Failure;
                points.push(json!({ "path": path, "error": why }));
            }
        }
    }
    if as_json {
        let mut text = serde_json::to_string_pretty(&json!({ "points": points })).expect("a value is JSON");
        text.push('\n');
        print(&text)?;
    }
    Ok(status)
}

fn list(folders: &[PathBuf], json: bool) -> Result<ExitStatus, RunError> {
    let mut found = Vec::new();
    let mut status = ExitStatus::Success;
    for folder in folders {
        let points = shelf::points_in(folder).map_err(SnapshotError::from)?;
        if points.is_empty() {
            exit::say(&exit::describe(&SnapshotError::Nothing { path: folder.clone() }));
            status = ExitStatus::Failure;
        }
        found.extend(points.into_iter().filter_map(|files| files.state.parent().map(Path::to_owned)));
    }
    let heading = format!(
        "{:12}  {:12}  {:20}  {:>9}  {:>9}  {:>9}  {:>6}  SNAPSHOT\n",
        "ID", "PARENT", "CREATED", "MEMORY", "PAGES", "ON DISK", "LAYERS"
    );
    let listed = each(&found, json, &heading, |folder| row(folder, &Files::at(folder, None)))?;
    Ok(if status == ExitStatus::Success { listed } else { status })
}

fn row(folder: &Path, files: &Files) -> Result<Told, SnapshotError> {
    let (header, _, point) = open(files)?;
    let layers = point.layer_facts()?;
    let own = &layers[0];
    let text = format!(
        "{}  {:12}  {:20}  {:>9}  {:>9}  {:>9}  {:>6}  {}\n",
        short(header.id),
        header.parent.map(short).unwrap_or_default(),
        created(&header),
        size(header.memory_bytes),
        own.pages.map(|pages| pages.to_string()).unwrap_or_default(),
        size(own.disk_bytes),
        layers.len(),
        plain(&folder.display().to_string()),
    );
    let json = json!({
        "path": folder, "id": header.id, "parent": header.parent, "created_ms": header.created_ms,
        "memory_bytes": header.memory_bytes, "pages": own.pages, "disk_bytes": own.disk_bytes, "layers": layers.len(),
    });
    Ok(Told { text, json })
}

fn open(files: &Files) -> Result<(StateHeader, Vec<SectionHead>, Point), SnapshotError> {
    let (header, table) = StateHeader::read(&files.state)?;
    let memory = files.memory.as_deref().ok_or_else(|| SnapshotError::NoMemory { path: files.state.clone() })?;
    let point = Point::open(memory, &header)?;
    Ok((header, table, point))
}

/// Works on a state file alone, too: what is not known of its memory is left out.
fn inspect(files: &Files) -> Result<Told, SnapshotError> {
    let (header, table) = StateHeader::read(&files.state)?;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        writeln!(text, "{name:14}{}", plain(value)).expect("a String takes every write");
    };
    line("state file", &files.state.display().to_string());
    line("id", &header.id.to_string());
    line("parent", &header.parent.map_or("none: a full snapshot".to_owned(), |id| id.to_string()));
    line("created", &created(&header));
    line("by", &format!("husk {}", header.husk_version));
    line("memory", &size(header.memory_bytes));
    line("configuration", &header.config.to_string());
    line("CPU", &Digest::of(header.cpu.bytes()).to_string());
    line("sample", &format!("{} pages", header.sample.len()));
    for row in &table {
        line("section", &format!("{:28}  version {}  {:>8} bytes", row.to_string(), row.version, row.bytes));
    }
    let layers = match &files.memory {
        Some(memory) => {
            let point = Point::open(memory, &header)?;
            line("runs", &point.run_count().to_string());
            point.layer_facts()?
        }
        None => Vec::new(),
    };
    for layer in &layers {
        let pages = layer.pages.map_or("no index".to_owned(), |pages| format!("{pages} pages"));
        line("layer", &format!("{}  {pages}, {} on disk", layer.id, size(layer.disk_bytes)));
    }
    let layer =
        |layer: &shelf::LayerFacts| json!({ "id": layer.id, "pages": layer.pages, "disk_bytes": layer.disk_bytes });
    let json = json!({
        "path": files.state, "id": header.id, "parent": header.parent, "created_ms": header.created_ms,
        "husk_version": header.husk_version, "memory_bytes": header.memory_bytes, "config": header.config,
        "cpu": Digest::of(header.cpu.bytes()), "sample_pages": header.sample.len(), "sections": table,
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    Ok(Told { text, json })
}

fn verify(files: &Files) -> Result<Told, SnapshotError> {
    let (header, _, point) = open(files)?;
    vmm::epoch::StateFile::read(&files.state)?;
    point.verify_all()?;
    let text = format!("{}  whole  {}\n", header.id, plain(&files.state.display().to_string()));
    Ok(Told { text, json: json!({ "path": files.state, "id": header.id }) })
}

fn drop_one(folder: &Path) -> Result<Told, SnapshotError> {
    let freed = shelf::drop_point(folder)?;
    let text = format!("dropped {}, {} given back\n", plain(&folder.display().to_string()), size(freed));
    Ok(Told { text, json: json!({ "path": folder, "freed_bytes": freed }) })
}

/// The first digits of an id: enough to tell a folder's snapshots apart.
fn short(id: PointId) -> String {
    id.to_string()[..12].to_owned()
}

fn created(header: &StateHeader) -> String {
    // To the second: what a table has room for.
    let mut text = logging::rfc3339(UNIX_EPOCH + Duration::from_millis(header.created_ms));
    if let Some(point) = text.rfind('.') {
        text.replace_range(point.., "Z");
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} K", bytes.div_ceil(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{} M", bytes.div_ceil(1 << 20)),
        _ => format!("{:.1} G", f64::from(u32::try_from(bytes >> 20).unwrap_or(u32::MAX)) / 1024.0),
    }
}

/// A text from a stranger's file: a terminal takes no orders from it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
