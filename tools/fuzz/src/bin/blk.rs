//! A hostile driver of a disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| devices::testing::hostile::disk(bytes));
