//! Opens disks that name each other as their parents.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::chain(data));
