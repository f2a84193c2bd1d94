//! Walks any disk, from its partition table on.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_free_space::fuzzing::tables(data));
