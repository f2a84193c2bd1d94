//! The serial number by which a guest tells a disk from others.

/// Longest serial number that virtio-blk and ATA hold, in bytes.
const MAX_SERIAL: usize = 20;

/// The serial number of a disk: its name, or of a longer one the beginning and a hash of the whole.
pub(super) fn of(name: &str) -> String {
    if name.len() <= MAX_SERIAL {
        return name.to_owned();
    }
    // FNV-1a: the disks of one machine are few, and nobody gains by making two alike.
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let hash = format!("-{hash:08x}");
    let ascii = name.chars().filter(char::is_ascii);
    ascii
        .take(MAX_SERIAL - hash.len())
        .chain(hash.chars())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_that_begin_alike_differ() {
        assert_eq!(of("root"), "root");
        assert_eq!(of("exactly-twenty-bytes"), "exactly-twenty-bytes");
        let (first, second) = (
            of("database-volume-number-1"),
            of("database-volume-number-2"),
        );
        assert_ne!(first, second);
        for serial in [first, second] {
            assert_eq!(serial.len(), MAX_SERIAL);
            assert!(serial.starts_with("database-vo-"), "{serial}");
        }
        assert_eq!(of(&"ä".repeat(20)).len(), 9);
    }
}
