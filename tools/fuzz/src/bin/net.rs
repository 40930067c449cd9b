//! A hostile driver of a network card.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| devices::testing::hostile::net(bytes));
