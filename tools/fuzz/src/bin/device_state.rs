//! A saved state of a virtio device, from a file that anybody may have written.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| devices::testing::hostile::state(bytes));
