//! Opens any file as a disk and gives it other sizes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::resize(data));
