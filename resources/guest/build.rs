//! Builds husk's own small guests (`small/`) with the compiler that builds husk, and tells the crate where they are:
//! `HUSK_GUEST_FIRST`, `HUSK_GUEST_DEMO`, `HUSK_GUEST_BENCH`, `HUSK_GUEST_PROBE` and `HUSK_GUEST_PROBE_NO_NOTE`.
//!
//! rustc is called directly, so no flag meant for husk itself (RUSTFLAGS, profiles, a sanitizer) reaches a guest.

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};

/// Code for ring 3 of a bare machine: no run-time, no position independence, nothing beyond SSE2.
const COMMON: &[&str] = &[
    "--edition=2024",
    "--target=x86_64-unknown-linux-gnu",
    "-Cpanic=abort",
    "-Copt-level=2",
    "-Ccodegen-units=1",
    "-Crelocation-model=static",
    "-Ctarget-cpu=x86-64",
    "-Ctarget-feature=+crt-static",
    "-Cforce-unwind-tables=no",
    "-Cstrip=symbols",
];

const LINK: &[&str] =
    &["-nostdlib", "-nostartfiles", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,max-page-size=4096"];

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=resources/link");
    link_statically();
    println!("cargo:rerun-if-changed=resources/guest/build.rs");
    println!("cargo:rerun-if-changed=resources/guest/small");
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot build the small guests: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The binary is one file, and a release's text is in order; resources/link/README.md says how and why.
fn link_statically() {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/resources/link");
    println!("cargo:rustc-link-arg-bins=-static-pie");
    println!("cargo:rustc-link-arg-bins=-L{scripts}");
    if env::var_os("PROFILE").is_some_and(|profile| profile == "release") {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{scripts}/order.ld");
    }
}

fn build() -> io::Result<()> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let small = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("resources/guest/small");
    let library = out.join("libguest.rlib");
    finish(
        rustc(&small.join("lib.rs"), &library)?.args(["--crate-name=guest", "--crate-type=rlib"]).spawn()?,
        "lib.rs",
    )?;

    let guests: [(&str, &str, &str, &[&str]); 5] = [
        ("first", "first.rs", "first.ld", &[]),
        ("demo", "demo.rs", "script.ld", &[]),
        ("bench", "bench/main.rs", "script.ld", &[]),
        ("probe", "probe/main.rs", "script.ld", &[]),
        ("probe_no_note", "probe/main.rs", "script.ld", &["--cfg=no_note"]),
    ];
    let mut compilers = Vec::new();
    for (name, source, script, flags) in guests {
        let elf = out.join(format!("guest-{name}"));
        let mut command = rustc(&small.join(source), &elf)?;
        command.arg(format!("--crate-name={name}")).arg("--crate-type=bin").args(flags);
        command.arg(format!("--extern=guest={}", library.display()));
        command.args(LINK.iter().map(|flag| format!("-Clink-arg={flag}")));
        command.arg(format!("-Clink-arg=-Wl,-T,{}", small.join(script).display()));
        compilers.push((name, command.spawn()?));
        println!("cargo:rustc-env=HUSK_GUEST_{}={}", name.to_uppercase(), elf.display());
    }
    compilers.into_iter().try_for_each(|(name, compiler)| finish(compiler, name))
}

fn rustc(source: &Path, output: &Path) -> io::Result<Command> {
    let mut command = Command::new(variable("RUSTC")?);
    command.args(COMMON).arg("-o").arg(output).arg(source);
    // cargo passes its own flags on to build scripts by these.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    Ok(command)
}

fn variable(name: &str) -> io::Result<String> {
    env::var(name).map_err(|error| io::Error::other(format!("{name}: {error}")))
}

fn finish(mut compiler: Child, what: &str) -> io::Result<()> {
    let status = compiler.wait()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("rustc ended with {status} on {what}"))) }
}
