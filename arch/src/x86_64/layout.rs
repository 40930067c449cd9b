//! The machine's address map. Everything that has a fixed place in guest memory, in port space or on an interrupt line
//! has it here, and nowhere else; the assertions below are what keeps two things from sharing one place.
//!
//! ```text
//! 0x0000_0000  RAM   GDT, PVH start info, zero page, stack, page tables, command line
//! 0x0009_fc00        EBDA, video memory and ROM of a PC: ACPI tables in 0xe0000..0xf0000, the MP table and the VM
//!                    generation behind them
//! 0x0010_0000  RAM   kernel ... initrd, up to the end of RAM or 3 GiB
//! 0xc000_0000  MMIO  virtio-mmio, IOAPIC, LAPIC, KVM's own pages
//! 0x1_0000_0000 RAM  what does not fit below 3 GiB
//! behind it           memory that can be plugged, from a whole GiB on
//! ```

use crate::gsi::Gsi;
use crate::memory::GuestAddress;

/// One page, in bytes.
pub const PAGE_SIZE: u64 = 4096;

// Low memory: what the VMM leaves for the kernel to find. All of it is RAM that the kernel may reuse once it has read it.

/// The descriptor table that the 64-bit Linux protocol asks for.
pub const GDT_START: GuestAddress = GuestAddress(0x500);
/// Four descriptors, in bytes.
pub const GDT_SIZE: u64 = 32;
/// PVH start info, with its module list and memory map behind it.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// Room for the PVH structures, in bytes.
pub const PVH_START_INFO_SIZE: u64 = PAGE_SIZE;
/// Linux's `boot_params`.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// One page, in bytes.
pub const ZERO_PAGE_SIZE: u64 = PAGE_SIZE;
/// Where the first stack starts; it grows down to [`ZERO_PAGE`]'s end. 16 bytes below the page's end, so that a push by
/// a kernel that expects a return address there stays inside.
pub const BOOT_STACK_TOP: GuestAddress = GuestAddress(0x8ff0);
/// Identity page tables: one PML4, one PDPT, four page directories of 2 MiB pages.
pub const PAGE_TABLES_START: GuestAddress = GuestAddress(0x9000);
/// Six pages, in bytes.
pub const PAGE_TABLES_SIZE: u64 = 6 * PAGE_SIZE;
/// The kernel's command line.
pub const CMDLINE_START: GuestAddress = GuestAddress(0x2_0000);
/// The longest command line, in bytes, with its closing NUL: what Linux on x86 keeps (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
const CMDLINE_SIZE: u64 = 2048;
/// Where usable low memory ends: a PC keeps its extended BIOS data area here.
pub const EBDA_START: GuestAddress = GuestAddress(0x9_fc00);
/// The ACPI tables, the RSDP first: inside the area that is searched for it (ACPI 6.5 §5.2.5.1).
pub const ACPI_START: GuestAddress = GuestAddress(0xe_0000);
/// Room for the ACPI tables, in bytes.
pub const ACPI_SIZE: u64 = 0x1_0000;
/// The MP floating pointer, and the MP table behind it: inside the area that is searched for it (MP 1.4 §4).
pub const MP_START: GuestAddress = GuestAddress(0xf_0000);
/// Room for both, in bytes.
pub const MP_SIZE: u64 = PAGE_SIZE;
/// The page of the VM generation, in which nothing else is: it is never mapped uncached, and no kernel takes it for memory
/// that is free ([`crate::acpi::Generation`]).
pub const GENERATION_START: GuestAddress = GuestAddress(0xf_1000);
/// One page, in bytes.
pub const GENERATION_SIZE: u64 = PAGE_SIZE;
/// Where memory above the PC's BIOS area begins; no kernel segment lies below.
pub const HIGH_RAM_START: GuestAddress = GuestAddress(0x10_0000);

// The 32-bit MMIO hole.

