//! `--disk PATH[,ro][,id=ID]`.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;
use vmm::config::{DiskConfig, DiskSource};

/// One `--disk` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    path: PathBuf,
    id: Option<String>,
    read_only: bool,
}

/// A `--disk` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum DiskArgError {
    /// It does not begin with a path.
    #[error("no path: write PATH[,ro][,id=ID]")]
    NoPath,
    /// It has a word that means nothing.
    #[error("`{word}` is no option of a disk: use ro or id=ID")]
    UnknownWord {
        /// The word.
        word: String,
    },
    /// It says something twice.
    #[error("`{word}` is given twice")]
    Twice {
        /// What is said twice.
        word: &'static str,
    },
}

impl FromStr for DiskArg {
    type Err = DiskArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(',');
        let path = words.next().filter(|path| !path.is_empty()).ok_or(DiskArgError::NoPath)?;
        let mut disk = Self { path: path.into(), id: None, read_only: false };
        for word in words {
            match word.split_once('=') {
                None if word == "ro" && disk.read_only => return Err(DiskArgError::Twice { word: "ro" }),
                None if word == "ro" => disk.read_only = true,
                Some(("id", _)) if disk.id.is_some() => return Err(DiskArgError::Twice { word: "id" }),
                Some(("id", id)) => disk.id = Some(id.to_owned()),
                _ => return Err(DiskArgError::UnknownWord { word: word.to_owned() }),
            }
        }
        Ok(disk)
    }
}

impl DiskArg {
    /// The disk, named `diskN` after its place unless it has an id.
    pub(crate) fn into_config(self, index: usize) -> DiskConfig {
        DiskConfig {
            id: self.id.unwrap_or_else(|| format!("disk{index}")),
            source: DiskSource::Path(self.path),
            read_only: self.read_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_alone_is_a_writable_disk_named_after_its_place() {
        let disk: DiskArg = "/a/b.img".parse().unwrap();
        let config = disk.into_config(3);
        assert_eq!(config.id, "disk3");
        assert!(!config.read_only);
        assert!(matches!(config.source, DiskSource::Path(path) if path == PathBuf::from("/a/b.img")));
    }

    #[test]
    fn options_come_in_any_order() {
        let expected = Ok(DiskArg { path: "x".into(), id: Some("root".to_owned()), read_only: true });
        assert_eq!("x,ro,id=root".parse(), expected);
        assert_eq!("x,id=root,ro".parse(), expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(",ro".parse::<DiskArg>(), Err(DiskArgError::NoPath));
        assert_eq!("x,ro,ro".parse::<DiskArg>(), Err(DiskArgError::Twice { word: "ro" }));
        assert_eq!("x,rw".parse::<DiskArg>(), Err(DiskArgError::UnknownWord { word: "rw".to_owned() }));
        assert_eq!("x,".parse::<DiskArg>(), Err(DiskArgError::UnknownWord { word: String::new() }));
    }
}
