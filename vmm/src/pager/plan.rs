//! Which unit of memory is brought next: what somebody waits for at once, then what was wanted the last time, then all the
//! others. A unit is brought once.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

/// What is to be done for one who waits in a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The unit is brought.
    Bring,
    /// It was brought already, or there is nothing to bring.
    Here,
}

/// The units, and their order.
#[derive(Debug)]
pub(super) struct Plan {
    here: Vec<bool>,
    /// What was wanted the last time, and from where on it is not brought yet.
    recorded: Vec<u32>,
    next_recorded: usize,
    next: usize,
    /// What was wanted beside that, in order.
    wanted: Vec<u32>,
}

impl Plan {
    /// Of `units` units, of which those of `held` are to be brought; those of `recorded` come first.
    pub(super) fn new(units: u64, held: impl Iterator<Item = u64>, recorded: &[u32]) -> Self {
        let index = |unit: u64| usize::try_from(unit).expect("memory fits into memory");
        let mut here = vec![true; index(units)];
        held.for_each(|unit| here[index(unit)] = false);
        Self { here, recorded: recorded.to_vec(), next_recorded: 0, next: 0, wanted: Vec::new() }
    }

    /// Somebody waits in `unit`, which is within the memory.
    pub(super) fn want(&mut self, unit: u64) -> Wanted {
        let index = usize::try_from(unit).expect("memory fits into memory");
        if std::mem::replace(&mut self.here[index], true) {
            return Wanted::Here;
        }
        self.wanted.extend(u32::try_from(unit));
        Wanted::Bring
    }

    /// The unit to bring while nobody waits; `None` when all are here.
    pub(super) fn next(&mut self) -> Option<u64> {
        while let Some(&unit) = self.recorded.get(self.next_recorded) {
            self.next_recorded += 1;
            if self.take(unit as usize) {
                return Some(u64::from(unit));
            }
        }
        while self.next < self.here.len() {
            self.next += 1;
            if self.take(self.next - 1) {
                return Some((self.next - 1) as u64);
            }
        }
        None
    }

    /// What was wanted, for the next time; `None` if there is a record that says so.
    pub(super) fn record(&self) -> Option<impl Iterator<Item = u32>> {
        (self.recorded.is_empty() || !self.wanted.is_empty()).then(|| self.recorded.iter().chain(&self.wanted).copied())
    }

    /// Whether the unit is there and was not here; now it is.
    fn take(&mut self, unit: usize) -> bool {
        self.here.get_mut(unit).is_some_and(|here| !std::mem::replace(here, true))
    }
}

const MAGIC: &[u8; 8] = b"HUSKWSET";

/// The units that were wanted the last time, or none: a record only sets an order, so one that cannot be read is none.
pub(super) fn read_record(path: &Path, units: u64) -> Vec<u32> {
    read(path, units).unwrap_or_default()
}

fn read(path: &Path, units: u64) -> io::Result<Vec<u32>> {
    let mut bytes = Vec::new();
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Ok(Vec::new());
    }
    file.take(8 + 4 * units).read_to_end(&mut bytes)?;
    let Some(list) = bytes.strip_prefix(MAGIC) else { return Ok(Vec::new()) };
    let (units_of_list, _) = list.as_chunks::<4>();
    Ok(units_of_list.iter().map(|unit| u32::from_le_bytes(*unit)).collect())
}

/// Writes the record; without one the next time is only slower.
pub(super) fn write_record(path: &Path, units: impl Iterator<Item = u32>) {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let bytes: Vec<u8> = MAGIC.iter().copied().chain(units.flat_map(u32::to_le_bytes)).collect();
    let written = File::create_new(&beside).and_then(|mut file| file.write_all(&bytes));
    if let Err(error) = written.and_then(|()| fs::rename(&beside, path)) {
        log::debug!("the record of what was wanted is not kept at {}: {error}", path.display());
        let _ = fs::remove_file(&beside);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_wanted_comes_before_what_was_and_that_before_the_rest() {
        let mut plan = Plan::new(6, 0..5, &[3, 1, 9]);
        assert_eq!(plan.record().map(Iterator::count), None);
        assert_eq!((plan.next(), plan.want(5)), (Some(3), Wanted::Here));
        assert_eq!(plan.want(4), Wanted::Bring);
        assert_eq!(plan.want(3), Wanted::Here);
        let rest: Vec<_> = std::iter::from_fn(|| plan.next()).collect();
        assert_eq!(rest, [1, 0, 2]);
        assert_eq!(plan.record().unwrap().collect::<Vec<_>>(), [3, 1, 9, 4]);
    }

    proptest! {
        #[test]
        fn every_unit_is_brought_once(units in 1_u64..64, recorded in prop::collection::vec(any::<u32>(), 0..40),
            wanted in prop::collection::vec((0_u64..64, any::<bool>()), 0..80)) {
            let mut plan = Plan::new(units, 0..units, &recorded);
            let mut brought = vec![0; usize::try_from(units).unwrap()];
            let mut count = |unit: u64| brought[usize::try_from(unit).unwrap()] += 1;
            for (unit, fill) in wanted {
                if plan.want(unit % units) == Wanted::Bring {
                    count(unit % units);
                }
                if fill && let Some(unit) = plan.next() {
                    count(unit);
                }
            }
            while let Some(unit) = plan.next() {
                count(unit);
            }
            prop_assert!(brought.iter().all(|&times| times == 1), "{brought:?}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_any_other_file_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.ws");
        assert!(read_record(&path, 9).is_empty());
        write_record(&path, [5, 1].into_iter());
        assert_eq!(read_record(&path, 9), [5, 1]);
        assert_eq!(read_record(&path, 1), [5], "never more than there are units");
        fs::write(&path, b"HUSK").unwrap();
        assert!(read_record(&path, 9).is_empty());
        assert!(read_record(folder.path(), 9).is_empty());
    }
}
