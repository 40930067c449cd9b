//! `--disk PATH[,ro][,WORD=VALUE]...`.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;
use vmm::config::{
    BlockSize, CacheMode, DiskConfig, DiskEngine, DiskSource, DiskTuning, IoThreads, OnEnospc, RootDevice,
};

use super::limit::{LimitWord, LimitWordError};

/// One `--disk` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    path: PathBuf,
    id: Option<String>,
    read_only: bool,
    root: RootDevice,
    tuning: DiskTuning,
}

/// A `--disk` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum DiskArgError {
    /// It does not begin with a path.
    #[error("no path: write PATH[,ro][,id=ID]")]
    NoPath,
    /// It has a word that means nothing.
    #[error("`{word}` is no option of a disk: use ro, root, {}", WORDS.map(|word| format!("{word}=")).join(", "))]
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
    /// It says two things that exclude each other.
    #[error("`{0}=` and `{1}=` exclude each other")]
    Both(&'static str, &'static str),
    /// A word has a value that it cannot have.
    #[error("{word}={value}: use {allowed}")]
    Value {
        /// The word.
        word: &'static str,
        /// Its value.
        value: String,
        /// What it can have.
        allowed: &'static str,
    },
    /// A limit is none.
    #[error(transparent)]
    Limit(#[from] LimitWordError),
}

/// The words that have none.
const FLAGS: [&str; 2] = ["ro", "root"];

/// The words that have a value.
const WORDS: [&str; 20] = [
    "id",
    "partuuid",
    "engine",
    "cache",
    "queues",
    "queue_size",
    "block",
    "physical_block",
    "serial",
    "iothread",
    "iothreads",
    "poll_us",
    "bps",
    "iops",
    "rd_bps",
    "rd_iops",
    "wr_bps",
    "wr_iops",
    "limit_group",
    "on_enospc",
];

impl FromStr for DiskArg {
    type Err = DiskArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (path, rest) = split_path(text);
        if path.is_empty() {
            return Err(DiskArgError::NoPath);
        }
        let (root, tuning) = (RootDevice::No, DiskTuning::default());
        let mut disk = Self { path: path.into(), id: None, read_only: false, root, tuning };
        let mut given = Vec::new();
        for text in rest.into_iter().flat_map(|rest| rest.split(',')) {
            let unknown = || DiskArgError::UnknownWord { word: text.to_owned() };
            let (word, value) = match text.split_once('=') {
                None => (FLAGS.into_iter().find(|known| *known == text).ok_or_else(unknown)?, ""),
                Some((word, value)) => (WORDS.into_iter().find(|known| *known == word).ok_or_else(unknown)?, value),
            };
            if given.contains(&word) {
                return Err(DiskArgError::Twice { word });
            }
            given.push(word);
            disk.take(word, value)?;
        }
        match ["iothread", "iothreads"].iter().all(|word| given.contains(word)) {
            true => Err(DiskArgError::Both("iothread", "iothreads")),
            false => Ok(disk),
        }
    }
}

/// The path, in which a doubled comma stands for one, and what follows the comma that ends it.
fn split_path(text: &str) -> (String, Option<&str>) {
    let mut path = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(',') {
        path.push_str(before);
        match after.strip_prefix(',') {
            Some(after) => {
                path.push(',');
                rest = after;
            }
            None => return (path, Some(after)),
        }
    }
    path.push_str(rest);
    (path, None)
}

impl DiskArg {
    /// The disk, named `diskN` after its place unless it has an id.
    pub(crate) fn into_config(self, index: usize) -> DiskConfig {
        DiskConfig {
            id: self.id.unwrap_or_else(|| format!("disk{index}")),
            source: DiskSource::Path(self.path),
            read_only: self.read_only,
            root: self.root,
            tuning: self.tuning,
        }
    }

