//! Why a CPU template was refused.

use crate::cpuid::Register;

/// What is wrong with a CPU template. Each message names the place, the value and what would mend it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuTemplateError {
    /// A field that is there for another architecture.
    #[error("cpu-config has {field}, which is for aarch64: remove it")]
    Arm {
        /// The field.
        field: &'static str,
    },
    /// A string that should be a number.
    #[error("cpu-config has {text:?} as {place}: write a number of 32 bits that starts with 0x or 0b")]
    Number {
        /// Where it is.
        place: String,
        /// What is there.
        text: String,
    },
    /// A string that should be a bitmap.
    #[error(
        "cpu-config has {text:?} as {place}: write 0b and 1 to {width} characters of 0, 1 and x, with or without _"
    )]
    Bitmap {
        /// Where it is.
        place: String,
        /// What is there.
        text: String,
        /// How many bits there are.
        width: u32,
    },
    /// A string that should be a capability.
    #[error("cpu-config has {text:?} as {place}: write the decimal number of a KVM capability, or that behind !")]
    Capability {
        /// Where it is.
        place: String,
        /// What is there.
        text: String,
    },
    /// Flags that KVM does not have.
    #[error("cpu-config has flags {flags:#x} for CPUID leaf {leaf:#x}: KVM has the flags 1, 2 and 4")]
    Flags {
        /// The leaf.
        leaf: u32,
        /// What was given.
        flags: u32,
    },
    /// A leaf that the machine answers by itself.
    #[error("cpu-config changes CPUID leaf {leaf:#x}, in which the machine says {what}: remove it")]
    OwnLeaf {
        /// The leaf.
        leaf: u32,
        /// What it says.
        what: &'static str,
    },
    /// Bits that the machine answers by itself.
    #[error(
        "cpu-config changes {register} of CPUID leaf {leaf:#x} subleaf {subleaf:#x} where the machine says {field}: \
         write x for these bits"
    )]
    OwnField {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// The register.
        register: Register,
        /// What the bits say.
        field: &'static str,
    },
    /// A leaf that this host's KVM does not offer.
    #[error("cpu-config changes CPUID leaf {leaf:#x} subleaf {subleaf:#x}, which this host does not have: remove it")]
    NoLeaf {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
    /// An MSR that the machine or the guest sets.
    #[error("cpu-config changes MSR {index:#x}, which holds {what}: remove it, or write x for these bits")]
    OwnMsr {
        /// The MSR.
        index: u32,
        /// What it holds.
        what: &'static str,
    },
    /// An MSR that this host's KVM does not offer.
    #[error("cpu-config changes MSR {index:#x}, which this host does not have: remove it")]
    NoMsr {
        /// The MSR.
        index: u32,
    },
    /// More MSRs than fit into one call.
    #[error("cpu-config changes so many MSRs that {count} are to be set, KVM takes 256: remove some")]
    TooManyMsrs {
        /// How many there would be.
        count: usize,
    },
}
