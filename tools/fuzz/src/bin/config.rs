//! Firecracker's configuration file: any text.
#![no_main]

use vmm::config::{HostFacts, firecracker};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    // A CPU template's path is opened, and a fuzzer is to open nothing: a file in its own folder at most.
    if bytes.contains(&b'/') {
        return;
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(firecracker::Described { machine: config, .. }) = firecracker::parse(text) {
        // Right or wrong, it is said and not panicked about.
        let _verdict = config.validate(HostFacts { memory_bytes: 1 << 34 });
    }
});
