//! Reads any bytes as what a lock file says of its owners.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::lock(data));
