//! A page fault handler as Firecracker's users have them.
#![expect(clippy::unwrap_used, reason = "a test that cannot set its scene fails")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::Value;

use super::sys;

/// Takes the regions, which are of so many bytes in all, and a userfaultfd, and answers from a file.
pub(crate) fn handle_faults(listener: &UnixListener, memory: &Path, bytes: u64) -> UnixStream {
    handle_faults_while(listener, memory, bytes, |_| true)
}

/// As [`handle_faults`], of the pages that `answers` says yes to, by what they hold. Who waits for the others waits.
pub(crate) fn handle_faults_while(
    listener: &UnixListener,
    memory: &Path,
    bytes: u64,
    answers: impl Fn(&[u8; 4096]) -> bool + Send + 'static,
) -> UnixStream {
    let (socket, _) = listener.accept().unwrap();
    let (list, fault) = sys::receive_with_descriptor(&socket);
    let regions: Vec<Value> = serde_json::from_slice(&list).unwrap();
    let number = |region: &Value, field: &str| region[field].as_u64().unwrap();
    assert_eq!(regions.iter().map(|region| number(region, "size")).sum::<u64>(), bytes);
    assert!(regions.iter().all(|region| number(region, "page_size") == 4096));
    let memory = File::open(memory).unwrap();
    let handler = move || {
        while let Some(address) = sys::next_fault(&fault) {
            let place = |region: &Value| {
                let within = address.checked_sub(number(region, "base_host_virt_addr"))?;
                (within < number(region, "size")).then(|| number(region, "offset") + within)
            };
            let offset = regions.iter().find_map(place).unwrap() / 4096 * 4096;
            let mut page = [0; 4096];
            memory.read_exact_at(&mut page, offset).unwrap();
            if answers(&page) {
                sys::put_page(&fault, address / 4096 * 4096, &page);
            }
        }
    };
    std::thread::spawn(handler);
    socket
}
