//! The template's JSON, as Firecracker documents it (docs/cpu_templates: cpu-templates.md, schema.json), and what of it can
//! be checked without a host.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::{
    CapabilityCheck, CpuTemplate, CpuTemplateError, CpuidModifier, MsrModifier, RegisterModifier, owner_of_msr,
};
use crate::cpuid::Register;
use crate::x86_64::cpuid::owner_of_leaf;

/// KVM api: KVM_GET_SUPPORTED_CPUID, all of its flags.
const FLAGS: u32 = 0b111;

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Template {
    #[serde(default)]
    kvm_capabilities: Vec<String>,
    #[serde(default)]
    cpuid_modifiers: Vec<Leaf>,
    #[serde(default)]
    msr_modifiers: Vec<Msr>,
    #[serde(skip_serializing)]
    vcpu_features: Option<IgnoredAny>,
    #[serde(skip_serializing)]
    reg_modifiers: Option<IgnoredAny>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Leaf {
    leaf: String,
    subleaf: String,
    flags: u32,
    modifiers: Vec<Modifier>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Modifier {
    register: Register,
    bitmap: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Msr {
    addr: String,
    bitmap: String,
}

impl TryFrom<Template> for CpuTemplate {
    type Error = CpuTemplateError;

    fn try_from(json: Template) -> Result<Self, CpuTemplateError> {
        for (field, found) in [("vcpu_features", json.vcpu_features), ("reg_modifiers", json.reg_modifiers)] {
            if found.is_some() {
                return Err(CpuTemplateError::Arm { field });
            }
        }
        Ok(Self {
            capabilities: each(&json.kvm_capabilities, "kvm_capabilities", |text, place| capability(text, place))?,
            cpuid: each(&json.cpuid_modifiers, "cpuid_modifiers", cpuid_modifier)?,
            msrs: each(&json.msr_modifiers, "msr_modifiers", msr_modifier)?,
        })
    }
}

/// What it was read from, but for how its numbers were written: numbers in hexadecimal, bitmaps in full width.
impl From<CpuTemplate> for Template {
    fn from(template: CpuTemplate) -> Self {
        let capability = |check: CapabilityCheck| match check {
            CapabilityCheck::Add(number) => number.to_string(),
            CapabilityCheck::Remove(number) => format!("!{number}"),
        };
        let modifier = |RegisterModifier { register, mask, value }| Modifier {
            register,
            bitmap: bitmap_text(u64::from(mask), u64::from(value), u32::BITS),
        };
        let leaf = |CpuidModifier { leaf, subleaf, flags, registers }: CpuidModifier| Leaf {
            leaf: format!("{leaf:#x}"),
            subleaf: format!("{subleaf:#x}"),
            flags,
            modifiers: registers.into_iter().map(modifier).collect(),
        };
        let msr = |MsrModifier { index, mask, value }| Msr {
            addr: format!("{index:#x}"),
            bitmap: bitmap_text(mask, value, u64::BITS),
        };
        Self {
            kvm_capabilities: template.capabilities.into_iter().map(capability).collect(),
            cpuid_modifiers: template.cpuid.into_iter().map(leaf).collect(),
            msr_modifiers: template.msrs.into_iter().map(msr).collect(),
            vcpu_features: None,
            reg_modifiers: None,
        }
    }
}

/// Converts each element; the conversion is told the element's place.
fn each<T, U>(
    list: &[T],
    place: &str,
    convert: impl Fn(&T, &str) -> Result<U, CpuTemplateError>,
) -> Result<Vec<U>, CpuTemplateError> {
    list.iter().enumerate().map(|(i, element)| convert(element, &format!("{place}[{i}]"))).collect()
}

fn capability(text: &str, place: &str) -> Result<CapabilityCheck, CpuTemplateError> {
    let (number, check): (_, fn(u32) -> CapabilityCheck) = match text.strip_prefix('!') {
        Some(number) => (number, CapabilityCheck::Remove),
        None => (text, CapabilityCheck::Add),
    };
    parse(number, 10)
        .map(check)
        .ok_or_else(|| CpuTemplateError::Capability { place: place.to_owned(), text: text.to_owned() })
}

fn cpuid_modifier(json: &Leaf, place: &str) -> Result<CpuidModifier, CpuTemplateError> {
    let leaf = number(&json.leaf, &format!("{place}.leaf"))?;
    let subleaf = number(&json.subleaf, &format!("{place}.subleaf"))?;
    if json.flags & !FLAGS != 0 {
        return Err(CpuTemplateError::Flags { leaf, flags: json.flags });
    }
    if let Some(what) = owner_of_leaf(leaf) {
        return Err(CpuTemplateError::OwnLeaf { leaf, what });
    }
    let registers = each(&json.modifiers, &format!("{place}.modifiers"), |modifier, place| {
        let (mask, value) = bitmap(&modifier.bitmap, u32::BITS, place)?;
        let low = |bits: u64| u32::try_from(bits).expect("a bitmap of 32 bits");
        Ok(RegisterModifier { register: modifier.register, mask: low(mask), value: low(value) })
    })?;
    Ok(CpuidModifier { leaf, subleaf, flags: json.flags, registers })
}

fn msr_modifier(json: &Msr, place: &str) -> Result<MsrModifier, CpuTemplateError> {
    let index = number(&json.addr, &format!("{place}.addr"))?;
    let (mask, value) = bitmap(&json.bitmap, u64::BITS, place)?;
    match owner_of_msr(index, mask) {
        Some(what) => Err(CpuTemplateError::OwnMsr { index, what }),
        None => Ok(MsrModifier { index, mask, value }),
    }
}

fn number(text: &str, place: &str) -> Result<u32, CpuTemplateError> {
    let parsed = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
        (Some(digits), _) => parse(digits, 16),
        (_, Some(digits)) => parse(digits, 2),
        _ => None,
    };
    parsed.ok_or_else(|| CpuTemplateError::Number { place: place.to_owned(), text: text.to_owned() })
}

/// Digits and nothing else; the standard library takes a sign too.
fn parse(digits: &str, radix: u32) -> Option<u32> {
    let only_digits = digits.chars().all(|digit| digit.is_digit(radix));
    only_digits.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

/// Which bits are chosen, and as what. The last character is bit 0; what is missing at the front is x.
fn bitmap(text: &str, width: u32, place: &str) -> Result<(u64, u64), CpuTemplateError> {
    let wrong = || CpuTemplateError::Bitmap { place: format!("{place}.bitmap"), text: text.to_owned(), width };
    let bits = text.strip_prefix("0b").ok_or_else(wrong)?;
    let (mut mask, mut value, mut count) = (0, 0, 0);
    for bit in bits.chars().filter(|bit| *bit != '_') {
        let (chosen, set) = match bit {
            '0' => (1, 0),
            '1' => (1, 1),
            'x' => (0, 0),
            _ => return Err(wrong()),
        };
        count += 1;
        if count > width {
            return Err(wrong());
        }
        mask = mask << 1 | chosen;
        value = value << 1 | set;
    }
    if count == 0 { Err(wrong()) } else { Ok((mask, value)) }
}

/// The reverse of [`bitmap`], with all bits.
fn bitmap_text(mask: u64, value: u64, width: u32) -> String {
    let bit = |place: u32| match (mask >> place & 1, value >> place & 1) {
        (0, _) => 'x',
        (_, 0) => '0',
        _ => '1',
    };
    "0b".chars().chain((0..width).rev().map(bit)).collect()
}
