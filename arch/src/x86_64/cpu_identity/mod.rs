//! Which CPU a guest has seen, and whether a host can go on with it.
//!
//! A guest looks at CPUID when it starts and relies on what it found. So a host must have every feature that the guest's vCPUs
//! had; what it has beyond stays hidden, as the restored vCPUs answer CPUID as they did.

mod features;

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use self::features::{Place, WORDS, Word};

/// A CPU, as far as a guest depends on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuIdentity {
    vendor: [u8; 12],
    /// Leaf 1's EAX.
    signature: u32,
    /// How many bits a physical address has.
    address_bits: u8,
    /// The features, in the order of the table.
    words: Vec<FeatureWord>,
}

/// The features in one register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FeatureWord {
    place: Place,
    bits: u32,
}

/// Why a guest cannot go on with a host's CPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    /// Another vendor's CPUs differ in more than features.
    #[error("the guest ran on a CPU of {saved}, this host's is of {host}: restore it on a host of the same vendor")]
    Vendor {
        /// Whose CPU it was.
        saved: String,
        /// Whose it is.
        host: String,
    },
    /// The host lacks features.
    #[error("the guest's CPU ({saved}) has {}, which this host's ({host}) lacks: restore it on a host that has", features.join(", "))]
    Features {
        /// The CPU that it was.
        saved: String,
        /// The CPU that it is.
        host: String,
        /// What is missing, by the names that Linux has for it.
        features: Vec<String>,
    },
    /// Physical addresses that the guest takes for valid are not.
    #[error(
        "the guest's CPU has physical addresses of {saved} bits, this host's of {host}: restore it on a host that has as many"
    )]
    AddressBits {
        /// How many they were.
        saved: u8,
        /// How many they are.
        host: u8,
    },
}

impl CpuIdentity {
    /// The CPU that answers CPUID so, as KVM_GET_CPUID2 tells it of a vCPU: where ring 0 is emulated, ring 3 sees more of the
    /// processor than the vCPU was given.
    #[must_use]
    pub fn of(cpuid: &[kvm_cpuid_entry2]) -> Self {
        let leaf = |function| cpuid.iter().find(|entry| entry.function == function).copied().unwrap_or_default();
        let mut vendor = [0; 12];
        for (place, word) in vendor.as_chunks_mut().0.iter_mut().zip([leaf(0).ebx, leaf(0).edx, leaf(0).ecx]) {
            *place = word.to_le_bytes();
        }
        let bits = |place: Place| {
            let mut entries = cpuid.iter().filter(|entry| (entry.function, entry.index) == (place.leaf, place.subleaf));
            entries.next().map_or(0, |entry| *place.register.of(&mut entry.clone()))
        };
        let words = WORDS.iter().map(|word| FeatureWord { place: word.place, bits: bits(word.place) & !word.ignored });
        Self {
            vendor,
            signature: leaf(1).eax,
            address_bits: leaf(0x8000_0008).eax.to_le_bytes()[0],
            words: words.filter(|word| word.bits != 0).collect(),
        }
    }

    /// The vendor's name, as CPUID tells it: printable, whoever wrote it.
    #[must_use]
    pub fn vendor(&self) -> String {
        let name = self.vendor.iter().take_while(|byte| **byte != 0);
        name.map(|&byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }).collect()
    }

    /// Whether a guest that has seen this CPU can go on with `host`'s.
    ///
    /// # Errors
    /// [`Incompatible`] names the vendor or what is missing.
    pub fn check(&self, host: &Self) -> Result<(), Incompatible> {
        if self.vendor != host.vendor {
            return Err(Incompatible::Vendor { saved: self.vendor(), host: host.vendor() });
        }
        let mut features: Vec<String> = Vec::new();
        for word in &self.words {
            let there = host.words.iter().find(|other| other.place == word.place).map_or(0, |other| other.bits);
            let missing = word.bits & !there;
            for name in (0..u32::BITS).filter(|bit| missing & (1 << bit) != 0).map(|bit| name(word.place, bit)) {
                if !features.contains(&name) {
                    features.push(name);
                }
            }
        }
        if !features.is_empty() {
            return Err(Incompatible::Features { saved: self.to_string(), host: host.to_string(), features });
        }
        if self.address_bits > host.address_bits {
            return Err(Incompatible::AddressBits { saved: self.address_bits, host: host.address_bits });
        }
        Ok(())
    }
}

/// A feature by its name, or by its place where it has none or is of the future.
fn name(place: Place, bit: u32) -> String {
    match Word::at(place).and_then(|word| word.name(bit)) {
        Some(name) => name.to_owned(),
        None => format!("CPUID {:#x}.{} {} bit {bit}", place.leaf, place.subleaf, place.register),
    }
}

/// Family, model and stepping: SDM 2A CPUID figure 3-6, APM 3 §E.3.2.
impl fmt::Display for CpuIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let field = |low: u32, bits: u32| (self.signature >> low) & ((1 << bits) - 1);
        let (family, model) = (field(8, 4), field(4, 4));
        let whole_family = if family == 0xf { family + field(20, 8) } else { family };
        let whole_model = if matches!(family, 0x6 | 0xf) { field(16, 4) << 4 | model } else { model };
        write!(f, "{} family {whole_family} model {whole_model} stepping {}", self.vendor(), field(0, 4))
    }
}

#[cfg(test)]
mod tests;
