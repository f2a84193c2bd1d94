//! A dynamic disk of 2040 GiB of which every block is allocated, in a sparse file of a few MiB.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The largest disk of the format.
pub(crate) const SIZE: &str = "2040GiB";
/// The same in bytes.
pub(crate) const SIZE_BYTES: u64 = 2040 << 30;

const SECTOR: u64 = 512;
const BLOCK: u64 = 2 << 20;
/// Where the format keeps the header of a dynamic disk; the footer's copy lies before it.
const HEADER: u64 = 512;
/// A block's bitmap, its data, and what aligns the next block's data to 4 KiB, in sectors.
const STRIDE: u64 = 8 + BLOCK / SECTOR;

/// Makes an empty dynamic disk of that size full: each block gets a place, whose bitmap is a hole, thus zeros.
pub(crate) fn allocate_all(path: &Path) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    fill(&file).with_context(|| format!("allocating all of {}", path.display()))
}

fn fill(file: &File) -> Result<()> {
    let mut footer = [0; 512];
    file.read_exact_at(&mut footer, 0)?;
    let mut header = [0; 1024];
    file.read_exact_at(&mut header, HEADER)?;
    ensure!(
        footer.starts_with(b"conectix") && header.starts_with(b"cxsparse"),
        "expected a dynamic disk with its header at {HEADER}"
    );
    let field = |range: std::ops::Range<usize>| -> u64 {
        let bytes = header.get(range).unwrap_or_default();
        bytes
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    let (bat, entries, block) = (field(16..24), field(28..32), field(32..36));
    ensure!(
        entries == SIZE_BYTES / BLOCK && block == BLOCK,
        "expected {} blocks of {BLOCK} bytes, found {entries} of {block}",
        SIZE_BYTES / BLOCK
    );
    let first = places(bat + 4 * entries);
    let mut table = Vec::new();
    for entry in 0..entries {
        let sector = u32::try_from(first + entry * STRIDE)?;
        table.extend(sector.to_be_bytes());
    }
    file.write_all_at(&table, bat)?;
    let end = (first + entries * STRIDE) * SECTOR;
    file.write_all_at(&footer, end)?;
    file.set_len(end + SECTOR)?;
    file.sync_all()?;
    Ok(())
}

/// The first sector after `end` bytes that is the last one of its 4 KiB: a block's data follows it.
fn places(end: u64) -> u64 {
    end.div_ceil(SECTOR).div_ceil(8) * 8 + 7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_aligned_and_the_last_block_can_be_named() {
        assert_eq!(places(0), 7);
        assert_eq!(places(1536), 15);
        assert_eq!(places(4096), 15);
        assert_eq!(places(4097), 23);
        let last = places(1536 + 4 * SIZE_BYTES / BLOCK) + (SIZE_BYTES / BLOCK - 1) * STRIDE;
        assert!(u32::try_from(last).is_ok_and(|sector| sector != u32::MAX));
    }
}
