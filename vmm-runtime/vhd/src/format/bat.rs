//! The block allocation table: for each block the sector at which its bitmap
//! begins, and where that may be.

use std::ops::Range;

use super::{SECTOR, header};

/// The entry of a block that is not in the file.
pub(crate) const UNALLOCATED: u32 = u32::MAX;

/// The block size of the disks we make.
pub(crate) const BLOCK_SIZE: u32 = 2 << 20;

/// The most entries a table may have: four times what the largest disk needs
/// at the usual block size. Bounds the memory that a hostile file can ask for.
pub(crate) const MAX_ENTRIES: u32 = 4 * ((2040u64 << 30) / BLOCK_SIZE as u64) as u32;

/// Blocks may be this small and this large.
const BLOCK_SIZES: Range<u32> = 4096..(256 << 20) + 1;

/// Where the parts of a dynamic disk lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes that the guest sees.
    pub(crate) size: u64,
    /// Bytes of data in a block: a power of two.
    pub(crate) block_size: u32,
    pub(crate) header_offset: u64,
    pub(crate) bat_offset: u64,
    pub(crate) bat_entries: u32,
    /// Beginning and end of what tells where the parent lies.
    pub(crate) locators: [(u64, u64); 8],
}

impl Layout {
    /// The layout of a new disk: header behind the copy of the footer, then
    /// the table.
    pub(crate) fn new(size: u64, block_size: u32) -> Layout {
        Layout {
            size,
            block_size,
            header_offset: SECTOR,
            bat_offset: SECTOR + header::LEN as u64,
            // At most MAX_ENTRIES / 4, for sizes up to 2040 GiB.
            bat_entries: size.div_ceil(block_size.into()) as u32,
            locators: [(0, 0); 8],
        }
    }

    /// The layout that a header at `header_offset` describes.
    pub(crate) fn of(size: u64, header_offset: u64, header: &header::Header) -> Layout {
        let header::Header {
            bat_offset,
            bat_entries,
            block_size,
            ..
        } = *header;
        Layout {
            size,
            block_size,
            header_offset,
            bat_offset,
            bat_entries,
            locators: [(0, 0); 8],
        }
    }

    /// Refuses what cannot be, in a file whose last byte before the footer is
    /// at `file_end`.
    pub(crate) fn check(&self, file_end: u64) -> Result<(), String> {
        let Layout {
            size,
            block_size,
            header_offset,
            bat_offset,
            bat_entries,
            ..
        } = *self;
        if !block_size.is_power_of_two() || !BLOCK_SIZES.contains(&block_size) {
            return Err(format!(
                "its block size is {block_size} bytes, expected a power of two from 4 KiB to 256 MiB"
            ));
        }
        if bat_entries > MAX_ENTRIES {
            return Err(format!(
                "its table has {bat_entries} entries, at most {MAX_ENTRIES} are possible"
            ));
        }
        let needed = size.div_ceil(block_size.into());
        if u64::from(bat_entries) < needed {
            return Err(format!(
                "its table has {bat_entries} entries, but {size} bytes need {needed}"
            ));
        }
        let header_end = header_offset.checked_add(header::LEN as u64);
        if header_offset < SECTOR || header_end.is_none_or(|end| end > file_end) {
            return Err(format!(
                "its header is said to be at {header_offset}, outside of the file"
            ));
        }
        let bat_end = bat_offset.checked_add(self.bat_len());
        if bat_offset % SECTOR != 0
            || bat_offset < SECTOR
            || bat_end.is_none_or(|end| end > file_end)
        {
            return Err(format!(
                "its table is said to be at {bat_offset}, outside of the file or not at a sector"
            ));
        }
        if bat_offset < header_offset + header::LEN as u64
            && header_offset < bat_offset + self.bat_len()
        {
            return Err(format!(
                "its header at {header_offset} and its table at {bat_offset} overlap"
            ));
        }
        // Were it ignored, the file could grow until a block lies there.
        if let Some((start, _)) = self.locators.iter().find(|(_, end)| *end > file_end) {
            return Err(format!(
                "a locator of its parent is said to be at {start}, outside of the file; reconnect it to its parent, which writes those anew"
            ));
        }
        Ok(())
    }

    /// Bytes of the table on disk, with its padding.
    pub(crate) fn bat_len(&self) -> u64 {
        (u64::from(self.bat_entries) * 4).next_multiple_of(SECTOR)
    }

    /// Sectors of data in a block.
    pub(crate) fn block_sectors(&self) -> u32 {
        self.block_size / SECTOR as u32
    }

    /// Bytes of a block's bitmap on disk.
    pub(crate) fn bitmap_len(&self) -> u64 {
        u64::from(self.block_sectors().div_ceil(8)).next_multiple_of(SECTOR)
    }

    /// Bytes of bitmap and data.
    pub(crate) fn region_len(&self) -> u64 {
        self.bitmap_len() + u64::from(self.block_size)
    }

