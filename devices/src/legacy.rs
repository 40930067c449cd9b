//! The devices of a PC that kernels still expect: serial port, keyboard controller, CMOS clock, ACPI registers.
//!
//! All of them run on the thread of the vCPU that touches them, so none of them may wait.

mod console;
mod i8042;
mod pm;
mod rtc;
mod serial;

pub use console::{ConsoleCounters, ConsoleOutput, ConsoleWriter};
pub use i8042::{I8042, I8042RestoreError, I8042State, KeyboardState};
pub use pm::{AcpiPm, PowerButton};
pub use rtc::{Clock, Rtc, RtcRestoreError, RtcState, RtcTime};
pub use serial::{Serial, SerialError, SerialRestoreError, SerialState};
