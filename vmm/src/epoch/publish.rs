//! How a point's files take their names, so that a crash between any two steps leaves the old point or the new one.
//!
//! The state file is renamed last: that is the commit. It names its memory by id. Where the memory file's name already has
//! another point's, that one gets a second name first, `M.layers/HEXID`, where a reader of the old state file looks for
//! an id that M does not have; so the old state stays readable while M and `M.idx` are new. A state file without its
//! memory cannot come about, memory without a state file is no point.
//!
//! Every wait for the disk is in [`FinishedLayer::publish`]: the guest runs by then.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::{self, FileError, Folder, Label, Temporary};
use super::{Digest, Encoded, FinishedLayer, Index, Point, PointError, PointId, Section, StateFile, StateHeader};

/// Where a point's two files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointFiles {
    /// The state file.
    pub state: PathBuf,
    /// The memory file; `.idx` and `.layers` are beside it.
    pub memory: PathBuf,
    /// The folder that is theirs alone, which is made if it is not there.
    folder: Option<PathBuf>,
}

/// What the machine says of itself in a state file's header.
#[derive(Debug, Clone)]
pub struct Described {
    /// When it was held, in ms of Unix time.
    pub created_ms: u64,
    /// The CPU that it runs on.
    pub cpu: Encoded,
    /// The digest of its configuration.
    pub config: Digest,
}

/// The folders of a point's files, held open.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) memory_folder: Arc<Folder>,
    pub(super) memory: OsString,
    state_folder: Arc<Folder>,
    state: OsString,
    made: Option<Made>,
}

/// A folder that was made for the point; it goes if the point does not come about.
#[derive(Debug)]
struct Made {
    around: Folder,
    name: OsString,
    keep: bool,
}

impl PointFiles {
    /// A point of two files, whose folders are there.
    pub const fn new(state: PathBuf, memory: PathBuf) -> Self {
        Self { state, memory, folder: None }
    }

    /// The point of which `folder` is the folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self { state: folder.join("state"), memory: folder.join("memory"), folder: Some(folder.to_owned()) }
    }

    pub(super) fn open(&self) -> Result<Place, PointError> {
        let made = match &self.folder {
            Some(folder) => {
                let (around, name) = Folder::around(folder)?;
                around.make_folder(&name)?.then(|| Made { around, name, keep: false })
            }
            None => None,
        };
        let (memory_folder, memory) = Folder::around(&self.memory)?;
        let (state_folder, state) = Folder::around(&self.state)?;
        if self.memory == self.state {
            return Err(PointError::SamePath { path: self.state.clone() });
        }
        let memory_folder = Arc::new(memory_folder);
        let state_folder = if self.state.parent() == self.memory.parent() {
            Arc::clone(&memory_folder)
        } else {
            Arc::new(state_folder)
        };
        Ok(Place { memory_folder, memory, state_folder, state, made })
    }
}

impl FinishedLayer {
    /// Gives the point its names, and waits until it is on the disk. The header is what the state file says of it.
    ///
    /// # Errors
    /// A section twice; files that cannot be written, linked, replaced. The old point is whole then.
    pub fn publish(self, machine: &Described, sections: &[Section]) -> Result<StateHeader, PointError> {
        // The folder that may have been made is given up last, when it is empty.
        let Self { mut place, mut memory, id, parent, index, sample } = self;
        let (index_bytes, digest) = index.encode();
        let header = StateHeader {
            id,
            parent: parent.as_ref().map(|parent| parent.id()),
            husk_version: env!("CARGO_PKG_VERSION").to_owned(),
            created_ms: machine.created_ms,
            cpu: machine.cpu.clone(),
            config: machine.config,
            memory_bytes: index.memory_bytes(),
            index: digest,
            sample,
        };
        let failed = |source| PointError::State { path: place.state_folder.at(&place.state), source: Box::new(source) };
        let state_bytes = StateFile::encode(&header, sections).map_err(failed)?;
        let index_name = with(&place.memory, ".idx");
        let mut index = Temporary::create(&place.memory_folder, &index_name, id)?;
        index.write_at(&index_bytes, 0)?;
        let mut state = Temporary::create(&place.state_folder, &place.state, id)?;
        state.write_at(&state_bytes, 0)?;
        // All of them on their way before the first is waited for: one commit of the filesystem's journal takes all three.
        let files = [&memory, &index, &state];
        files.iter().for_each(|file| file.start_sync());
        files.iter().try_for_each(|file| file.sync())?;
        let mut layers = Layers::prepare(&place, parent.as_deref())?;
        layers.keep = layers.replaced.is_some();
        // The index before M, so that no reader takes the new M for what the old index describes; the commit last.
        let placed = index.place().and_then(|()| memory.place());
        let placed = placed.and_then(|()| place.sync_memory_apart()).and_then(|()| state.place());
        if placed.is_err() && layers.replaced.is_none() {
            [&index, &memory].iter().for_each(|file| file.displace());
        }
        placed?;
        layers.keep = true;
        if let Some(made) = &mut place.made {
            made.keep = true;
        }
        place.sync()?;
        layers.sweep();
        place.sweep();
        Ok(header)
    }
}

impl Place {
    /// Where the memory is in a folder of its own, no journal keeps the order of the two folders' renames.
    fn sync_memory_apart(&self) -> Result<(), FileError> {
        if Arc::ptr_eq(&self.memory_folder, &self.state_folder) { Ok(()) } else { self.memory_folder.sync() }
    }

    fn sweep(&self) {
        Temporary::sweep(&self.memory_folder, &self.memory);
        Temporary::sweep(&self.memory_folder, &with(&self.memory, ".idx"));
        Temporary::sweep(&self.state_folder, &self.state);
    }

