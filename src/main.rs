//! husk, a minimal virtual machine monitor on /dev/kvm. This crate is the program: arguments, the terminal, exit codes.
//! It knows the commands of `vmm` and nothing of KVM or of devices.

mod cli;
mod demo;
mod exit;
mod logging;
mod terminal;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let started = Instant::now();
    logging::install();
    let status = match cli::parse().run(started) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("husk: {}", exit::describe(&error));
            exit::ExitStatus::Failure
        }
    };
    ExitCode::from(status as u8)
}
