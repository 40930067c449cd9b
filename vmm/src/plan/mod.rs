//! Where VMs would fit on a host: a pure function of the host's facts and of what each VM asks for. It opens nothing and
//! changes nothing; the same facts and VMs give the same plan, in whatever order the VMs are named.
//!
//! | module | what it holds |
//! | --- | --- |
//! | `ground` | what a host can give: of facts, or of what `husk host --json` printed elsewhere |
//! | `demand` | what a VM asks for, from its configuration file |
//! | `cores` | which CPUs of a node, the pure choice |
//! | `place` | which node, VM by VM |
//! | `report` | the plan as it is told |
//! | `write` | a placement put into a configuration file's text |

pub(crate) mod cores;
mod demand;
mod ground;
mod place;
mod report;
mod write;

#[cfg(test)]
mod tests;

use thiserror::Error;

pub use crate::config::Siblings;
pub use demand::{GuestNode, VmDemand};
pub(crate) use ground::Core;
pub use ground::{Ground, GroundError};
pub use place::plan;
pub use report::{Mend, Miss, NodePlan, Part, Plan, PoolPlan, VmPlan};
pub use write::{WriteError, with_placement};

/// How many vCPUs may be promised for each CPU, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Overcommit(u32);

/// A ratio that cannot be one.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{text}` is no overcommit ratio: use 1 to {OVERCOMMIT_MAX}, with at most three decimals, as in 1.5")]
pub struct OvercommitError {
    /// What was written.
    pub text: String,
}

/// Beyond it a vCPU has less than 16 ms of a second.
const OVERCOMMIT_MAX: u32 = 64;

impl Overcommit {
    /// Every CPU is promised once.
    pub const NONE: Self = Self(1000);

    /// In thousandths.
    #[must_use]
    pub const fn thousandths(self) -> u32 {
        self.0
    }
}

impl std::str::FromStr for Overcommit {
    type Err = OvercommitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let parse = || {
            let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
            let fits = (1..=3).contains(&decimals.len()) && (1..=2).contains(&whole.len());
            if !fits || !digits(whole) || !digits(decimals) {
                return None;
            }
            let thousandths = format!("{whole}{decimals:0<3}").parse().ok()?;
            (1000..=OVERCOMMIT_MAX * 1000).contains(&thousandths).then_some(Self(thousandths))
        };
        parse().ok_or_else(|| OvercommitError { text: text.to_owned() })
    }
}
