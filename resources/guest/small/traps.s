# What runs in ring 0 after the start: interrupt handlers that count, faults on their way to ring 3's report, and the calls
# that ring 3 makes down here. A stub stands for each vector at TRAPS + 32 * vector (boot.s builds the gates so).

.set DOWN_CALL,     0x6b737568          # "husk" in eax when ud2 is a call down, cpu.rs
.set VECTOR_UD,     6
.set VECTOR_TIMER,  0x50                # these two are acknowledged here; ring 3 acknowledges the others, because a
.set VECTOR_WAKE,   0x51                # level-triggered line must fall first; apic.rs
.set LAPIC_EOI,     -0x11fff50          # 0xfee000b0 through the map at the top

.section .traps, "ax", @progbits
.global traps
traps:
    .set vector, 0
    .rept 32
    .balign 32
    .if vector == VECTOR_UD
    cmp eax, DOWN_CALL
    jne undefined
    add qword ptr [rsp], 2
    call rdi
    iretq
    .elseif vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
    push vector                         # the CPU pushed an error code
    jmp fault
    .else
    push 0
    push vector
    jmp fault
    .endif
    .set vector, vector + 1
    .endr
    .rept VECTORS - 32
    .balign 32
    lock inc qword ptr [interrupts + 8 * vector]
    .if vector == VECTOR_TIMER || vector == VECTOR_WAKE
    mov dword ptr [LAPIC_EOI], 0
    .endif
    iretq
    .set vector, vector + 1
    .endr

undefined:
    push 0
    push VECTOR_UD
# Ring 3's fault_report(vector, error code, rip, cr2, rsp, cs) ends the guest.
fault:
    pop rdi
    pop rsi
    mov rdx, [rsp]
    mov rcx, cr2
    mov r8, [rsp + 24]
    mov r9, [rsp + 8]
    mov qword ptr [rsp], offset fault_report
    mov qword ptr [rsp + 8], USER_CODE
    mov qword ptr [rsp + 16], 2
    mov qword ptr [rsp + 24], offset fault_stack_end - 8
    mov qword ptr [rsp + 32], USER_DATA
    iretq

# The calls: arguments in rsi, rdx, rcx, result in rax; interrupts are off; rbx, rbp, r12 to r15 are the caller's. On the
# stack stand the return address and then the frame of ring 3: rip, cs, rflags at 24.

.global ring0_rdmsr
ring0_rdmsr:
    mov ecx, esi
    rdmsr
    shl rdx, 32
    or rax, rdx
    ret

.global ring0_wrmsr
ring0_wrmsr:
    mov ecx, esi
    mov eax, edx
    shr rdx, 32
    wrmsr
    ret

.global ring0_cpuid
ring0_cpuid:
    push rbx
    mov r8, rcx
    mov eax, esi
    mov ecx, edx
    cpuid
    mov [r8], eax
    mov [r8 + 4], ebx
    mov [r8 + 8], ecx
    mov [r8 + 12], edx
    pop rbx
    ret

# Sleeps until an interrupt, unless [rsi] is no longer rdx: as nothing comes between the look and `hlt`, none is missed.
.global ring0_wait
ring0_wait:
    cmp [rsi], rdx
    jne 1f
    sti
    hlt
    cli
1:  ret

.global ring0_interrupts_on
ring0_interrupts_on:
    or dword ptr [rsp + 24], 0x200
    ret

.global ring0_interrupts_off
ring0_interrupts_off:
    and dword ptr [rsp + 24], -0x201
    ret

.global ring0_flush_tlb
ring0_flush_tlb:
    mov rax, cr3
    mov cr3, rax
    ret

# Port edx, rcx bytes at rsi. One exit a byte, but a third of an `out` from ring 3 where ring 0 is emulated.
.global ring0_out_bytes
ring0_out_bytes:
    cld
    rep outsb
    ret

.global ring0_in_loop                   # port edx, rcx times
ring0_in_loop:
1:  in al, dx
    dec ecx
    jnz 1b
    ret

.global ring0_load_loop                 # address rdx, rcx times
ring0_load_loop:
1:  mov eax, [rdx]
    dec ecx
    jnz 1b
    ret

.global ring0_halt                      # sleeps for ever, interruptible
ring0_halt:
    sti
1:  hlt
    jmp 1b

.global ring0_hang                      # sleeps for ever, not interruptible
ring0_hang:
    cli
1:  hlt
    jmp 1b

.global ring0_triple_fault              # a fault that finds no IDT
ring0_triple_fault:
    lidt [no_idt]
    ud2
no_idt:
    .short 0
    .quad 0

.global ring0_int3                      # on a KVM that emulates ring 0: an instruction it cannot
ring0_int3:
    int3
    ret

.section .bss.traps, "aw", @nobits
.balign 4096
    .zero 8192
fault_stack_end:
.global interrupts
interrupts: .zero 8 * VECTORS
.text