    /// Where the region of `entry` begins, in bytes.
    pub(crate) fn region(&self, entry: u32) -> u64 {
        u64::from(entry) * SECTOR
    }

    /// Where the data of `entry` begins, in bytes.
    pub(crate) fn data(&self, entry: u32) -> u64 {
        self.region(entry) + self.bitmap_len()
    }

    /// Where the first block may begin: behind header, table and locators.
    pub(crate) fn metadata_end(&self) -> u64 {
        let header_end = self.header_offset + header::LEN as u64;
        header_end
            .max(self.bat_offset + self.bat_len())
            .max(self.locators.iter().map(|(_, end)| *end).max().unwrap_or(0))
            .next_multiple_of(SECTOR)
    }

    /// The first entry not before byte `from` whose data begins on 4 KiB
    /// (with the usual bitmap of one sector: 7 modulo 8). `None` when it does
    /// not fit the table's 32 bits.
    pub(crate) fn aligned_entry(&self, from: u64) -> Option<u32> {
        let bitmap = self.bitmap_len();
        let data = from.checked_add(bitmap)?.checked_next_multiple_of(4096)?;
        let entry = u32::try_from((data - bitmap) / SECTOR).ok()?;
        (entry != UNALLOCATED).then_some(entry)
    }

    /// Where the last block ends, at least the end of the metadata. Refuses
    /// entries that reach into metadata, into each other, or past `file_end`.
    /// Takes memory and time for a sorted copy of the entries.
    pub(crate) fn check_entries(&self, entries: &[u32], file_end: u64) -> Result<u64, String> {
        let mut sorted: Vec<(u32, u32)> = (0u32..)
            .zip(entries)
            .filter(|(_, entry)| **entry != UNALLOCATED)
            .map(|(block, entry)| (*entry, block))
            .collect();
        sorted.sort_unstable();
        let len = self.region_len();
        for pair in sorted.windows(2) {
            let [(first, a), (second, b)] = *pair else {
                continue;
            };
            if self.region(second) - self.region(first) < len {
                return Err(format!(
                    "blocks {a} and {b} overlap, at sectors {first} and {second}"
                ));
            }
        }
        let metadata = [
            ("the copy of the footer", 0..SECTOR),
            (
                "the header",
                self.header_offset..self.header_offset + header::LEN as u64,
            ),
            (
                "the table",
                self.bat_offset..self.bat_offset + self.bat_len(),
            ),
        ];
        let locators = self
            .locators
            .iter()
            .filter(|(start, end)| start < end)
            .map(|&(start, end)| ("a locator of the parent", start..end));
        for (what, range) in metadata.into_iter().chain(locators) {
            // The last region that begins before the end of the range.
            let after = sorted.partition_point(|(entry, _)| self.region(*entry) < range.end);
            if let Some((entry, block)) = after.checked_sub(1).and_then(|last| sorted.get(last))
                && self.region(*entry) + len > range.start
            {
                return Err(format!("block {block} at sector {entry} lies over {what}"));
            }
        }
        match sorted.last() {
            Some((entry, block)) if self.region(*entry) + len > file_end => Err(format!(
                "block {block} at sector {entry} reaches past the end of the file, byte {file_end}"
            )),
            Some((entry, _)) => Ok((self.region(*entry) + len).max(self.metadata_end())),
            None => Ok(self.metadata_end()),
        }
    }
}

