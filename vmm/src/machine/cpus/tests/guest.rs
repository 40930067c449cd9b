//! The guest, in ring 0 of long mode: it keeps values in registers, lets two timers tick, starts the second vCPU, checks
//! itself at every tick and tells by port writes what it sees. Where its words are in memory is said once, below.
#![expect(unsafe_code, reason = "the guest's code is found by its labels")]

use std::arch::global_asm;
use std::ops::Range;

use arch::memory::Bytes;
use arch::{GuestAddress, GuestMemory};

/// Where the guest begins.
pub(super) const ENTRY: GuestAddress = GuestAddress(0x10_0000);
/// Failure, LAPIC ticks, PIT ticks, TSC low, TSC high: 32 bits each, the last four ports wide.
pub(super) const PORTS: Range<u64> = 0xe0..0xe8;
/// Ticks of the LAPIC's timer.
pub(super) const LAPIC_TICKS: GuestAddress = GuestAddress(0x30_0000);
/// Interrupts that told of a new generation.
pub(super) const GENERATIONS: GuestAddress = GuestAddress(0x30_0008);
/// Not 0: the guest shall start the third vCPU.
pub(super) const START_THIRD: GuestAddress = GuestAddress(0x30_000c);
/// Not 0: the guest shall mask the generation's interrupt.
pub(super) const MASK_GENERATION: GuestAddress = GuestAddress(0x30_0010);
/// How far the second vCPU has counted.
pub(super) const SECOND_COUNTS: GuestAddress = GuestAddress(0x600);
/// How far the third has.
pub(super) const THIRD_COUNTS: GuestAddress = GuestAddress(0x604);
/// Where they start, by their start-up IPIs' vectors 0x10 and 0x11.
const SECOND_ENTRY: GuestAddress = GuestAddress(0x1_0000);
const THIRD_ENTRY: GuestAddress = GuestAddress(0x1_1000);

/// In real mode: xor ax, ax; mov ds, ax; again: lock inc dword [`counter`]; jmp again.
const fn counting(counter: GuestAddress) -> [u8; 12] {
    let [low, high, ..] = counter.0.to_le_bytes();
    [0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0x66, 0xff, 0x06, low, high, 0xeb, 0xf8]
}

