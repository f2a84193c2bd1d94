//! Reads any bytes as the journal of a repair and the record of a resize.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| paddock_vhd::fuzzing::journals(data));
