//! The checksums that tables and file systems keep.

/// A table of a reflected CRC-32.
const fn table32(polynomial: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ polynomial
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

const CASTAGNOLI: [u32; 256] = table32(0x82f6_3b78);
const IEEE: [u32; 256] = table32(0xedb8_8320);

fn crc(table: &[u32; 256], mut crc: u32, bytes: &[u8]) -> u32 {
    for &byte in bytes {
        crc = crc >> 8 ^ table[usize::from(crc as u8 ^ byte)];
    }
    crc
}

/// CRC-32C with a start value and without the last inversion, as ext4 has it.
pub(crate) fn crc32c(start: u32, bytes: &[u8]) -> u32 {
    crc(&CASTAGNOLI, start, bytes)
}

/// CRC-32C of a structure of XFS, whose own field of four bytes at `field`
/// counts as zeros.
pub(crate) fn crc32c_without(bytes: &[u8], field: usize) -> u32 {
    !crc32c(!0, &zeroed(bytes, field, 4))
}

/// CRC-32 as GPT has it, with `field` as zeros where it is given.
pub(crate) fn crc32(bytes: &[u8], field: Option<usize>) -> u32 {
    match field {
        Some(field) => !crc(&IEEE, !0, &zeroed(bytes, field, 4)),
        None => !crc(&IEEE, !0, bytes),
    }
}

/// CRC-16 as ext4 has it in group descriptors.
pub(crate) fn crc16(mut crc: u16, bytes: &[u8]) -> u16 {
    for &byte in bytes {
        crc ^= u16::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                crc >> 1 ^ 0xa001
            } else {
                crc >> 1
            };
        }
    }
    crc
}

fn zeroed(bytes: &[u8], field: usize, len: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(field) = bytes.get_mut(field..field + len) {
        field.fill(0);
    }
    bytes
}

/// Whether a checksum is the one that is stored. A fuzz target may forgive, to
/// get behind it.
pub(crate) fn agrees(stored: u32, computed: u32) -> bool {
    #[cfg(fuzzing)]
    if crate::fuzzing::forgiving() {
        return true;
    }
    stored == computed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_values_of_the_catalogues() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc32(b"123456789", None), 0xcbf4_3926);
        assert_eq!(crc16(0, b"123456789"), 0xbb3d);
    }

    #[test]
    fn a_field_counts_as_zeros() {
        assert_eq!(
            crc32(b"12ABCD789", Some(2)),
            crc32(b"12\0\0\0\x00789", None)
        );
        assert_eq!(
            crc32c_without(b"12ABCD789", 2),
            crc32c_without(b"12EFGH789", 2)
        );
    }
}
