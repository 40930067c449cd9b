//! husk, a minimal virtual machine monitor on /dev/kvm. This crate is the program: arguments, the terminal, exit codes.
//! It knows the commands of `vmm` and nothing of KVM or of devices.

mod api;
mod cli;
mod client;
mod demo;
mod exit;
mod logging;
mod process;
mod pty;
mod serial;
mod service;
mod session;
mod terminal;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let started = Instant::now();
    process::prepare();
    logging::install(started);
    let status = match cli::parse().run(started) {
        Ok(status) => status,
        Err(error) => {
            exit::say(&exit::describe(&error));
            exit::ExitStatus::Failure
        }
    };
    ExitCode::from(status as u8)
}