    /// Takes one word with its value. Numbers are held against their limits where all of the VM's are.
    fn take(&mut self, word: &'static str, value: &str) -> Result<(), DiskArgError> {
        let refuse = |allowed| DiskArgError::Value { word, value: value.to_owned(), allowed };
        let number = || value.parse::<u32>().map_err(|_| refuse("a whole number"));
        let count = || value.parse::<usize>().map_err(|_| refuse("a whole number"));
        let tuning = &mut self.tuning;
        match word {
            "ro" => self.read_only = true,
            "root" if self.root == RootDevice::No => self.root = RootDevice::Whole,
            "root" => {}
            "partuuid" if is_partuuid(value) => self.root = RootDevice::Partition(value.to_owned()),
            "partuuid" => return Err(refuse("a partition's unique id, as blkid tells it")),
            "id" => self.id = Some(value.to_owned()),
            "engine" => tuning.engine = named(value, ENGINES).ok_or_else(|| refuse("io_uring, sync or auto"))?,
            "cache" => {
                let cache = named(value, CACHES).ok_or_else(|| refuse("writeback, writethrough, direct or unsafe"))?;
                tuning.cache = Some(cache);
            }
            "block" => tuning.block = Some(named(value, BLOCKS).ok_or_else(|| refuse("512 or 4096"))?),
            "physical_block" => tuning.physical_block = Some(number()?),
            "queues" => tuning.queues = count()?,
            "queue_size" => tuning.queue_size = u16::try_from(number()?).unwrap_or(u16::MAX),
            "serial" => tuning.serial = Some(value.to_owned()),
            "iothread" => tuning.threads = IoThreads::Shared(value.to_owned()),
            "iothreads" => tuning.threads = IoThreads::Own(count()?),
            "poll_us" => tuning.poll_us = number()?,
            "limit_group" => tuning.limit_group = Some(value.to_owned()),
            "on_enospc" => {
                tuning.on_enospc = named(value, ON_ENOSPC).ok_or_else(|| refuse("report or stop"))?;
            }
            _ => match LimitWord::read(word, value) {
                Some(limit) => limit?.put(&mut tuning.limits),
                None => unreachable!("every word of the list is taken"),
            },
        }
        Ok(())
    }
}

const ENGINES: &[(&str, DiskEngine)] =
    &[("auto", DiskEngine::Auto), ("io_uring", DiskEngine::IoUring), ("sync", DiskEngine::Sync)];
const CACHES: &[(&str, CacheMode)] = &[
    ("writeback", CacheMode::Writeback),
    ("writethrough", CacheMode::Writethrough),
    ("direct", CacheMode::Direct),
    ("unsafe", CacheMode::Unsafe),
];
const ON_ENOSPC: &[(&str, OnEnospc)] = &[("report", OnEnospc::Report), ("stop", OnEnospc::Stop)];
const BLOCKS: &[(&str, BlockSize)] = &[("512", BlockSize::B512), ("4096", BlockSize::B4096)];