    fn sync(&self) -> Result<(), FileError> {
        self.memory_folder.sync()?;
        if !Arc::ptr_eq(&self.memory_folder, &self.state_folder) {
            self.state_folder.sync()?;
        }
        self.made.as_ref().map_or(Ok(()), |made| made.around.sync())
    }

    /// The id of the point that has the names now. A state file that is not husk's names none.
    fn replaced(&self) -> Option<PointId> {
        let file = self.state_folder.read_if_there(&self.state).ok()??;
        let bytes = folder::read_all(&file, super::state_file::STATE_BYTES_MAX).ok()?;
        StateHeader::decode(&bytes).ok().map(|(header, _)| header.id)
    }

    /// Whether M is `id`'s, as far as can be told without reading it.
    fn holds(&self, id: PointId) -> bool {
        let read = |name: &OsStr| self.memory_folder.read_if_there(name).ok().flatten();
        let Some(memory) = read(&self.memory) else { return false };
        if folder::label(&memory) == Label::Point(id) {
            return true;
        }
        let index = read(&with(&self.memory, ".idx"))
            .and_then(|file| Index::read(&file, memory.metadata().ok()?.len()).ok()?.ok());
        folder::label(&memory) == Label::Absent && index.is_none_or(|(index, _)| index.id() == id)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !self.keep {
            // The error that brought us here is the one to tell.
            let _ = self.around.remove_folder(&self.name);
        }
    }
}

/// `M.layers`, and whose files belong in it.
struct Layers {
    around: Arc<Folder>,
    name: OsString,
    folder: Option<Arc<Folder>>,
    wanted: Vec<PointId>,
    /// The point that had the names before.
    replaced: Option<PointId>,
    added: Vec<OsString>,
    /// Something relies on what was added.
    keep: bool,
}

impl Layers {
    /// Links the ancestors' files, and those of the point that M is now.
    fn prepare(place: &Place, parent: Option<&Point>) -> Result<Self, PointError> {
        let name = with(&place.memory, ".layers");
        let around = Arc::clone(&place.memory_folder);
        let wanted: Vec<_> = parent.map_or(Vec::new(), |parent| parent.layer_ids().collect());
        let replaced = place.replaced().filter(|&id| place.holds(id));
        let mut layers = Self { around, name, folder: None, wanted, replaced, added: Vec::new(), keep: false };
        if !layers.wanted.is_empty() || replaced.is_some() {
            layers.around.make_folder(&layers.name)?;
        }
        layers.folder = layers.around.folder_if_there(&layers.name)?.map(Arc::new);
        if let Some(parent) = parent {
            for (from, file, to) in parent.layer_links() {
                layers.link(from, file, to)?;
            }
            layers.add_index(parent)?;
        }
        if let Some(id) = replaced {
            let memory = (place.memory.clone(), layer_name(id));
            let index = (with(&place.memory, ".idx"), index_name(id));
            for (file, to) in [index, memory] {
                match layers.link(&place.memory_folder, &file, to) {
                    // A plain copy has no index.
                    Err(PointError::File(error)) if error.source.kind() == io::ErrorKind::NotFound => {}
                    linked => linked?,
                }
            }
        }
        if let Some(folder) = layers.folder.as_ref().filter(|_| !layers.added.is_empty()) {
            folder.sync()?;
        }
        Ok(layers)
    }

    /// A parent that is a plain copy has its index made anew, which reads it: its children are held against it.
    fn add_index(&mut self, parent: &Point) -> Result<(), PointError> {
        let (own, folder) = (&parent.layers()[0], self.folder.as_ref().expect("made before anything is linked"));
        let name = index_name(own.id);
        if own.index.is_some() || folder.read_if_there(&name)?.is_some() {
            return Ok(());
        }
        let mut file = Temporary::create(folder, &name, own.id)?;
        file.write_at(&parent.rebuild_index(own)?.encode().0, 0)?;
        file.sync()?;
        file.place()?;
        self.added.push(name);
        Ok(())
    }

    /// What is there under the name `to` has that id, and so is the same file.
    fn link(&mut self, from: &Folder, file: &OsStr, to: OsString) -> Result<(), PointError> {
        let folder = self.folder.as_ref().expect("made before anything is linked");
        match folder.link(from, file, &to) {
            Ok(true) => self.added.push(to),
            Ok(false) => {}
            Err(error) if error.source.kind() == io::ErrorKind::CrossesDevices => {
                return Err(PointError::OtherFilesystem { path: from.at(file) });
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Removes what no point needs that has these names. What stays behind is removed the next time.
    fn sweep(&self) {
        let Some(folder) = &self.folder else { return };
        for name in folder.names().unwrap_or_default() {
            let id = name.to_str().map(|name| name.strip_suffix(".idx").unwrap_or(name)).and_then(|id| id.parse().ok());
            if id.is_some_and(|id: PointId| !self.wanted.contains(&id)) {
                let _ = folder.remove(&name);
            }
        }
        if self.wanted.is_empty() {
            let _ = self.around.remove_folder(&self.name);
        }
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let Some(folder) = self.folder.as_ref().filter(|_| !self.keep) else { return };
        // The error that brought us here is the one to tell. The folder stays if it has others' files.
        for name in &self.added {
            let _ = folder.remove(name);
        }
        let _ = self.around.remove_folder(&self.name);
    }
}

/// `name` with `suffix` at its end.
pub(super) fn with(name: &OsStr, suffix: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(suffix);
    name
}

/// The name of a layer in `M.layers`.
pub(super) fn layer_name(id: PointId) -> OsString {
    id.to_string().into()
}

/// The name of a layer's index in `M.layers`.
pub(super) fn index_name(id: PointId) -> OsString {
    format!("{id}.idx").into()
}
