//! The footer: what a disk is. It lies at the end of the file; dynamic and
//! differencing disks keep a copy at its beginning.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use super::geometry::Geometry;
use super::{DiskType, array, be16, be32, be64, checksum};

/// Bytes of a footer.
pub(crate) const LEN: usize = 512;
/// Bytes of the footers that were written before 2004.
pub(crate) const OLD_LEN: usize = 511;

const COOKIE: &[u8; 8] = b"conectix";
const VERSION: u32 = 0x0001_0000;
const FEATURES_RESERVED: u32 = 2;
const CHECKSUM: usize = 64;
const NO_HEADER: u64 = u64::MAX;
/// 2000-01-01T00:00:00Z in Unix time, the zero of the format's clock.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// The type of a disk as the format has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// A footer whose checksum is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) kind: Kind,
    /// Where the dynamic header lies; `None` in fixed disks.
    pub(crate) header_offset: Option<u64>,
    /// Seconds since 2000-01-01 UTC.
    pub(crate) timestamp: u32,
    pub(crate) creator: [u8; 4],
    pub(crate) creator_version: u32,
    pub(crate) creator_host: [u8; 4],
    pub(crate) original_size: u64,
    pub(crate) current_size: u64,
    pub(crate) geometry: Geometry,
    pub(crate) unique_id: Uuid,
    pub(crate) saved_state: bool,
}

/// Why bytes are not a footer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FooterError {
    #[error("no footer")]
    NoCookie,
    #[error("its checksum is {stored:#010x}, expected {computed:#010x}")]
    Checksum { stored: u32, computed: u32 },
    #[error("its version is {0:#010x}, expected 0x00010000")]
    Version(u32),
    #[error("its disk type is {0}, expected 2, 3 or 4")]
    Kind(u32),
}

impl Footer {
    /// The footer of a new disk. Creator `win `: readers then take the exact
    /// size instead of the geometry, which is rounded down.
    pub(crate) fn new(
        disk_type: DiskType,
        size: u64,
        unique_id: Uuid,
        created: SystemTime,
    ) -> Footer {
        let (kind, header_offset) = match disk_type {
            DiskType::Fixed => (Kind::Fixed, None),
            DiskType::Dynamic => (Kind::Dynamic, Some(LEN as u64)),
            DiskType::Differencing => (Kind::Differencing, Some(LEN as u64)),
        };
        Footer {
            kind,
            header_offset,
            timestamp: timestamp(created),
            creator: *b"win ",
            creator_version: 0x000a_0000,
            creator_host: *b"Wi2k",
            original_size: size,
            current_size: size,
            geometry: Geometry::of(size / super::SECTOR),
            unique_id,
            saved_state: false,
        }
    }

