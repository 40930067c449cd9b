//! How the machine ends: the power button, power-off, reboot.

use crate::sys;
use crate::text::say;
use crate::words::Words;

/// What the kernel sends init when the power button is pressed: CONFIG_ACPI_TINY_POWER_BUTTON_SIGNAL.
const POWER_BUTTON: u32 = 38;
/// What it sends when Ctrl, Alt and Delete are: SIGINT.
const CTRL_ALT_DEL: u32 = 2;

/// What to do when the checks are through.
#[derive(Clone, Copy)]
pub(crate) enum End {
    PowerOff,
    /// In the way that the kernel's own word `reboot=` names.
    Reboot,
    /// Wait for the power button, then power off; or for Ctrl-Alt-Del, then reboot.
    Stay,
}

impl End {
    const ALL: [Self; 3] = [Self::PowerOff, Self::Reboot, Self::Stay];

    /// What `husk.end=` asks for; power-off where it asks for nothing that is known.
    pub(crate) fn of(words: &Words) -> Self {
        let Some(wanted) = words.get("husk.end") else {
            return Self::PowerOff;
        };
        Self::ALL.into_iter().find(|end| end.name() == wanted).unwrap_or_else(|| {
            say!("GUEST FAIL husk.end={wanted} is none of poweroff, reboot, stay");
            Self::PowerOff
        })
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PowerOff => "poweroff",
            Self::Reboot => "reboot",
            Self::Stay => "stay",
        }
    }
}

/// Keeps a press of the power button, or of Ctrl-Alt-Del, until [`finish`] looks for it.
pub(crate) fn hold_buttons() -> sys::Result<()> {
    sys::block_signal(POWER_BUTTON)?;
    sys::block_signal(CTRL_ALT_DEL)?;
    sys::take_ctrl_alt_del()
}

/// Ends the machine.
pub(crate) fn finish(end: End) -> ! {
    let mut how = match end {
        End::Reboot => sys::Reboot::Restart,
        End::PowerOff | End::Stay => sys::Reboot::PowerOff,
    };
    if matches!(end, End::Stay) {
        say!("WAIT button");
        match sys::wait_signal(&[POWER_BUTTON, CTRL_ALT_DEL]) {
            Ok(signal) if signal == CTRL_ALT_DEL as usize => {
                say!("GUEST BUTTON ctrl-alt-del");
                how = sys::Reboot::Restart;
            }
            Ok(_) => say!("GUEST BUTTON power"),
            Err(errno) => say!("GUEST FAIL cannot wait for a button: {errno}"),
        }
    }
    sys::sync();
    // The serial driver still holds what its FIFO had no room for, and nobody sends it once the machine is off. A console
    // that is no terminal has nothing to drain.
    let _ = sys::drain(sys::CONSOLE);
    let errno = sys::reboot(how);
    say!("GUEST FAIL cannot {}: {errno}", end.name());
    sys::exit(1)
}
