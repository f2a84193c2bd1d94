//! The dynamic header: where the block allocation table lies, how large a
//! block is, and in differencing disks who the parent is.

use uuid::Uuid;

use super::{array, be32, be64, checksum};

/// Bytes of a dynamic header.
pub(crate) const LEN: usize = 1024;

const COOKIE: &[u8; 8] = b"cxsparse";
const VERSION: u32 = 0x0001_0000;
const CHECKSUM: usize = 36;
const NAME: usize = 64;
const NAME_LEN: usize = 512;
const LOCATORS: usize = 576;
const LOCATOR_LEN: usize = 24;

/// A dynamic header whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) bat_offset: u64,
    pub(crate) bat_entries: u32,
    /// Bytes of data in a block.
    pub(crate) block_size: u32,
    pub(crate) parent: Parent,
}

/// What the header says of the parent; all zeros in dynamic disks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Parent {
    pub(crate) unique_id: Uuid,
    /// Seconds since 2000-01-01 UTC.
    pub(crate) modified: u32,
    pub(crate) name: String,
    pub(crate) locators: [Locator; 8],
}

/// A hint where the parent lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Locator {
    pub(crate) platform: [u8; 4],
    /// Room for the locator. Sectors by the specification, bytes in what
    /// Microsoft writes.
    pub(crate) space: u32,
    pub(crate) length: u32,
    pub(crate) offset: u64,
}

/// Why bytes are not a dynamic header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("there is no dynamic header")]
    NoCookie,
    #[error("its checksum is {stored:#010x}, expected {computed:#010x}")]
    Checksum { stored: u32, computed: u32 },
    #[error("its version is {0:#010x}, expected 0x00010000")]
    Version(u32),
}

impl Header {
    /// Reads a header from its 1024 bytes.
    pub(crate) fn parse(bytes: &[u8; LEN]) -> Result<Header, HeaderError> {
        if !bytes.starts_with(COOKIE) {
            return Err(HeaderError::NoCookie);
        }
        let (stored, computed) = (be32(bytes, CHECKSUM), checksum(bytes, CHECKSUM));
        if stored != computed {
            return Err(HeaderError::Checksum { stored, computed });
        }
        let version = be32(bytes, 24);
        if version >> 16 != VERSION >> 16 {
            return Err(HeaderError::Version(version));
        }
        let units: Vec<u16> = bytes[NAME..NAME + NAME_LEN]
            .chunks_exact(2)
            .map(|unit| u16::from_be_bytes([unit[0], unit[1]]))
            .take_while(|&unit| unit != 0)
            .collect();
        let locator = |index: usize| {
            let at = LOCATORS + index * LOCATOR_LEN;
            Locator {
                platform: array(bytes, at),
                space: be32(bytes, at + 4),
                length: be32(bytes, at + 8),
                offset: be64(bytes, at + 16),
            }
        };
        Ok(Header {
            bat_offset: be64(bytes, 16),
            bat_entries: be32(bytes, 28),
            block_size: be32(bytes, 32),
            parent: Parent {
                unique_id: Uuid::from_bytes(array(bytes, 40)),
                modified: be32(bytes, 56),
                name: String::from_utf16_lossy(&units),
                locators: std::array::from_fn(locator),
            },
        })
    }

    /// The 1024 bytes of the header. A parent's name beyond 256 units is cut.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let mut put =
            |offset: usize, bytes: &[u8]| out[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, COOKIE);
        put(8, &[0xff; 8]);
        put(16, &self.bat_offset.to_be_bytes());
        put(24, &VERSION.to_be_bytes());
        put(28, &self.bat_entries.to_be_bytes());
        put(32, &self.block_size.to_be_bytes());
        put(40, self.parent.unique_id.as_bytes());
        put(56, &self.parent.modified.to_be_bytes());
        for (index, unit) in self
            .parent
            .name
            .encode_utf16()
            .take(NAME_LEN / 2)
            .enumerate()
        {
            put(NAME + 2 * index, &unit.to_be_bytes());
        }
        for (index, locator) in self.parent.locators.iter().enumerate() {
            let at = LOCATORS + index * LOCATOR_LEN;
            put(at, &locator.platform);
            put(at + 4, &locator.space.to_be_bytes());
            put(at + 8, &locator.length.to_be_bytes());
            put(at + 16, &locator.offset.to_be_bytes());
        }
        let sum = checksum(&out, CHECKSUM);
        out[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_where_the_specification_has_them() {
        let header = Header {
            bat_offset: 1536,
            bat_entries: 32,
            block_size: 2 << 20,
            parent: Parent::default(),
        };
        let bytes = header.encode();
        assert_eq!(&bytes[..8], b"cxsparse");
        assert_eq!(bytes[8..16], [0xff; 8]);
        assert_eq!(bytes[16..24], 1536u64.to_be_bytes());
        assert_eq!(bytes[24..28], [0, 1, 0, 0]);
        assert_eq!(bytes[28..32], 32u32.to_be_bytes());
        assert_eq!(bytes[32..36], [0, 0x20, 0, 0]);
        assert!(bytes[40..].iter().all(|&byte| byte == 0));
        assert_eq!(Header::parse(&bytes), Ok(header));
    }

    #[test]
    fn a_parent_survives_the_way_to_disk_and_back() {
        let mut parent = Parent {
            unique_id: Uuid::from_bytes([9; 16]),
            modified: 5,
            name: "Bäse.vhd".to_owned(),
            ..Parent::default()
        };
        parent.locators[7] = Locator {
            platform: *b"W2ru",
            space: 512,
            length: 22,
            offset: 4096,
        };
        let header = Header {
            bat_offset: 1536,
            bat_entries: 1,
            block_size: 512 << 10,
            parent,
        };
        let bytes = header.encode();
        assert_eq!(bytes[64..70], [0, b'B', 0, 0xe4, 0, b's']);
        assert_eq!(&bytes[576 + 7 * 24..576 + 7 * 24 + 4], b"W2ru");
        assert_eq!(Header::parse(&bytes), Ok(header));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let header = Header {
            bat_offset: 1536,
            bat_entries: 32,
            block_size: 2 << 20,
            parent: Parent::default(),
        };
        let bytes = header.encode();
        for bit in 0..LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse(&flipped).is_err(), "bit {bit}");
        }
    }
}
