//! Intel's MultiProcessor Specification 1.4 §4: CPUs and I/O APICs of a machine without ACPI.

use crate::memory;
use crate::platform::Platform;

/// Finds the table by its floating pointer and reads it.
pub(crate) fn read(platform: &mut Platform) -> bool {
    // §4: the last KiB of base memory, or the BIOS area.
    let mut places = (0x9_fc00u64..0xa_0000).chain(0xf_0000..0x10_0000).step_by(16);
    let Some(pointer) = places.find(|at| memory::read::<[u8; 4]>(*at) == *b"_MP_") else {
        return false;
    };
    let table = u64::from(memory::read::<u32>(pointer + 4));
    if table == 0 || memory::read::<[u8; 4]>(table) != *b"PCMP" {
        return false;
    }
    let mut at = table + 44;
    // By the table's length, as Linux does: some firmware leaves the count of entries at 0.
    while at < table + u64::from(memory::read::<u16>(table + 4)) {
        const ENABLED: u8 = 1;
        let kind = memory::read::<u8>(at);
        if kind == 0 && memory::read::<u8>(at + 3) & ENABLED != 0 {
            platform.add_cpu(u32::from(memory::read::<u8>(at + 1)));
        } else if kind == 2 && memory::read::<u8>(at + 3) & ENABLED != 0 {
            platform.add_ioapic(u64::from(memory::read::<u32>(at + 4)), 0);
        }
        at += if kind == 0 { 20 } else { 8 };
    }
    true
}
