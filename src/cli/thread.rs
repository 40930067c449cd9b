//! `--thread NAME[,cpus=LIST][,priority=PRIORITY]`.

use std::str::FromStr;

use thiserror::Error;
use vmm::config::{Cpus, PriorityError, ThreadName, ThreadNameError, ThreadTerms};
use vmm::host::IdListError;

use super::words::colon_list;

/// One `--thread` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ThreadArg {
    pub(crate) name: ThreadName,
    pub(crate) terms: ThreadTerms,
}

/// A `--thread` argument that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ThreadArgError {
    /// It names no thread.
    #[error(transparent)]
    Name(#[from] ThreadNameError),
    /// Its CPUs are no list.
    #[error("cpus: {0}")]
    Cpus(#[from] IdListError),
    /// Its priority is none.
    #[error(transparent)]
    Priority(#[from] PriorityError),
    /// It has a word that means nothing.
    #[error("`{word}` is no option of a thread: use cpus= or priority=")]
    UnknownWord {
        /// The word.
        word: String,
    },
    /// It says something twice.
    #[error("`{word}` is given twice")]
    Twice {
        /// What is said twice.
        word: String,
    },
    /// It asks for nothing.
    #[error("`{0}` asks for nothing: give cpus= or priority=")]
    Nothing(ThreadName),
}

impl FromStr for ThreadArg {
    type Err = ThreadArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(',');
        let name: ThreadName = words.next().unwrap_or_default().parse()?;
        let mut terms = ThreadTerms::default();
        for text in words {
            let twice = || ThreadArgError::Twice { word: text.split('=').next().unwrap_or_default().to_owned() };
            match text.split_once('=') {
                Some(("cpus", _)) if terms.cpus.is_some() => return Err(twice()),
                Some(("priority", _)) if terms.priority.is_some() => return Err(twice()),
                Some(("cpus", list @ ("auto" | "auto:shared"))) => terms.cpus = Some(list.parse()?),
                Some(("cpus", list)) => terms.cpus = Some(Cpus::List(colon_list(list)?)),
                Some(("priority", priority)) => terms.priority = Some(priority.parse()?),
                _ => return Err(ThreadArgError::UnknownWord { word: text.to_owned() }),
            }
        }
        match terms == ThreadTerms::default() {
            true => Err(ThreadArgError::Nothing(name)),
            false => Ok(Self { name, terms }),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm::config::{Priority, Siblings};

    use super::*;

    fn read(text: &str) -> Result<ThreadArg, String> {
        text.parse().map_err(|error: ThreadArgError| error.to_string())
    }

    #[test]
    fn every_word_has_its_meaning() {
        let terms = |cpus: &str, priority| ThreadTerms { cpus: Some(cpus.parse().unwrap()), priority };
        let arg = read("vcpu1,cpus=0-2:7,priority=fifo:10").unwrap();
        assert_eq!(arg, ThreadArg { name: ThreadName::Vcpu(1), terms: terms("0-2,7", Some(Priority::Fifo(10))) });
        assert_eq!(read("io:root,cpus=3").unwrap().terms, terms("3", None));
        assert_eq!(read("vcpu,cpus=auto").unwrap().terms.cpus, Some(Cpus::Auto(Siblings::Idle)));
        assert_eq!(read("vcpu,cpus=auto:shared").unwrap().terms.cpus, Some(Cpus::Auto(Siblings::Shared)));
    }

    #[test]
    fn what_cannot_be_read_is_named_with_what_can() {
        assert_eq!(
            read("cpu0,cpus=1").unwrap_err(),
            "`cpu0` is no thread: use vcpu, vcpu0 to vcpu63, io, io:NAME, api or main"
        );
        assert_eq!(read("vcpu,cpus=x").unwrap_err(), "cpus: `x` is neither a number up to 65535 nor a range of them");
        assert_eq!(read("api,nice=3").unwrap_err(), "`nice=3` is no option of a thread: use cpus= or priority=");
        assert_eq!(read("api,cpus=1,cpus=2").unwrap_err(), "`cpus` is given twice");
        assert_eq!(read("main").unwrap_err(), "`main` asks for nothing: give cpus= or priority=");
    }
}
