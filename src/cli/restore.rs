//! `husk restore`: the VM that a snapshot holds, and the words that `husk ctl restore` has as well.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use vmm::config::{ClockPolicy, firecracker};
use vmm::snapshot::{MemoryMode, MemorySource, Overrides, PointFiles, RestoreRequest};

use super::api::SessionArgs;
use crate::exit::ExitStatus;
use crate::session::{Begin, RunError};

/// Arguments of `husk restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Folder of the snapshot.
    folder: PathBuf,
    #[command(flatten)]
    words: RestoreWords,
    #[command(flatten)]
    session: SessionArgs,
}

/// How a snapshot becomes a machine.
#[derive(Debug, Args)]
pub(super) struct RestoreWords {
    /// How memory comes from its file: mapped privately, read page by page as the guest wants it, or read whole before it
    /// runs. Without, mapped where its kind and its pages let it, else as the guest wants it.
    #[arg(long, value_name = "map|lazy|copy")]
    memory: Option<ModeWord>,
    /// What its clocks do: go on where they stopped, or advance by the time away.
    #[arg(long, value_name = "freeze|realtime", default_value = "freeze")]
    clock: ClockWord,
    /// Leave it paused.
    #[arg(long)]
    paused: bool,
    /// Record what is written from its start, so that its first snapshot can be an incremental one.
    #[arg(long)]
    track: bool,
    /// Another file or device for a disk; repeat for more.
    #[arg(long, value_name = "ID=PATH", value_parser = pair)]
    disk: Vec<(String, String)>,
    /// Another tap for a network; repeat for more.
    #[arg(long, value_name = "ID=TAP", value_parser = pair)]
    net: Vec<(String, String)>,
    /// Refuse a disk that somebody wrote to since, instead of telling of it.
    #[arg(long)]
    strict_disks: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeWord {
    Map,
    Lazy,
    Copy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ClockWord {
    Freeze,
    Realtime,
}

impl RestoreArgs {
    pub(super) fn run(mut self, started: Instant) -> Result<ExitStatus, RunError> {
        let (manners, api) = self.session.settle(started)?;
        let begin = Begin::Restored(Box::new(self.words.request(PointFiles::in_folder(&self.folder))));
        super::api::run(firecracker::blank(), begin, manners, api).map(|finished| finished.report())
    }
}

impl RestoreWords {
    fn request(self, paths: PointFiles) -> RestoreRequest {
        let mode = self.memory.map(|mode| match mode {
            ModeWord::Map => MemoryMode::Map,
            ModeWord::Lazy => MemoryMode::Lazy,
            ModeWord::Copy => MemoryMode::Copy,
        });
        RestoreRequest {
            state: paths.state,
            memory: MemorySource::File { path: paths.memory, mode },
            resume: !self.paused,
            track_dirty_pages: self.track,
            clock: match self.clock {
                ClockWord::Freeze => ClockPolicy::Freeze,
                ClockWord::Realtime => ClockPolicy::Realtime,
            },
            overrides: Overrides {
                disks: self.disk.into_iter().map(|(id, path)| (id, path.into())).collect(),
                nets: self.net,
                pages: None,
                serial: None,
                strict_disks: self.strict_disks,
            },
        }
    }

    /// The body of a request to another husk.
    pub(super) fn body(self, folder: PathBuf) -> Result<Value, RunError> {
        let word = |mode| match mode {
            ModeWord::Map => "map",
            ModeWord::Lazy => "lazy",
            ModeWord::Copy => "copy",
        };
        let disks = self.disk.into_iter().map(|(id, path)| {
            let path = super::absolute(path.into())?;
            Ok(json!({ "id": id, "path": path }))
        });
        Ok(json!({
            "path": folder,
            "memory": self.memory.map(word),
            "clock": if self.clock == ClockWord::Realtime { "realtime" } else { "freeze" },
            "resume": !self.paused,
            "track_dirty_pages": self.track,
            "disks": disks.collect::<Result<Vec<_>, RunError>>()?,
            "nets": self.net.into_iter().map(|(id, tap)| json!({ "id": id, "tap": tap })).collect::<Vec<_>>(),
            "strict_disks": self.strict_disks,
        }))
    }
}

fn pair(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((id, value)) if !id.is_empty() && !value.is_empty() => Ok((id.to_owned(), value.to_owned())),
        _ => Err("use ID=VALUE"),
    }
}