/// The end of RAM below 4 GiB, and the start of what is not RAM.
pub const MMIO_HOLE_START: GuestAddress = GuestAddress(0xc000_0000);
/// The end of the hole: RAM goes on here.
pub const MMIO_HOLE_END: GuestAddress = GuestAddress(0x1_0000_0000);
/// The register window of the first virtio-mmio device.
pub const VIRTIO_MMIO_START: GuestAddress = GuestAddress(0xd000_0000);
/// The size of a window, and the distance to the next one, in bytes.
pub const VIRTIO_MMIO_STRIDE: u64 = PAGE_SIZE;
/// The most virtio-mmio devices: each has an IOAPIC input of its own, [`VIRTIO_MMIO_GSI_FIRST`] to 23.
pub const VIRTIO_MMIO_DEVICES_MAX: u8 = 19;
/// The IOAPIC's registers.
pub const IOAPIC_START: GuestAddress = GuestAddress(0xfec0_0000);
/// Their size, in bytes.
pub const IOAPIC_SIZE: u64 = PAGE_SIZE;
/// The inputs of the IOAPIC, and so the GSIs that reach a guest without MSI.
pub const IOAPIC_PINS: u32 = 24;
/// The LAPIC's registers.
pub const LAPIC_START: GuestAddress = GuestAddress(0xfee0_0000);
/// Their size, in bytes.
pub const LAPIC_SIZE: u64 = PAGE_SIZE;
/// The page for KVM_SET_IDENTITY_MAP_ADDR: Intel CPUs without unrestricted guest mode run real mode on it.
pub const KVM_IDENTITY_MAP: GuestAddress = GuestAddress(0xfeff_c000);
/// The three pages for KVM_SET_TSS_ADDR, of the same use.
pub const KVM_TSS: GuestAddress = GuestAddress(0xfeff_d000);
/// Both together, in bytes.
pub const KVM_PAGES_SIZE: u64 = 4 * PAGE_SIZE;

// Ports.

/// PS/2 controller: data at the first port, command and status at the last.
pub const I8042_PORT: u16 = 0x60;
/// From the data to the command port, in ports.
pub const I8042_PORT_LEN: u16 = 5;
/// Index and data register of the CMOS clock.
pub const CMOS_PORT: u16 = 0x70;
/// Ports of the CMOS clock.
pub const CMOS_PORT_LEN: u16 = 2;
/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Ports of a 16550.
pub const SERIAL_PORT_LEN: u16 = 8;
/// The power management block.
pub const PM_PORT: u16 = 0x600;
/// Ports of the power management block.
pub const PM_PORT_LEN: u16 = 4;
/// ACPI sleep control register (ACPI 6.5 §4.8.3.7).
pub const PM_SLEEP_CONTROL_PORT: u16 = PM_PORT;
/// ACPI sleep status register (ACPI 6.5 §4.8.3.7).
pub const PM_SLEEP_STATUS_PORT: u16 = PM_PORT + 1;
/// ACPI reset register (ACPI 6.5 §4.8.3.6).
pub const PM_RESET_PORT: u16 = PM_PORT + 2;
/// What to write to the reset register.
pub const PM_RESET_VALUE: u8 = 1;
/// Where SLP_TYP begins in the sleep control register, in bits; it is three bits wide.
pub const PM_SLEEP_TYPE_SHIFT: u8 = 2;
/// SLP_EN in the sleep control register.
pub const PM_SLEEP_ENABLE: u8 = 1 << 5;
/// The SLP_TYP of `\_S5`, power off.
pub const PM_SLEEP_TYPE_S5: u8 = 5;

// Interrupt lines. GSI 0 is the PIT's, 2 is where the two 8259 meet; Linux takes neither from an ACPI table.

