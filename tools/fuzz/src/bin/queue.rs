//! A hostile driver of a virtqueue.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| devices::testing::hostile::queue(bytes));
