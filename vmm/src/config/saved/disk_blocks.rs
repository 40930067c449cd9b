//! The physical blocks that a saved machine's disks were given: a section of its own, of those machines that have such
//! disks.

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;

/// By the ids of the disks, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBlocksState(Vec<(String, u32)>);

impl DiskBlocksState {
    /// What a snapshot keeps of `config`, if it has such disks.
    #[must_use]
    pub fn save(config: &VmConfig) -> Option<Self> {
        let given = config.disks.iter().filter_map(|disk| Some((disk.id.clone(), disk.tuning.physical_block?)));
        let given: Vec<_> = given.collect();
        (!given.is_empty()).then_some(Self(given))
    }

    /// Puts it back, unchecked.
    ///
    /// # Errors
    /// The id of a disk that `config` does not have.
    pub fn restore(self, config: &mut VmConfig) -> Result<(), String> {
        let Self(given) = self;
        for (id, bytes) in given {
            match config.disks.iter_mut().find(|disk| disk.id == id) {
                Some(disk) => disk.tuning.physical_block = Some(bytes),
                None => return Err(id),
            }
        }
        Ok(())
    }
}
