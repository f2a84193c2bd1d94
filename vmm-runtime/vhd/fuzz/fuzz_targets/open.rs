//! Opens any file as a disk, uses it, and opens it again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::open(data));
