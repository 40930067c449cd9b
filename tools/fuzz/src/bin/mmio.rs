//! A hostile driver of the registers of virtio-mmio.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| devices::testing::hostile::registers(bytes));
