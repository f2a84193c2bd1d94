//! Repairs any file in place, and undoes that.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::repair(data));
