//! The tables of the guest's NUMA nodes: SRAT and SLIT.

use acpi_tables::Aml;
use acpi_tables::srat::MemoryAffinity;

use crate::topology::NumaNode;

/// ACPI 6.5's.
pub(super) const SRAT_REVISION: u8 = 3;
/// How far another node is that nothing is said of: the field's own custom.
const DISTANCE_ELSEWHERE: u8 = 20;
/// How far a node is from itself (ACPI 6.5 §5.2.17).
const DISTANCE_HERE: u8 = 10;

/// What the SRAT has behind its header (ACPI 6.5 §5.2.16).
pub(super) fn srat_body(nodes: &[NumaNode]) -> Vec<u8> {
    // A reserved field that must be 1, and eight bytes that must be 0.
    let mut body = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (domain, node) in (0_u8..).zip(nodes) {
        for cpu in &node.cpus {
            body.extend(processor(domain, *cpu));
        }
        for &(start, length) in &node.memory {
            MemoryAffinity::new(domain.into(), start.0, length).enabled().to_aml_bytes(&mut body);
        }
        if let Some((start, length)) = node.pluggable {
            MemoryAffinity::new(domain.into(), start.0, length).enabled().hotpluggable().to_aml_bytes(&mut body);
        }
    }
    body
}

/// A processor local APIC affinity structure (ACPI 6.5 §5.2.16.1): type, length, the domain's low byte, the APIC ID, flags
/// (enabled), the local SAPIC's, the domain's high bytes, the clock domain.
fn processor(domain: u8, apic_id: u8) -> [u8; 16] {
    [0, 16, domain, apic_id, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The SLIT's (ACPI 6.5 §5.2.17).
pub(super) const SLIT_REVISION: u8 = 1;

/// What the SLIT has behind its header: the number of nodes, and row by row how far each is from each. Of two nodes whose
/// distance one of them does not say, it is what the other says.
pub(super) fn slit_body(nodes: &[NumaNode]) -> Vec<u8> {
    let count = u64::try_from(nodes.len()).expect("at most a node a vCPU");
    let said = |from: usize, to: usize| nodes[from].distances.get(to).copied();
    let distance = |from: usize, to: usize| match from == to {
        true => DISTANCE_HERE,
        false => said(from, to).or_else(|| said(to, from)).unwrap_or(DISTANCE_ELSEWHERE),
    };
    let rows = (0..nodes.len()).flat_map(|from| (0..nodes.len()).map(move |to| (from, to)));
    count.to_le_bytes().into_iter().chain(rows.map(|(from, to)| distance(from, to))).collect()
}
