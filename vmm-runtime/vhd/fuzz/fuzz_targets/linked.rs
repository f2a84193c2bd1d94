//! Reads any bytes as the descriptor of a linked disk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::linked(data));
