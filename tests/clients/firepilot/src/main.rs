//! Drives a VM through firepilot, as its documentation shows: `client FIRECRACKER FOLDER KERNEL BOOT_ARGS DISK`. It says
//! `configured`, and then does what each line of its input says: start, pause, resume, ctrl-alt-del, end.

use std::error::Error;
use std::path::PathBuf;

use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::{FirepilotError, Machine};

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(drive())
}

async fn drive() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [firecracker, folder, kernel, boot_args, disk] = &arguments[..] else {
        return Err("usage: client FIRECRACKER FOLDER KERNEL BOOT_ARGS DISK".into());
    };
    let executor = FirecrackerExecutorBuilder::new()
        .with_chroot(folder.clone())
        .with_exec_binary(PathBuf::from(firecracker))
        .try_build()
        .map_err(debug)?;
    let kernel = KernelBuilder::new()
        .with_kernel_image_path(kernel.clone())
        .with_boot_args(boot_args.clone())
        .try_build()
        .map_err(debug)?;
    let drive = DriveBuilder::new()
        .with_drive_id("rootfs".to_owned())
        .with_path_on_host(PathBuf::from(disk))
        .as_root_device()
        .as_read_only()
        .try_build()
        .map_err(debug)?;
    let configuration =
        Configuration::new("vm".to_owned()).with_executor(executor).with_kernel(kernel).with_drive(drive);
    let mut machine = Machine::new();
    machine.create(configuration).await.map_err(debug)?;
    println!("configured");
    for line in std::io::stdin().lines() {
        let line = line?;
        let done: Result<(), FirepilotError> = match line.as_str() {
            "start" => machine.start().await,
            "pause" => machine.pause().await,
            "resume" => machine.resume().await,
            "ctrl-alt-del" => machine.stop().await,
            "end" => machine.kill().await,
            other => return Err(format!("no such order: {other}").into()),
        };
        done.map_err(debug)?;
        println!("did {line}");
    }
    Ok(())
}

fn debug(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}
