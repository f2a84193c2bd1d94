//! Walks any disk as ext2, ext3 or ext4.
#![no_main]

use paddock_free_space::{Kind, fuzzing};

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzzing::file_system(Kind::Ext4, data));
