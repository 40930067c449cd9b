//! The run loop's turn: into the guest, out with an exit, and what the exit asks for.

use std::time::Instant;

use kvm_ioctls::VcpuExit;

use super::crash::{Crash, CrashKind};
use super::{ExitCounts, ExitKind, Vcpu};

/// What came of one turn.
pub(super) enum Turn {
    /// The guest can go on.
    Again,
    /// It cannot.
    Crashed(Box<Crash>),
}

/// An exit, with what the bus did to it done.
enum Exit {
    Handled(ExitKind),
    Fatal(CrashKind),
}

/// A vCPU that is out of the guest; dropped, it goes back. Two looks at the clock, some 50 ns, beside an exit's microseconds.
struct Outside<'a> {
    counts: &'a ExitCounts,
    since: Instant,
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        self.counts.add_outside(self.since.elapsed());
    }
}

impl Vcpu {
    /// Enters the guest once and does what its exit asks for.
    pub(super) fn turn(&mut self) -> Turn {
        match self.enter() {
            Exit::Handled(kind) => {
                self.context.counts.count(kind);
                Turn::Again
            }
            Exit::Fatal(kind) => {
                self.context.counts.count(ExitKind::Other);
                let detail = kind.with_detail(&mut self.fd);
                Turn::Crashed(Box::new(Crash::describe(self.context.index, detail, &self.fd)))
            }
        }
    }

    /// Finishes what the last exit left open inside KVM (the data of a read, the rest of a string instruction), without
    /// running the guest, so that the registers are whole (KVM api: KVM_RUN, note on KVM_EXIT_IO and KVM_EXIT_MMIO).
    pub(super) fn complete_exit(&mut self) {
        loop {
            self.kicks.set();
            match self.enter() {
                // A string instruction comes back with its next element before it sees the flag.
                Exit::Handled(ExitKind::Interrupted) => break,
                Exit::Handled(kind) => self.context.counts.count(kind),
                // The turn after the next resume meets the same fault and reports it.
                Exit::Fatal(_) => break,
            }
        }
        self.kicks.take();
    }

    fn enter(&mut self) -> Exit {
        let buses = &self.context.buses;
        let exit = self.fd.run();
        let _outside = Outside { counts: &self.context.counts, since: Instant::now() };
        match exit {
            Ok(VcpuExit::IoOut(port, data)) => {
                data.chunks(self.kicks.pio_bytes()).for_each(|item| {
                    buses.pio.write(port.into(), item);
                });
                Exit::Handled(ExitKind::IoOut)
            }
            // Where nobody answers, the bus leaves all ones, as on a PC.
            Ok(VcpuExit::IoIn(port, data)) => {
                data.chunks_mut(self.kicks.pio_bytes()).for_each(|item| {
                    buses.pio.read(port.into(), item);
                });
                Exit::Handled(ExitKind::IoIn)
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                buses.mmio.read(address, data);
                Exit::Handled(ExitKind::MmioRead)
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                buses.mmio.write(address, data);
                Exit::Handled(ExitKind::MmioWrite)
            }
            Ok(VcpuExit::Intr) => Exit::Handled(ExitKind::Interrupted),
            Ok(VcpuExit::Shutdown) => Exit::Fatal(CrashKind::TripleFault),
            Ok(VcpuExit::InternalError) => Exit::Fatal(CrashKind::Internal { suberror: 0, data: Vec::new() }),
            Ok(VcpuExit::FailEntry(reason, cpu)) => Exit::Fatal(CrashKind::FailEntry { reason, cpu }),
            Ok(VcpuExit::MemoryFault { gpa, size, .. }) => Exit::Fatal(CrashKind::Memory { address: Some(gpa), size }),
            Ok(other) => Exit::Fatal(CrashKind::Unknown { exit: format!("{other:?}") }),
            Err(error) => match error.errno() {
                // EAGAIN: an application processor that waits for its SIPI came back for another reason.
                libc::EINTR | libc::EAGAIN => Exit::Handled(ExitKind::Interrupted),
                libc::EFAULT => Exit::Fatal(CrashKind::Memory { address: None, size: 0 }),
                _ => Exit::Fatal(CrashKind::Host { source: error }),
            },
        }
    }
}
