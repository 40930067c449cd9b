# From a monitor's hands to ring 3: the tables, the three ways in (PVH, Linux 64-bit, application processor) and the way
# down. Ring 0 may be emulated one instruction at a time (where KVM has no hardware under it), so the tables are laid
# out by the assembler and the way down is some thirty instructions.

.set TABLES,    0x100000            # script.ld asserts both
.set TRAPS,     0x10b000
.set PML4,      TABLES
.set PDPT,      TABLES + 0x1000
.set PD,        TABLES + 0x2000     # four pages: the first 4 GiB in 2 MiB pages
.set TSS,       TABLES + 0x6000     # one per CPU, all before the one I/O bitmap that they share
.set IOMAP,     TABLES + 0x8000
.set GDT,       TABLES + 0xa010
.set IDT,       TABLES + 0xa440

.set CPUS_MAX,  64
.set VECTORS,   0x60
.set TSS_SIZE,  128
.set STUB_SIZE, 32
.set RING0_STACK_SHIFT, 10
.set RING3_STACK_SHIFT, 15
.set CODE32,    0x08
.set CODE64,    0x10
.set DATA,      0x18
.set USER_CODE, 0x23
.set USER_DATA, 0x2b
.set TSS_FIRST, 0x30

.section .tables, "aw", @progbits
.global tables
tables:

# Every entry is present, writable, for ring 3, accessed and dirty: the walker has nothing left to write back.
    .quad PDPT + 0x27
    .zero 8 * 510
    .quad PDPT + 0x27                   # with the last entry of PDPT: physical 3 to 4 GiB once more at the top, where a
                                        # 32-bit signed displacement reaches the local APIC
    .quad PD + 0x0027
    .quad PD + 0x1027
    .quad PD + 0x2027
    .quad PD + 0x3027
    .zero 8 * 507                       # memory.rs fills these in when asked for memory above 4 GiB
    .quad PD + 0x3027

    .set page, 0
    .rept 1536
    .quad page + 0xe7
    .set page, page + 0x200000
    .endr
    .rept 512
    .quad page + 0xff                   # uncached: devices
    .set page, page + 0x200000
    .endr

# SDM 3A §8.7: RSP0 at 4, the offset of the I/O bitmap at 102.
    .set cpu, 0
    .rept CPUS_MAX
    .long 0
    .quad ring0_stacks + ((cpu + 1) << RING0_STACK_SHIFT)
    .zero 90
    .short IOMAP - (TSS + cpu * TSS_SIZE)
    .zero TSS_SIZE - 104
    .set cpu, cpu + 1
    .endr

# Every port is allowed. SDM 1 §19.5.2: a byte of ones stands behind the map.
    .zero 8192
    .byte 0xff
    .zero 15

# GDT.
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00affb000000ffff
    .quad 0x00cff3000000ffff
    .set cpu, 0
    .rept CPUS_MAX
    .set base, TSS + cpu * TSS_SIZE
    .short IOMAP + 8192 - base
    .short base & 0xffff
    .byte (base >> 16) & 0xff
    .byte 0x89, 0, (base >> 24) & 0xff
    .quad 0
    .set cpu, cpu + 1
    .endr

# IDT: an interrupt gate for ring 0 to the stub of each vector.
    .set vector, 0
    .rept VECTORS
    .set stub, TRAPS + vector * STUB_SIZE
    .short stub & 0xffff, CODE64
    .byte 0, 0x8e
    .short (stub >> 16) & 0xffff
    .quad 0
    .set vector, vector + 1
    .endr

.section .text.entry, "ax", @progbits

gdt_pointer:
    .short 0x30 + 16 * CPUS_MAX - 1
    .quad GDT
idt_pointer:
    .short 16 * VECTORS - 1
    .quad IDT

# Xen's PVH entry: 32-bit flat, paging off, ebx = start_info.
.code32
.global pvh_entry
pvh_entry:
    cli
    mov ebp, 1
    mov esi, ebx
    lgdt [gdt_pointer]
enter_long_mode:
    mov eax, 0x620                      # PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xc0000080                 # EFER
    mov eax, 0x100                      # LME
    xor edx, edx
    wrmsr
    mov eax, 0x80000033                 # PG, NE, ET, MP, PE
    mov cr0, eax
    .byte 0xea                          # jmp CODE64:descend
    .long descend
    .short CODE64

# The trampoline arrives here in 32-bit mode.
ap_entry32:
    xor ebp, ebp
    jmp enter_long_mode

# Linux x86 boot protocol, 64-bit entry: paging on, rsi = boot_params.
.code64
.global linux_entry
linux_entry:
    cli
    mov ebp, 2
    mov eax, 0x620
    mov cr4, rax
    mov eax, PML4
    mov cr3, rax
    mov eax, 0x80000033
    mov cr0, rax
    lgdt [gdt_pointer]
    mov esp, offset ring0_stacks + (1 << RING0_STACK_SHIFT)
    push CODE64
    push offset descend
    retfq

# ebp = how we came (0: application processor), rsi = the boot data. `start` in boot.rs takes (cpu, how, boot data).
descend:
    lidt [idt_pointer]
    xor edi, edi
    test ebp, ebp
    jnz 1f
    mov edi, 1
    lock xadd [cpus_entered], edi
    cmp edi, CPUS_MAX
    jae 2f
1:  mov eax, edi
    shl eax, 4
    add eax, TSS_FIRST
    ltr ax
    lea ecx, [rdi + 1]
    mov eax, ecx
    shl ecx, RING0_STACK_SHIFT
    lea rsp, [rcx + ring0_stacks]
    shl eax, RING3_STACK_SHIFT
    lea rcx, [rax + ring3_stacks - 8]   # the ABI's alignment after a call
    mov edx, esi
    mov esi, ebp
    push USER_DATA
    push rcx
    push 2                              # interrupts off until someone asks
    push USER_CODE
    push offset start
    iretq
2:  hlt
    jmp 2b

# Copied below 1 MiB; an application processor starts here with cs = page, ip = 0.
.code16
.global ap_trampoline, ap_trampoline_end
ap_trampoline:
    cli
    .byte 0x2e, 0x66, 0x0f, 0x01, 0x16  # lgdt cs:[1f - ap_trampoline], 32-bit operand
    .short 1f - ap_trampoline
    mov eax, 0x11                       # PE; caches on
    mov cr0, eax
    .byte 0x66, 0xea                    # jmp CODE32:ap_entry32, 32-bit operand
    .long ap_entry32
    .short CODE32
1:  .short 0x30 + 16 * CPUS_MAX - 1
    .long GDT
ap_trampoline_end:
.code64

.section .data.cpus, "aw", @progbits
.balign 4
.global cpus_entered
cpus_entered: .long 1                   # the boot processor is 0

.section .bss.stacks, "aw", @nobits
.balign 4096
ring0_stacks: .zero CPUS_MAX << RING0_STACK_SHIFT
ring3_stacks: .zero CPUS_MAX << RING3_STACK_SHIFT
