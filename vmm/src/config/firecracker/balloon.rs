//! The balloon's bodies of Firecracker's API, field for field.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::{BalloonConfig, MIB};

/// `Balloon`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Balloon {
    /// What the balloon shall have, in MiB.
    pub amount_mib: u32,
    /// Whether a guest that is short of memory may take pages out by itself.
    pub deflate_on_oom: bool,
    /// How often the guest is asked for statistics, in seconds; 0 is a balloon without.
    #[serde(default)]
    pub stats_polling_interval_s: u16,
    /// Whether the guest can be asked which pages are free.
    #[serde(default)]
    pub free_page_hinting: bool,
    /// Whether the guest tells which pages have become free.
    #[serde(default)]
    pub free_page_reporting: bool,
}

/// `BalloonUpdate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonUpdate {
    /// What the balloon shall have from now on, in MiB.
    pub amount_mib: u32,
}

/// `BalloonStatsUpdate`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatsUpdate {
    /// How often the guest is asked for statistics from now on, in seconds.
    pub stats_polling_interval_s: u16,
}

/// `BalloonStartCmd`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BalloonStartCmd {
    /// Whether the guest has its pages back as soon as it has told all of them; absent is true.
    pub acknowledge_on_stop: Option<bool>,
}

/// `BalloonHintingStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BalloonHintingStatus {
    /// The last command that the host gave.
    pub host_cmd: u32,
    /// The last that the guest gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_cmd: Option<u32>,
}

/// `BalloonStats`. What the guest has not told is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct BalloonStats {
    /// What the balloon shall have, in pages of 4 KiB.
    pub target_pages: u32,
    /// What it has.
    pub actual_pages: u32,
    /// What it shall have, in MiB.
    pub target_mib: u32,
    /// What it has.
    pub actual_mib: u32,
    /// What the guest tells of its memory, by the document's names.
    #[serde(flatten)]
    pub told: std::collections::BTreeMap<&'static str, u64>,
}

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u32 = 256;

impl Balloon {
    pub(super) fn into_config(self) -> BalloonConfig {
        let Self { amount_mib, deflate_on_oom, stats_polling_interval_s, free_page_hinting, free_page_reporting } =
            self;
        BalloonConfig {
            target_bytes: u64::from(amount_mib) * MIB,
            deflate_on_oom,
            statistics: (stats_polling_interval_s > 0).then(|| Duration::from_secs(stats_polling_interval_s.into())),
            hinting: free_page_hinting,
            reporting: free_page_reporting,
        }
    }

    /// A balloon in Firecracker's terms.
    #[must_use]
    pub fn describe(config: &BalloonConfig) -> Self {
        let seconds = config.statistics.map_or(0, |interval| interval.as_secs());
        Self {
            amount_mib: u32::try_from(config.target_bytes / MIB).unwrap_or(u32::MAX),
            deflate_on_oom: config.deflate_on_oom,
            stats_polling_interval_s: u16::try_from(seconds).unwrap_or(u16::MAX),
            free_page_hinting: config.hinting,
            free_page_reporting: config.reporting,
        }
    }
}

impl BalloonStats {
    /// Of a balloon that shall have `target_pages` and has `actual_pages`.
    #[must_use]
    pub fn new(target_pages: u32, actual_pages: u32, told: impl Iterator<Item = (&'static str, u64)>) -> Self {
        let [target_mib, actual_mib] = [target_pages, actual_pages].map(|pages| pages / PAGES_PER_MIB);
        Self { target_pages, actual_pages, target_mib, actual_mib, told: told.collect() }
    }
}