/// Whether the kernel's command line can have it: hexadecimal digits in groups.
fn is_partuuid(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

fn named<T: Copy>(name: &str, choices: &[(&str, T)]) -> Option<T> {
    choices.iter().find(|(known, _)| *known == name).map(|(_, choice)| *choice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::config::{LimiterConfig, Limits, Rate};

    #[test]
    fn a_path_alone_is_a_writable_disk_named_after_its_place() {
        let disk: DiskArg = "/a/b.img".parse().unwrap();
        let config = disk.into_config(3);
        assert_eq!(config.id, "disk3");
        assert!(!config.read_only);
        assert!(matches!(config.source, DiskSource::Path(path) if path.to_str() == Some("/a/b.img")));
    }

    #[test]
    fn a_doubled_comma_in_a_path_stands_for_one() {
        for (text, path, read_only) in [
            ("a,,b", "a,b", false),
            ("a,,b,ro", "a,b", true),
            (",,", ",", false),
            (",,,ro", ",", true),
            ("a,,,,b,ro", "a,,b", true),
            ("a,,", "a,", false),
        ] {
            let disk: DiskArg = text.parse().unwrap();
            assert_eq!((disk.path.to_str(), disk.read_only), (Some(path), read_only), "{text}");
        }
        assert_eq!(",".parse::<DiskArg>(), Err(DiskArgError::NoPath));
    }

    #[test]
    fn options_come_in_any_order() {
        let (root, tuning) = (RootDevice::No, DiskTuning::default());
        let expected = Ok(DiskArg { path: "x".into(), id: Some("root".to_owned()), read_only: true, root, tuning });
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

    #[test]
    fn every_word_reaches_the_configuration() {
        let text = "x,engine=sync,cache=direct,queues=4,queue_size=128,block=4096,physical_block=65536,serial=S 1,iothreads=2,poll_us=50,\
                    bps=10M,iops=1000+7,rd_bps=5M,rd_iops=500,wr_bps=4M+1M,wr_iops=400,limit_group=g,on_enospc=stop";
        let tuning = text.parse::<DiskArg>().unwrap().into_config(0).tuning;
        let limits = LimiterConfig {
            total: Limits { bytes: Rate::per_second(10 << 20), operations: Rate::new(1000, 7, 1000) },
            inward: Limits { bytes: Rate::per_second(5 << 20), operations: Rate::per_second(500) },
            outward: Limits { bytes: Rate::new(4 << 20, 1 << 20, 1000), operations: Rate::per_second(400) },
        };
        let expected = DiskTuning {
            engine: DiskEngine::Sync,
            cache: Some(CacheMode::Direct),
            block: Some(BlockSize::B4096),
            physical_block: Some(65536),
            serial: Some("S 1".to_owned()),
            queues: 4,
            queue_size: 128,
            threads: IoThreads::Own(2),
            poll_us: 50,
            limits,
            limit_group: Some("g".to_owned()),
            on_enospc: OnEnospc::Stop,
        };
        assert_eq!(tuning, expected);
        let shared = "x,iothread=fast".parse::<DiskArg>().unwrap().into_config(0).tuning.threads;
        assert_eq!(shared, IoThreads::Shared("fast".to_owned()));
        for word in WORDS {
            let taken = format!("x,{word}=?").parse::<DiskArg>();
            assert!(!matches!(taken, Err(DiskArgError::UnknownWord { .. })), "{word}");
        }
    }

    #[test]
    fn values_that_cannot_be_are_told_with_those_that_can() {
        let refused = |text: &str| text.parse::<DiskArg>().unwrap_err().to_string();
        assert_eq!(refused("x,engine=aio"), "engine=aio: use io_uring, sync or auto");
        assert_eq!(refused("x,cache=none"), "cache=none: use writeback, writethrough, direct or unsafe");
        assert_eq!(refused("x,block=1024"), "block=1024: use 512 or 4096");
        assert_eq!(refused("x,queues=-1"), "queues=-1: use a whole number");
        assert_eq!(refused("x,queues=1,queues=2"), "`queues` is given twice");
        assert_eq!(refused("x,iothread=a,iothreads=2"), "`iothread=` and `iothreads=` exclude each other");
        assert!(refused("x,bps=fast").starts_with("bps: `fast` is not a size"));
        assert!(refused("x,size=4").starts_with("`size=4` is no option of a disk: use ro, root, id=, partuuid="));
        assert!(refused("x,partuuid=ab 1").starts_with("partuuid=ab 1: use a partition's unique id"));
    }

    #[test]
    fn the_root_is_a_disk_or_a_partition_of_one() {
        let root = |text: &str| text.parse::<DiskArg>().unwrap().into_config(0).root;
        assert_eq!(root("x"), RootDevice::No);
        assert_eq!(root("x,root"), RootDevice::Whole);
        for text in ["x,partuuid=0eaa91a0-01", "x,root,partuuid=0eaa91a0-01", "x,partuuid=0eaa91a0-01,root"] {
            assert_eq!(root(text), RootDevice::Partition("0eaa91a0-01".to_owned()), "{text}");
        }
    }
}