/// The keyboard: edge triggered, as on ISA.
pub const KEYBOARD_GSI: Gsi = Gsi::new(1);
/// The event device's line for the power button: edge triggered.
pub const GED_GSI: Gsi = Gsi::new(3);
/// The first serial port.
pub const SERIAL_GSI: Gsi = Gsi::new(4);
/// The first virtio-mmio device; each next one has the next GSI.
pub const VIRTIO_MMIO_GSI_FIRST: Gsi = Gsi::new(5);

/// The event device's line for a new VM generation, where there is one: edge triggered; the IOAPIC's last input.
const GENERATION_GSI: Gsi = Gsi::new(IOAPIC_PINS - 1);

/// The line of a new VM generation, or `None` where the last of all possible virtio-mmio devices has it: the guest then finds
/// a new generation only when it looks.
pub fn generation_gsi(virtio_mmio: &[VirtioMmioWindow]) -> Option<Gsi> {
    virtio_mmio.iter().all(|window| window.gsi != GENERATION_GSI).then_some(GENERATION_GSI)
}

/// The registers and the interrupt line of one virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmioWindow {
    /// The first register.
    pub base: GuestAddress,
    /// The size of the registers and the configuration space, in bytes.
    pub size: u64,
    /// The interrupt line: edge triggered, active high, not shared.
    pub gsi: Gsi,
}

/// The window of virtio-mmio device number `index`, or `None` beyond [`VIRTIO_MMIO_DEVICES_MAX`].
pub fn virtio_mmio_window(index: u8) -> Option<VirtioMmioWindow> {
    (index < VIRTIO_MMIO_DEVICES_MAX).then(|| VirtioMmioWindow {
        base: GuestAddress(VIRTIO_MMIO_START.0 + u64::from(index) * VIRTIO_MMIO_STRIDE),
        size: VIRTIO_MMIO_STRIDE,
        gsi: Gsi::new(VIRTIO_MMIO_GSI_FIRST.get() + u32::from(index)),
    })
}

/// Where `size_bytes` of guest memory go: below the hole first, the rest from 4 GiB up. Each range is its first address
/// and its length in bytes; there is none of length 0.
pub fn ram_ranges(size_bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = size_bytes.min(MMIO_HOLE_START.0);
    let high = size_bytes - low;
    let mut ranges = vec![(GuestAddress(0), low), (MMIO_HOLE_END, high)];
    ranges.retain(|&(_, len)| len > 0);
    ranges
}

/// Where guest addresses end: what Linux on x86-64 maps with four levels of page tables, and KVM takes everywhere.
pub const PHYSICAL_END: GuestAddress = GuestAddress(1 << 46);

/// Where memory begins that is plugged later in blocks of `block_bytes`, a power of two, in a machine of so much RAM: above
/// all of it and of the hole, at a multiple of 1 GiB and of a block.
pub fn pluggable_start(ram_bytes: u64, block_bytes: u64) -> GuestAddress {
    let free = MMIO_HOLE_END.0.saturating_add(ram_bytes.saturating_sub(MMIO_HOLE_START.0));
    let start = free.checked_next_multiple_of(block_bytes.max(1 << 30));
    // At the end of all addresses there is no room for any.
    GuestAddress(start.unwrap_or(u64::MAX))
}

/// Where the memory of nodes goes that take guest memory in turn: for each node the ranges of [`ram_ranges`], cut where the
/// next node begins.
pub fn node_ranges(node_bytes: &[u64]) -> Vec<Vec<(GuestAddress, u64)>> {
    let mut ranges = ram_ranges(node_bytes.iter().sum()).into_iter();
    let mut rest = ranges.next();
    let mut take = |bytes: u64| {
        let mut taken = Vec::with_capacity(1);
        let mut wanted = bytes;
        while let (Some((start, length)), 1..) = (rest, wanted) {
            let here = length.min(wanted);
            taken.push((start, here));
            wanted -= here;
            rest = match length - here {
                0 => ranges.next(),
                left => Some((GuestAddress(start.0 + here), left)),
            };
        }
        taken
    };
    node_bytes.iter().map(|&bytes| take(bytes)).collect()
}