/// Reads a table from its bytes on disk.
pub(crate) fn decode(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes
        .chunks_exact(4)
        .map(|entry| u32::from_be_bytes([entry[0], entry[1], entry[2], entry[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 16 blocks of 2 MiB: table at 1536..2048, blocks of 4097 sectors.
    fn layout() -> Layout {
        Layout::new(32 << 20, BLOCK_SIZE)
    }

    const END: u64 = 100 << 20;

    fn check(entries: &[u32]) -> Result<u64, String> {
        layout().check_entries(entries, END)
    }

    #[test]
    fn the_usual_layout() {
        let layout = layout();
        assert_eq!(layout.bat_entries, 16);
        assert_eq!(layout.bat_len(), 512);
        assert_eq!(layout.bitmap_len(), 512);
        assert_eq!(layout.metadata_end(), 2048);
        assert_eq!(layout.aligned_entry(2048), Some(7));
        assert_eq!(layout.data(7), 4096);
        assert_eq!(layout.aligned_entry(7 * 512 + 1), Some(15));
        assert_eq!(layout.aligned_entry(u64::from(u32::MAX) * 512), None);
        assert_eq!(layout.aligned_entry(u64::MAX), None);
        assert_eq!(layout.check(END), Ok(()));
    }

    #[test]
    fn the_largest_disk_fits_the_table() {
        let layout = Layout::new(2040 << 30, BLOCK_SIZE);
        let mut end = layout.metadata_end();
        for _ in 0..layout.bat_entries {
            end = layout.region(layout.aligned_entry(end).unwrap()) + layout.region_len();
        }
        assert!(end < u64::from(u32::MAX) * 512);
    }

    #[test]
    fn larger_blocks_have_longer_bitmaps_and_stay_aligned() {
        let layout = Layout::new(1 << 30, 16 << 20);
        assert_eq!(layout.bitmap_len(), 4096);
        let entry = layout.aligned_entry(layout.metadata_end()).unwrap();
        assert_eq!(layout.data(entry) % 4096, 0);
    }

    #[test]
    fn entries_in_any_order_are_fine() {
        assert_eq!(check(&[]), Ok(2048));
        assert_eq!(check(&[UNALLOCATED, UNALLOCATED]), Ok(2048));
        assert_eq!(
            check(&[7 + 4104, UNALLOCATED, 7]),
            Ok((7 + 4104 + 4097) * 512)
        );
        assert_eq!(check(&[4, 4 + 4097]), Ok((4 + 2 * 4097) * 512));
    }

    #[test]
    fn entries_over_metadata_are_refused() {
        for entry in [0, 1, 2, 3] {
            let error = check(&[UNALLOCATED, entry]).unwrap_err();
            assert!(
                error.contains(&format!("block 1 at sector {entry} lies over")),
                "{error}"
            );
        }
        // A header and a table behind the blocks are metadata as well.
        let far = Layout {
            header_offset: 5000 * 512,
            bat_offset: 6000 * 512,
            ..layout()
        };
        assert!(far.check_entries(&[1], END).is_ok());
        assert!(
            far.check_entries(&[904], END)
                .unwrap_err()
                .contains("the header")
        );
        assert!(
            far.check_entries(&[5002], END)
                .unwrap_err()
                .contains("the table")
        );
        assert!(far.check_entries(&[6001], END).is_ok());
        let mut child = layout();
        child.locators[1] = (2048, 2100);
        assert!(
            child
                .check_entries(&[4], END)
                .unwrap_err()
                .contains("a locator")
        );
        assert!(child.check_entries(&[5], END).is_ok());
        assert_eq!(child.metadata_end(), 2560);
        assert_eq!(child.aligned_entry(child.metadata_end()), Some(7));
    }

    #[test]
    fn entries_over_each_other_or_past_the_end_are_refused() {
        assert_eq!(
            check(&[8, 8]).unwrap_err(),
            "blocks 0 and 1 overlap, at sectors 8 and 8"
        );
        assert!(check(&[8, 8 + 4096]).unwrap_err().contains("overlap"));
        let last = (END / 512 - 4097) as u32;
        assert!(check(&[last]).is_ok());
        assert!(check(&[last + 1]).unwrap_err().contains("past the end"));
        assert!(check(&[u32::MAX - 1]).unwrap_err().contains("past the end"));
    }

    #[test]
    fn layouts_that_cannot_be_are_refused() {
        let refused = |layout: Layout| layout.check(END).unwrap_err();
        assert!(
            refused(Layout {
                block_size: 0,
                ..layout()
            })
            .contains("block size")
        );
        assert!(
            refused(Layout {
                block_size: 3 << 20,
                ..layout()
            })
            .contains("block size")
        );
        assert!(
            refused(Layout {
                block_size: 1 << 31,
                ..layout()
            })
            .contains("block size")
        );
        assert!(
            refused(Layout {
                bat_entries: 15,
                ..layout()
            })
            .contains("need 16")
        );
        assert!(
            refused(Layout {
                bat_entries: u32::MAX,
                ..layout()
            })
            .contains("at most")
        );
        assert!(
            refused(Layout {
                header_offset: 0,
                ..layout()
            })
            .contains("outside")
        );
        assert!(
            refused(Layout {
                header_offset: u64::MAX,
                ..layout()
            })
            .contains("outside")
        );
        assert!(
            refused(Layout {
                bat_offset: u64::MAX - 511,
                ..layout()
            })
            .contains("outside")
        );
        assert!(
            refused(Layout {
                bat_offset: END,
                ..layout()
            })
            .contains("outside")
        );
        assert!(
            refused(Layout {
                bat_offset: 1537,
                ..layout()
            })
            .contains("not at a sector")
        );
        let mut child = layout();
        child.locators[7] = (END - 1, END + 1);
        assert!(refused(child).contains("locator"));
        assert!(
            refused(Layout {
                bat_offset: 1024,
                ..layout()
            })
            .contains("overlap")
        );
    }

    #[test]
    fn a_table_of_the_largest_size_is_checked_in_one_sweep() {
        let layout = Layout {
            bat_entries: MAX_ENTRIES,
            block_size: 4096,
            size: 4096,
            ..layout()
        };
        let first = (layout.metadata_end() / 512) as u32;
        let entries: Vec<u32> = (0..MAX_ENTRIES)
            .rev()
            .map(|block| first + block * 9)
            .collect();
        assert!(layout.check_entries(&entries, u64::MAX).is_ok());
    }
}
