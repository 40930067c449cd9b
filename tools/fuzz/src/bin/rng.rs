//! A hostile driver of the entropy device.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| devices::testing::hostile::entropy(bytes));