global_asm!(
    ".pushsection .rodata",
    ".balign 16",
    "husk_state_guest:",
    "mov esp, 0x2ff000",
    "lea rax, [rip + 20f]", // the LAPIC's timer
    "mov edi, 0x301400",
    "call 40f",
    "lea rax, [rip + 21f]", // the PIT
    "mov edi, 0x301410",
    "call 40f",
    "lea rax, [rip + 22f]", // a new generation
    "mov edi, 0x301420",
    "call 40f",
    "lidt [rip + 30f]",
    "mov al, 0xff", // both 8259 off
    "out 0x21, al",
    "out 0xa1, al",
    "mov ecx, 0xfec00000", // IOAPIC: the PIT's input 0 to vector 0x41, the generation's 23 to 0x42
    "mov dword ptr [rcx], 0x10",
    "mov dword ptr [rcx + 0x10], 0x41",
    "mov dword ptr [rcx], 0x3e",
    "mov dword ptr [rcx + 0x10], 0x42",
    "mov ebx, 0xfee00000", // LAPIC: on, its timer every 10 ms to vector 0x40
    "mov dword ptr [rbx + 0xf0], 0x1ff",
    "mov dword ptr [rbx + 0x3e0], 0xb",
    "mov dword ptr [rbx + 0x320], 0x20040",
    "mov dword ptr [rbx + 0x380], 10000000",
    "mov al, 0x34", // PIT: channel 0, rate generator, 100 Hz
    "out 0x43, al",
    "mov al, 0x9c",
    "out 0x40, al",
    "mov al, 0x2e",
    "out 0x40, al",
    "mov dword ptr [rbx + 0x310], 0x01000000", // INIT and start-up IPI to the second vCPU, if there is one
    "mov dword ptr [rbx + 0x300], 0x4500",
    "mov dword ptr [rbx + 0x310], 0x01000000",
    "mov dword ptr [rbx + 0x300], 0x4610",
    "movabs r12, 0x0123456789abcdef",
    "movabs r13, 0xfedcba9876543210",
    "mov r14, r12",
    "not r14",
    "mov rax, cr4", // OSFXSAVE
    "or eax, 0x200",
    "mov cr4, rax",
    "movdqu xmm5, [rip + 31f]",
    "xor ebp, ebp",
    "sti",
    "2: hlt",
    "mov edi, 1", // what failed
    "movabs rax, 0x0123456789abcdef",
    "cmp rax, r12",
    "jne 9f",
    "not rax",
    "cmp rax, r14",
    "jne 9f",
    "movabs rax, 0xfedcba9876543210",
    "cmp rax, r13",
    "jne 9f",
    "mov edi, 2",
    "movdqu [0x300040], xmm5",
    "mov rax, [0x300040]",
    "cmp rax, [rip + 31f]",
    "jne 9f",
    "mov rax, [0x300048]",
    "cmp rax, [rip + 31f + 8]",
    "jne 9f",
    "mov edi, 3",
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    "cmp rax, rbp",
    "jb 9f",
    "mov rbp, rax",
    "out 0xe3, eax",
    "shr rax, 32",
    "out 0xe4, eax",
    "mov eax, [0x300000]",
    "out 0xe1, eax",
    "mov eax, [0x300004]",
    "out 0xe2, eax",
    "cmp dword ptr [0x300010], 0",
    "je 3f",
    "mov dword ptr [0x300010], 0", // mask the generation's input
    "mov dword ptr [rcx], 0x3e",
    "mov dword ptr [rcx + 0x10], 0x10042",
    "3: cmp dword ptr [0x30000c], 0",
    "je 2b",
    "mov dword ptr [0x30000c], 0", // start the third vCPU
    "mov dword ptr [rbx + 0x310], 0x02000000",
    "mov dword ptr [rbx + 0x300], 0x4500",
    "mov dword ptr [rbx + 0x310], 0x02000000",
    "mov dword ptr [rbx + 0x300], 0x4611",
    "jmp 2b",
    "9: mov eax, edi",
    "out 0xe0, eax",
    "cli",
    "hlt",
    // An interrupt gate at rdi to rax.
    "40: mov [rdi], ax",
    "mov word ptr [rdi + 2], 0x10",
    "mov word ptr [rdi + 4], 0x8e00",
    "shr rax, 16",
    "mov [rdi + 6], ax",
    "mov qword ptr [rdi + 8], 0", // below 4 GiB
    "ret",
    "20: inc dword ptr [0x300000]",
    "jmp 23f",
    "21: inc dword ptr [0x300004]",
    "jmp 23f",
    "22: inc dword ptr [0x300008]",
    "23: mov dword ptr [rbx + 0xb0], 0",
    "iretq",
    ".balign 16",
    "31: .ascii \"sixteen bytes of\"",
    "30: .word 0x42f", // up to vector 0x42
    ".quad 0x301000",
    "husk_state_guest_end:",
    ".popsection",
);

unsafe extern "C" {
    static husk_state_guest: u8;
    static husk_state_guest_end: u8;
}

/// Puts the guest into memory.
pub(super) fn load(memory: &GuestMemory) {
    let (start, end) = (&raw const husk_state_guest, &raw const husk_state_guest_end);
    // SAFETY: the slice must be of readable bytes that nothing writes = what the assembler put between the two labels, in
    // .rodata.
    let code = unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) };
    memory.write_slice(code, ENTRY).unwrap();
    memory.write_slice(&counting(SECOND_COUNTS), SECOND_ENTRY).unwrap();
    memory.write_slice(&counting(THIRD_COUNTS), THIRD_ENTRY).unwrap();
}
