//! Walks any disk as exFAT.
#![no_main]

use paddock_free_space::{Kind, fuzzing};

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::file_system(Kind::ExFat, data));
