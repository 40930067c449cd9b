//! Lists of CPUs and nodes as the kernel writes them.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Numbers of CPUs or of nodes, written as the kernel does: `0-3,8`. The type of a number is the bound: the largest
/// list has 65536 entries.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct IdList(BTreeSet<u16>);

/// A text that is no list.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{item}` is neither a number up to 65535 nor a range of them")]
pub struct IdListError {
    /// The part that cannot be read.
    pub item: String,
}

impl IdList {
    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `id` is one of them.
    #[must_use]
    pub fn contains(&self, id: u16) -> bool {
        self.0.contains(&id)
    }

    /// The entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().copied()
    }

    /// The entries that both have.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.0.intersection(&other.0).copied().collect()
    }

    /// The entries that `other` has not.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.0.difference(&other.0).copied().collect()
    }
}

impl FromIterator<u16> for IdList {
    fn from_iter<I: IntoIterator<Item = u16>>(ids: I) -> Self {
        Self(ids.into_iter().collect())
    }
}

impl FromStr for IdList {
    type Err = IdListError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut ids = BTreeSet::new();
        // nohz_full prints `(null)` on kernels where it was not asked for.
        for item in text.trim().split(',').filter(|item| !matches!(*item, "" | "(null)")) {
            let range = || {
                let (first, last) = item.split_once('-').unwrap_or((item, item));
                let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
                (first <= last).then_some(first..=last)
            };
            ids.extend(range().ok_or_else(|| IdListError { item: item.to_owned() })?);
        }
        Ok(Self(ids))
    }
}

impl fmt::Display for IdList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|&next| last.checked_add(1) == Some(next)) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last != first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl Serialize for IdList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for IdList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for IdList {
    fn schema_name() -> Cow<'static, str> {
        "IdList".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*)?$",
            "description": "Numbers of CPUs or nodes as the kernel writes them, such as `0-3,8`."
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        let ids = |text: &str| text.parse::<IdList>().map(|list| list.iter().collect::<Vec<_>>());
        assert_eq!(ids("0-3,8\n"), Ok(vec![0, 1, 2, 3, 8]));
        assert_eq!(ids("\n"), Ok(vec![]));
        assert_eq!(ids(" (null)\n"), Ok(vec![]));
        assert_eq!(ids("65535"), Ok(vec![65535]));
    }

    #[test]
    fn what_is_no_list_is_named() {
        for item in ["3-1", "65536", "-1", "1-", "0-x", "all"] {
            let error = IdListError { item: item.to_owned() };
            assert_eq!(format!("7,{item}").parse::<IdList>(), Err(error));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ids in proptest::collection::btree_set(any::<u16>(), 0..200)) {
            let list: IdList = ids.into_iter().collect();
            prop_assert_eq!(list.to_string().parse::<IdList>(), Ok(list));
        }

        #[test]
        fn no_text_brings_the_parser_down(text in "[0-9,x-]{0,40}") {
            let _ = text.parse::<IdList>();
        }
    }
}
