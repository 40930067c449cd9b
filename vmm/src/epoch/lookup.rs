//! How the files of a point are found: its own, and its ancestors' in `M.layers`.
//!
//! Architecture invariant: a name that is opened here is the user's own path's or made from an id, never one that a file says.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::{self, Folder, Label};
use super::point::{Layer, PointError};
use super::publish::{index_name, layer_name, with};
use super::{Digest, Index, LAYERS_MAX, PointId, StateHeader};

/// The layers of the point of `header`, whose memory file is at `memory`: its own first, then its parent's and so on.
pub(super) fn layers(memory: &Path, header: &StateHeader) -> Result<Vec<Layer>, PointError> {
    let (folder, name) = Folder::around(memory)?;
    let folder = Arc::new(folder);
    let mut found = Lookup { folder, name, layers: None, memory_bytes: header.memory_bytes };
    let own = found.own(header)?;
    let mut next = own.index.as_ref().and_then(|(index, _)| index.parent());
    let mut layers = vec![own];
    while let Some(parent) = next {
        if layers.len() == LAYERS_MAX || layers.iter().any(|layer| layer.id == parent.id) {
            return Err(PointError::TooDeep);
        }
        let layer = found.ancestor(parent.id, parent.index)?;
        next = layer.index.as_ref().and_then(|(index, _)| index.parent());
        layers.push(layer);
    }
    Ok(layers)
}

/// How the files of a point's layers are found.
struct Lookup {
    folder: Arc<Folder>,
    name: OsString,
    layers: Option<Arc<Folder>>,
    memory_bytes: u64,
}

impl Lookup {
    /// The point's own layer: M, or, while another point is taking its names, the second name that M has then.
    fn own(&mut self, header: &StateHeader) -> Result<Layer, PointError> {
        let (folder, name) = (Arc::clone(&self.folder), self.name.clone());
        let index_at = with(&name, ".idx");
        let plainly = match self.layer(header.id, &folder, &name, &index_at) {
            Ok(layer) => self.checked(layer, header),
            Err(error) => Err(error),
        };
        let other = match plainly {
            Err(error) => error,
            found => return found,
        };
        let aside = self
            .layers_folder()
            .and_then(|layers| self.layer(header.id, &layers, &layer_name(header.id), &index_name(header.id)));
        aside.ok().and_then(|layer| self.checked(layer, header).ok()).ok_or(other)
    }

    /// Holds the own layer against the state file's header.
    fn checked(&self, layer: Layer, header: &StateHeader) -> Result<Layer, PointError> {
        let path = || layer.folder.at(&layer.index_name);
        match &layer.index {
            None if header.parent.is_some() => Err(PointError::NoIndex { path: path(), id: header.id }),
            None => Ok(layer),
            Some((_, digest)) if *digest != header.index => Err(PointError::OtherIndex { path: path(), id: header.id }),
            Some((index, _)) if index.parent().map(|parent| parent.id) != header.parent => {
                Err(PointError::OtherIndex { path: path(), id: header.id })
            }
            Some(_) => Ok(layer),
        }
    }

    fn ancestor(&mut self, id: PointId, digest: Digest) -> Result<Layer, PointError> {
        let name = layer_name(id);
        let missing = |path: &Path| PointError::NoLayer { id, path: path.join(&name) };
        let layers = self.layers_folder().map_err(|error| match error {
            PointError::File(error) if error.source.kind() == io::ErrorKind::NotFound => missing(&error.path),
            error => error,
        })?;
        let layer = self.layer(id, &layers, &name, &index_name(id)).map_err(|error| match error {
            PointError::File(error) if error.source.kind() == io::ErrorKind::NotFound => missing(layers.path()),
            error => error,
        })?;
        match &layer.index {
            Some((_, found)) if *found == digest => Ok(layer),
            Some(_) => Err(PointError::OtherIndex { path: layers.at(&layer.index_name), id }),
            None => Err(PointError::NoIndex { path: layers.at(&layer.index_name), id }),
        }
    }

    fn layers_folder(&mut self) -> Result<Arc<Folder>, PointError> {
        if let Some(layers) = &self.layers {
            return Ok(Arc::clone(layers));
        }
        let layers = Arc::new(self.folder.folder(&with(&self.name, ".layers"))?);
        self.layers = Some(Arc::clone(&layers));
        Ok(layers)
    }

    /// Opens a memory file and its index, which must both be `id`'s.
    fn layer(&self, id: PointId, folder: &Arc<Folder>, name: &OsStr, index_at: &OsStr) -> Result<Layer, PointError> {
        let memory = folder.read(name)?;
        let path = folder.at(name);
        let found = memory.metadata().map_err(|source| PointError::read(path.clone(), source))?.len();
        if found != self.memory_bytes {
            return Err(PointError::Length { path, found, want: self.memory_bytes });
        }
        match folder::label(&memory) {
            Label::Point(found) if found != id => return Err(PointError::OtherPoint { path, found, want: id }),
            Label::Foreign => return Err(PointError::Label { path }),
            Label::Point(_) | Label::Absent => {}
        }
        let index =
            folder.read_if_there(index_at)?.map(|file| self.index(&file, id, folder.at(index_at))).transpose()?;
        let (name, index_name) = (name.to_owned(), index_at.to_owned());
        Ok(Layer { id, memory, index, folder: Arc::clone(folder), name, index_name })
    }

    fn index(&self, file: &File, id: PointId, path: PathBuf) -> Result<(Index, Digest), PointError> {
        let read = Index::read(file, self.memory_bytes).map_err(|source| PointError::read(path.clone(), source))?;
        let (index, digest) = read.map_err(|source| PointError::Index { path: path.clone(), source })?;
        if index.id() != id {
            return Err(PointError::OtherPoint { path, found: index.id(), want: id });
        }
        if index.memory_bytes() != self.memory_bytes {
            return Err(PointError::Length { path, found: index.memory_bytes(), want: self.memory_bytes });
        }
        Ok((index, digest))
    }
}
