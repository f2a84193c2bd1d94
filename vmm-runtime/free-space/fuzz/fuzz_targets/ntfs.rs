//! Walks any disk as NTFS.
#![no_main]

use paddock_free_space::{Kind, fuzzing};

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::file_system(Kind::Ntfs, data));