    /// Reads a footer from its 512 (or 511) bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Footer, FooterError> {
        if bytes.len() < OLD_LEN || !bytes.starts_with(COOKIE) {
            return Err(FooterError::NoCookie);
        }
        let bytes = &bytes[..bytes.len().min(LEN)];
        let (stored, computed) = (be32(bytes, CHECKSUM), checksum(bytes, CHECKSUM));
        if stored != computed {
            return Err(FooterError::Checksum { stored, computed });
        }
        // The minor version may rise without harm; the major one may not.
        let version = be32(bytes, 12);
        if version >> 16 != VERSION >> 16 {
            return Err(FooterError::Version(version));
        }
        let kind = match be32(bytes, 60) {
            2 => Kind::Fixed,
            3 => Kind::Dynamic,
            4 => Kind::Differencing,
            other => return Err(FooterError::Kind(other)),
        };
        Ok(Footer {
            kind,
            header_offset: (kind != Kind::Fixed).then(|| be64(bytes, 16)),
            timestamp: be32(bytes, 24),
            creator: array(bytes, 28),
            creator_version: be32(bytes, 32),
            creator_host: array(bytes, 36),
            original_size: be64(bytes, 40),
            current_size: be64(bytes, 48),
            geometry: Geometry {
                cylinders: be16(bytes, 56),
                heads: bytes[58],
                sectors: bytes[59],
            },
            unique_id: Uuid::from_bytes(array(bytes, 68)),
            saved_state: bytes[84] != 0,
        })
    }

    /// The 512 bytes of the footer.
    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        let mut put =
            |offset: usize, bytes: &[u8]| out[offset..offset + bytes.len()].copy_from_slice(bytes);
        put(0, COOKIE);
        put(8, &FEATURES_RESERVED.to_be_bytes());
        put(12, &VERSION.to_be_bytes());
        put(16, &self.header_offset.unwrap_or(NO_HEADER).to_be_bytes());
        put(24, &self.timestamp.to_be_bytes());
        put(28, &self.creator);
        put(32, &self.creator_version.to_be_bytes());
        put(36, &self.creator_host);
        put(40, &self.original_size.to_be_bytes());
        put(48, &self.current_size.to_be_bytes());
        put(56, &self.geometry.cylinders.to_be_bytes());
        put(58, &[self.geometry.heads, self.geometry.sectors]);
        let kind: u32 = match self.kind {
            Kind::Fixed => 2,
            Kind::Dynamic => 3,
            Kind::Differencing => 4,
        };
        put(60, &kind.to_be_bytes());
        put(68, self.unique_id.as_bytes());
        put(84, &[u8::from(self.saved_state)]);
        let sum = checksum(&out, CHECKSUM);
        out[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        out
    }

    /// Gives this footer another size, and the geometry of that. `original
    /// size` stays. The creator becomes ours, as in a new disk: for those of
    /// others, some readers would take the geometry, which is rounded down.
    pub(crate) fn resized(&self, size: u64) -> Footer {
        let new = Footer::new(DiskType::Fixed, size, self.unique_id, UNIX_EPOCH);
        Footer {
            current_size: size,
            geometry: new.geometry,
            creator: new.creator,
            creator_version: new.creator_version,
            creator_host: new.creator_host,
            ..self.clone()
        }
    }

    /// Puts what [`Footer::resized`] changes, and the offset of the header,
    /// into the bytes of another footer; what else those hold stays.
    pub(crate) fn encode_size(&self, bytes: &mut [u8; LEN]) {
        let own = self.encode();
        for field in [28..40, 48..60] {
            bytes[field.clone()].copy_from_slice(&own[field]);
        }
        self.encode_header_offset(bytes);
    }

    /// Puts this footer's offset of the header into the bytes of another.
    pub(crate) fn encode_header_offset(&self, bytes: &mut [u8; LEN]) {
        let offset = self.header_offset.unwrap_or(NO_HEADER);
        bytes[16..24].copy_from_slice(&offset.to_be_bytes());
        let sum = checksum(bytes, CHECKSUM);
        bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
    }

    /// Puts another identity and time of creation into the bytes of a footer,
    /// and that the disk belongs to no saved state.
    pub(crate) fn encode_identity(bytes: &mut [u8; LEN], unique_id: Uuid, created: SystemTime) {
        bytes[24..28].copy_from_slice(&timestamp(created).to_be_bytes());
        bytes[68..84].copy_from_slice(unique_id.as_bytes());
        bytes[84] = 0;
        let sum = checksum(bytes, CHECKSUM);
        bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
    }

    /// When the disk was made.
    pub(crate) fn created(&self) -> SystemTime {
        time(self.timestamp)
    }

    /// The version of the creating application: major and minor.
    pub(crate) fn creator_version_name(&self) -> String {
        format!(
            "{}.{}",
            self.creator_version >> 16,
            self.creator_version & 0xffff
        )
    }

    /// The creating application, without the spaces and zeros it is padded
    /// with, and with a dot for what is not printable.
    pub(crate) fn creator_name(&self) -> String {
        let printable = |&byte: &u8| {
            if byte.is_ascii_graphic() || byte == b' ' {
                byte as char
            } else {
                '.'
            }
        };
        let end = self
            .creator
            .iter()
            .rposition(|byte| !matches!(byte, 0 | b' '))
            .map_or(0, |last| last + 1);
        self.creator[..end].iter().map(printable).collect()
    }
}

/// The time that a number of seconds since 2000 stands for.
pub(crate) fn time(timestamp: u32) -> SystemTime {
    UNIX_EPOCH + EPOCH + Duration::from_secs(timestamp.into())
}

