//! Reads any bytes as a footer and as a dynamic header.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::parse(data));
