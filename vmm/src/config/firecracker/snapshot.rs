//! Firecracker's bodies of snapshots, and what they ask in husk's terms.

use std::path::PathBuf;

use arch::clock::ClockPolicy;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::BodyError;
use super::change::not_yet;
use crate::config::Pages;
use crate::epoch::PointFiles;
use crate::snapshot::{MemorySource, Overrides, PointKind, RestoreRequest, SnapshotRequest};

/// `SnapshotCreateParams`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreateParams {
    /// The file that the guest's memory goes to.
    pub mem_file_path: PathBuf,
    /// The file that the machine's state goes to.
    pub snapshot_path: PathBuf,
    /// What the memory file holds.
    #[serde(default)]
    pub snapshot_type: SnapshotType,
}

/// What a memory file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SnapshotType {
    /// All of memory.
    #[default]
    Full,
    /// What has changed since the last snapshot.
    Diff,
}

/// `SnapshotLoadParams`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotLoadParams {
    /// The file of the machine's state.
    pub snapshot_path: PathBuf,
    /// Where memory comes from; this or `mem_file_path`.
    #[serde(default)]
    pub mem_backend: Option<MemoryBackend>,
    /// The file of the guest's memory (deprecated).
    #[serde(default)]
    pub mem_file_path: Option<PathBuf>,
    /// Whether the machine runs at once.
    #[serde(default)]
    pub resume_vm: bool,
    /// Whether pages that the guest writes are tracked from the start.
    #[serde(default)]
    pub track_dirty_pages: bool,
    /// The same (deprecated).
    #[serde(default)]
    pub enable_diff_snapshots: bool,
    /// Other taps.
    #[serde(default)]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another path of the vsock device's socket.
    #[serde(default)]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock advances by the time away.
    #[serde(default)]
    pub clock_realtime: bool,
    /// The pages of guest memory.
    #[serde(default)]
    pub huge_pages: RestoredPages,
}

/// `MemoryBackend`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemoryBackend {
    /// What it is.
    pub backend_type: MemoryBackendType,
    /// The memory file, or the socket of the page fault handler.
    pub backend_path: PathBuf,
}

/// What memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MemoryBackendType {
    /// A file.
    File,
    /// A process that handles page faults.
    Uffd,
}

/// `NetworkOverride`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkOverride {
    /// The interface.
    pub iface_id: String,
    /// Its tap from now on.
    pub host_dev_name: String,
}

/// `VsockOverride`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VsockOverride {
    /// The path of its socket from now on.
    pub uds_path: PathBuf,
}

/// The pages of a restored guest's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RestoredPages {
    /// As they were.
    #[default]
    Snapshot,
    /// Those of the host's choice.
    None,
    /// Transparent huge pages, as the host has them.
    Transparent,
    /// 2 MiB pages of hugetlbfs.
    #[serde(rename = "2M")]
    TwoMib,
}

impl From<SnapshotCreateParams> for SnapshotRequest {
    fn from(params: SnapshotCreateParams) -> Self {
        let SnapshotCreateParams { mem_file_path, snapshot_path, snapshot_type } = params;
        let kind = match snapshot_type {
            SnapshotType::Full => PointKind::Full,
            SnapshotType::Diff => PointKind::Increment(None),
        };
        Self { files: PointFiles::new(snapshot_path, mem_file_path), kind, track: false }
    }
}

impl SnapshotLoadParams {
    /// What is asked.
    ///
    /// # Errors
    /// Fields that do not go together, or that husk cannot honour yet.
    pub fn into_request(self) -> Result<RestoreRequest, BodyError> {
        let wrong = |path: &str, problem| Err(BodyError::Value { path: path.to_owned(), problem });
        let asked = self.vsock_override.map(|over| Value::String(over.uds_path.display().to_string()));
        not_yet("vsock_override", asked)?;
        let memory = match (self.mem_backend, self.mem_file_path) {
            (Some(MemoryBackend { backend_type: MemoryBackendType::Uffd, backend_path }), None) => {
                MemorySource::Handler(backend_path)
            }
            (Some(MemoryBackend { backend_type: MemoryBackendType::File, backend_path: path }), None)
            | (None, Some(path)) => MemorySource::File { path, mode: None },
            (Some(_), Some(_)) => return wrong("mem_file_path", "is there beside mem_backend: give one of them"),
            (None, None) => return wrong("mem_backend", "is missing: say where memory comes from"),
        };
        let pages = match self.huge_pages {
            RestoredPages::Snapshot => None,
            RestoredPages::None => Some(Pages::HostsChoice),
            RestoredPages::Transparent => Some(Pages::Transparent),
            RestoredPages::TwoMib => Some(Pages::Huge2M),
        };
        let nets = self.network_overrides.into_iter().map(|over| (over.iface_id, over.host_dev_name)).collect();
        Ok(RestoreRequest {
            state: self.snapshot_path,
            memory,
            resume: self.resume_vm,
            track_dirty_pages: self.track_dirty_pages || self.enable_diff_snapshots,
            clock: if self.clock_realtime { ClockPolicy::Realtime } else { ClockPolicy::Freeze },
            overrides: Overrides { nets, pages, ..Overrides::default() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::firecracker::from_json;

    fn load(text: &str) -> Result<RestoreRequest, BodyError> {
        from_json::<SnapshotLoadParams>(text)?.into_request()
    }

    #[test]
    fn memory_comes_from_one_place() {
        let file = load(r#"{"snapshot_path": "s", "mem_file_path": "m"}"#).unwrap();
        assert_eq!(file.memory, MemorySource::File { path: "m".into(), mode: None });
        assert_eq!((file.resume, file.track_dirty_pages, file.clock), (false, false, ClockPolicy::Freeze));
        let backend = r#""mem_backend": {"backend_type": "Uffd", "backend_path": "u"}"#;
        let handler = load(&format!(
            r#"{{"snapshot_path": "s", {backend}, "resume_vm": true, "enable_diff_snapshots": true,
                "clock_realtime": true, "huge_pages": "2M",
                "network_overrides": [{{"iface_id": "eth0", "host_dev_name": "tap7"}}]}}"#
        ));
        let handler = handler.unwrap();
        assert_eq!(handler.memory, MemorySource::Handler("u".into()));
        assert_eq!((handler.resume, handler.track_dirty_pages, handler.clock), (true, true, ClockPolicy::Realtime));
        assert_eq!(handler.overrides.nets, [("eth0".to_owned(), "tap7".to_owned())]);
        assert_eq!(handler.overrides.pages, Some(Pages::Huge2M));
        let none = load(r#"{"snapshot_path": "s"}"#).unwrap_err().to_string();
        assert!(none.starts_with("mem_backend: is missing"), "{none}");
        let both = load(&format!(r#"{{"snapshot_path": "s", "mem_file_path": "m", {backend}}}"#)).unwrap_err();
        assert!(both.to_string().starts_with("mem_file_path: is there beside"), "{both}");
    }

    #[test]
    fn what_there_is_no_device_for_is_refused_by_name() {
        let vsock = load(r#"{"snapshot_path": "s", "mem_file_path": "m", "vsock_override": {"uds_path": "v"}}"#);
        assert!(vsock.unwrap_err().to_string().starts_with("vsock_override: "), "named");
    }
}
