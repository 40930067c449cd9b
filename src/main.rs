//! husk, a minimal virtual machine monitor on /dev/kvm. This crate is the program: arguments, the terminal, exit codes.
//! It knows the commands of `vmm` and nothing of KVM or of devices.
#![cfg_attr(not(test), no_main)]

mod api;
mod cli;
mod client;
mod demo;
mod exit;
mod fatal;
mod logging;
mod process;
mod pty;
mod serial;
mod service;
mod session;
mod terminal;

use std::time::Instant;

use exit::ExitStatus;

/// The program, in a process that has been prepared.
fn run() -> ExitStatus {
    let started = Instant::now();
    fatal::install();
    logging::install(started);
    match cli::run(started) {
        Ok(status) => status,
        Err(error) => {
            exit::say(&exit::describe(&error));
            ExitStatus::Failure
        }
    }
}
