//! A point as the process that made it, or came from it, knows it: its files may have gone since.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;

use crate::epoch::{PAGE_BYTES, StateHeader};

/// How the machine stands to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Relation {
    /// It goes on from it.
    Origin,
    /// It has made it.
    Made,
}

/// A point that the machine goes on from, or has made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PointReport {
    /// Its id.
    pub id: String,
    /// The id of the point that it is an increment of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// How the machine stands to it.
    pub relation: Relation,
    /// Its state file.
    pub state_path: PathBuf,
    /// Its memory file; absent where another process has brought it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_path: Option<PathBuf>,
    /// When the machine was held, in milliseconds since 1970 (UTC).
    pub created_ms: u64,
    /// Bytes of the machine's memory.
    pub memory_bytes: u64,
    /// Bytes that its own memory file holds of that; absent where there is no index of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_bytes: Option<u64>,
}

impl PointReport {
    /// Of a point of `header` that holds so many pages.
    pub(super) fn new(
        relation: Relation,
        (state, memory): (&Path, Option<&Path>),
        header: &StateHeader,
        pages: Option<u64>,
    ) -> Self {
        Self {
            id: header.id.to_string(),
            parent: header.parent.map(|parent| parent.to_string()),
            relation,
            state_path: state.to_owned(),
            memory_path: memory.map(Path::to_owned),
            created_ms: header.created_ms,
            memory_bytes: header.memory_bytes,
            held_bytes: pages.map(|pages| pages * PAGE_BYTES),
        }
    }
}