/// Each entry is a name, its first address and the address behind it. In order of address.
type Places<const N: usize> = [(&'static str, u64, u64); N];

const LOW_MEMORY: Places<10> = [
    ("GDT", GDT_START.0, GDT_START.0 + GDT_SIZE),
    ("PVH start info", PVH_START_INFO.0, PVH_START_INFO.0 + PVH_START_INFO_SIZE),
    ("zero page", ZERO_PAGE.0, ZERO_PAGE.0 + ZERO_PAGE_SIZE),
    ("stack", ZERO_PAGE.0 + ZERO_PAGE_SIZE, BOOT_STACK_TOP.0 + 16),
    ("page tables", PAGE_TABLES_START.0, PAGE_TABLES_START.0 + PAGE_TABLES_SIZE),
    ("command line", CMDLINE_START.0, CMDLINE_START.0 + CMDLINE_SIZE),
    ("EBDA and video memory", EBDA_START.0, ACPI_START.0),
    ("ACPI tables", ACPI_START.0, ACPI_START.0 + ACPI_SIZE),
    ("MP table", MP_START.0, MP_START.0 + MP_SIZE),
    ("VM generation", GENERATION_START.0, GENERATION_START.0 + GENERATION_SIZE),
];

const HOLE: Places<4> = [
    ("virtio-mmio", VIRTIO_MMIO_START.0, VIRTIO_MMIO_START.0 + VIRTIO_MMIO_DEVICES_MAX as u64 * VIRTIO_MMIO_STRIDE),
    ("IOAPIC", IOAPIC_START.0, IOAPIC_START.0 + IOAPIC_SIZE),
    ("LAPIC", LAPIC_START.0, LAPIC_START.0 + LAPIC_SIZE),
    ("KVM's pages", KVM_IDENTITY_MAP.0, KVM_IDENTITY_MAP.0 + KVM_PAGES_SIZE),
];

const PORTS: Places<4> = [
    ("i8042", I8042_PORT as u64, (I8042_PORT + I8042_PORT_LEN) as u64),
    ("CMOS", CMOS_PORT as u64, (CMOS_PORT + CMOS_PORT_LEN) as u64),
    ("serial", SERIAL_PORT as u64, (SERIAL_PORT + SERIAL_PORT_LEN) as u64),
    ("power management", PM_PORT as u64, (PM_PORT + PM_PORT_LEN) as u64),
];

const fn ordered_and_apart<const N: usize>(places: &Places<N>, first: u64, end: u64) -> bool {
    let mut free = first;
    let mut i = 0;
    while i < N {
        let (_, start, stop) = places[i];
        if start < free || stop <= start || stop > end {
            return false;
        }
        free = stop;
        i += 1;
    }
    true
}

// The first 0x500 bytes are the real-mode vectors and the BIOS data area.
const _: () = assert!(ordered_and_apart(&LOW_MEMORY, 0x500, HIGH_RAM_START.0));
const _: () = assert!(ordered_and_apart(&HOLE, MMIO_HOLE_START.0, MMIO_HOLE_END.0));
const _: () = assert!(ordered_and_apart(&PORTS, 0, 0x1_0000));

const _: () = assert!(CMDLINE_SIZE == CMDLINE_MAX as u64);
const _: () = assert!(GDT_START.0.is_multiple_of(8) && ZERO_PAGE.0.is_multiple_of(PAGE_SIZE));
const _: () = assert!(PAGE_TABLES_START.0.is_multiple_of(PAGE_SIZE) && PVH_START_INFO.0.is_multiple_of(8));
const _: () = assert!(BOOT_STACK_TOP.0.is_multiple_of(16));
// ACPI 6.5 §5.2.5.1: the RSDP stands on a 16 byte boundary between 0xe0000 and 0xfffff.
const _: () = assert!(ACPI_START.0.is_multiple_of(16) && ACPI_START.0 >= 0xe_0000);
// MP 1.4 §4: the floating pointer stands on a 16 byte boundary between 0xf0000 and 0xfffff.
const _: () = assert!(MP_START.0.is_multiple_of(16) && MP_START.0 >= 0xf_0000);
const _: () = assert!(KVM_TSS.0 == KVM_IDENTITY_MAP.0 + PAGE_SIZE && KVM_PAGES_SIZE == 4 * PAGE_SIZE);
const _: () = assert!(MMIO_HOLE_START.0.is_multiple_of(1 << 30) && MMIO_HOLE_END.0.is_multiple_of(1 << 30));
// The page is the generation's alone, and among those that every memory map says are not RAM.
const _: () = assert!(GENERATION_START.0.is_multiple_of(PAGE_SIZE) && GENERATION_SIZE.is_multiple_of(PAGE_SIZE));
const _: () = assert!(EBDA_START.0 <= GENERATION_START.0 && GENERATION_START.0 + GENERATION_SIZE <= HIGH_RAM_START.0);
const _: () = assert!(KEYBOARD_GSI.get() < GED_GSI.get());
const _: () = assert!(GED_GSI.get() < SERIAL_GSI.get() && SERIAL_GSI.get() < VIRTIO_MMIO_GSI_FIRST.get());
const _: () = assert!(VIRTIO_MMIO_GSI_FIRST.get() + VIRTIO_MMIO_DEVICES_MAX as u32 == IOAPIC_PINS);

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_up_to_the_hole_is_one_range_and_the_rest_goes_above_4_gib() {
        assert_eq!(ram_ranges(0), []);
        assert_eq!(ram_ranges(32 << 20), [(GuestAddress(0), 32 << 20)]);
        assert_eq!(ram_ranges(3 * GIB), [(GuestAddress(0), 3 * GIB)]);
        assert_eq!(ram_ranges(3 * GIB + 1), [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 1)]);
        assert_eq!(ram_ranges(6 * GIB), [(GuestAddress(0), 3 * GIB), (GuestAddress(4 * GIB), 3 * GIB)]);
        let nodes = node_ranges(&[GIB, 3 * GIB, GIB]);
        let expected = [
            vec![(GuestAddress(0), GIB)],
            vec![(GuestAddress(GIB), 2 * GIB), (GuestAddress(4 * GIB), GIB)],
            vec![(GuestAddress(5 * GIB), GIB)],
        ];
        assert_eq!(nodes, expected);
        assert_eq!(node_ranges(&[5 * GIB]), [ram_ranges(5 * GIB)]);
        assert_eq!(ram_ranges(u64::MAX).iter().map(|r| r.1).sum::<u64>(), u64::MAX);
    }

    #[test]
    fn there_is_a_window_and_a_gsi_for_each_of_19_devices_and_no_more() {
        let windows: Vec<_> = (0..=u8::MAX).map_while(virtio_mmio_window).collect();
        assert_eq!(windows.len(), 19);
        assert_eq!((windows[0].base.0, windows[0].gsi.get()), (0xd000_0000, 5));
        assert_eq!((windows[18].base.0, windows[18].gsi.get()), (0xd001_2000, 23));
        assert_eq!((generation_gsi(&[]), generation_gsi(&windows[..18])), (Some(Gsi::new(23)), Some(Gsi::new(23))));
        assert_eq!(generation_gsi(&windows), None, "the last device has it");
    }

    #[test]
    fn the_overlap_check_sees_overlap_disorder_and_overflow() {
        assert!(!ordered_and_apart(&[("a", 0, 2), ("b", 1, 3)], 0, 9));
        assert!(!ordered_and_apart(&[("b", 4, 5), ("a", 1, 3)], 0, 9));
        assert!(!ordered_and_apart(&[("a", 0, 10)], 0, 9));
        assert!(ordered_and_apart(&[("a", 0, 2), ("b", 2, 3)], 0, 3));
    }
}
