#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| paddock_nbd::fuzzing::handshake(input));