/// A time as the format keeps it: whole seconds from 2000 on.
pub(crate) fn timestamp(time: SystemTime) -> u32 {
    let since = time.duration_since(UNIX_EPOCH + EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer() -> Footer {
        let created = UNIX_EPOCH + Duration::from_secs(946_684_800 + 77);
        Footer::new(
            DiskType::Dynamic,
            64 << 20,
            Uuid::from_bytes([7; 16]),
            created,
        )
    }

    #[test]
    fn the_bytes_are_where_the_specification_has_them() {
        let bytes = footer().encode();
        assert_eq!(&bytes[..16], b"conectix\0\0\0\x02\0\x01\0\0");
        assert_eq!(bytes[16..24], 512u64.to_be_bytes());
        assert_eq!(bytes[24..28], 77u32.to_be_bytes());
        assert_eq!(&bytes[28..32], b"win ");
        assert_eq!(&bytes[36..40], b"Wi2k");
        assert_eq!(bytes[40..48], (64u64 << 20).to_be_bytes());
        assert_eq!(bytes[48..56], (64u64 << 20).to_be_bytes());
        assert_eq!(bytes[56..60], [0x03, 0xc3, 8, 17]);
        assert_eq!(bytes[60..64], 3u32.to_be_bytes());
        assert_eq!(bytes[68..84], [7; 16]);
        assert!(bytes[84..].iter().all(|&byte| byte == 0));
        let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
        let own: u32 = bytes[64..68].iter().map(|&byte| u32::from(byte)).sum();
        assert_eq!(bytes[64..68], (!(sum - own)).to_be_bytes());
    }

    #[test]
    fn a_fixed_footer_has_no_header() {
        let fixed = Footer::new(DiskType::Fixed, 1 << 20, Uuid::nil(), UNIX_EPOCH);
        let bytes = fixed.encode();
        assert_eq!(bytes[16..24], [0xff; 8]);
        assert_eq!(bytes[60..64], 2u32.to_be_bytes());
        // A time before 2000 is the format's zero.
        assert_eq!(bytes[24..28], [0; 4]);
        assert_eq!(Footer::parse(&bytes), Ok(fixed));
    }

    #[test]
    fn it_reads_what_it_wrote_with_511_bytes_too() {
        let bytes = footer().encode();
        assert_eq!(Footer::parse(&bytes), Ok(footer()));
        assert_eq!(Footer::parse(&bytes[..511]), Ok(footer()));
        assert_eq!(Footer::parse(&bytes[..510]), Err(FooterError::NoCookie));
        assert_eq!(
            footer().created(),
            UNIX_EPOCH + Duration::from_secs(946_684_877)
        );
        assert_eq!(footer().creator_name(), "win");
        assert_eq!(footer().creator_version_name(), "10.0");
    }

    #[test]
    fn another_size_changes_nothing_else() {
        let mut bytes = footer().encode();
        bytes[28..32].copy_from_slice(b"vpc ");
        bytes[200] = 9;
        let old = Footer {
            creator: *b"vpc ",
            ..footer()
        };
        let new = old.resized(8 << 30);
        new.encode_size(&mut bytes);
        assert_eq!(bytes[200], 9);
        assert_eq!(Footer::parse(&bytes), Ok(new.clone()));
        assert_eq!((new.original_size, new.current_size), (64 << 20, 8 << 30));
        assert_eq!(
            (new.creator, bytes[56..60].to_vec()),
            (*b"win ", vec![0x41, 4, 16, 63])
        );
        assert_eq!(
            (new.unique_id, new.timestamp),
            (old.unique_id, old.timestamp)
        );
    }

    #[test]
    fn another_identity_changes_nothing_else() {
        let mut old = footer();
        old.saved_state = true;
        old.original_size = 5;
        let mut bytes = old.encode();
        // A field that is unknown to us.
        bytes[200] = 9;
        let created = UNIX_EPOCH + Duration::from_secs(946_684_800 + 88);
        Footer::encode_identity(&mut bytes, Uuid::from_bytes([8; 16]), created);
        let expected = Footer {
            timestamp: 88,
            unique_id: Uuid::from_bytes([8; 16]),
            saved_state: false,
            ..old
        };
        assert_eq!(Footer::parse(&bytes), Ok(expected));
        assert_eq!(bytes[200], 9);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = footer().encode();
        for bit in 0..LEN * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::parse(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn unknown_types_and_versions_are_named() {
        let sealed = |offset: usize, value: u32| {
            let mut bytes = footer().encode();
            bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
            let sum = checksum(&bytes, CHECKSUM);
            bytes[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
            Footer::parse(&bytes)
        };
        assert_eq!(sealed(60, 6), Err(FooterError::Kind(6)));
        assert_eq!(
            sealed(12, 0x0002_0000),
            Err(FooterError::Version(0x0002_0000))
        );
    }
}
