//! Shadow copies. Windows keeps the blocks of a copy where they are until they
//! are overwritten, even if the file they belonged to is gone from the volume
//! and its clusters are free: such clusters hold what only the copy has.
//! (Layout as libvshadow documents it.)

use crate::disk::Part;
use crate::error::{Stop, doubt};
use crate::fields::Fields;

/// Where the header of shadow copies is, in bytes of the volume.
const HEADER: u64 = 0x1e00;

/// What its structures begin with.
const IDENTIFIER: [u8; 16] = [
    0x6b, 0x87, 0x08, 0x38, 0x76, 0xc1, 0x48, 0x4e, 0xb7, 0xae, 0x04, 0x04, 0x6e, 0x6c, 0xc7, 0x52,
];

/// Bytes of a block of the catalogue.
const BLOCK: u64 = 0x4000;

/// How many blocks of the catalogue are read.
const MAX_BLOCKS: usize = 64;

/// Refuses a volume that has shadow copies.
pub(super) fn none(part: &Part<'_>) -> Result<(), Stop> {
    let header = part.read(HEADER, 512)?;
    let fields = Fields(&header);
    if fields.bytes(0, 16)? != IDENTIFIER {
        return Ok(());
    }
    let mut next = fields.le64(48)?;
    for _ in 0..MAX_BLOCKS {
        if next == 0 {
            return Ok(());
        }
        let block = part.read(next, BLOCK)?;
        let fields = Fields(&block);
        if fields.bytes(0, 16)? != IDENTIFIER || fields.le32(20)? != 2 {
            return doubt("its catalogue of shadow copies isn't made like one");
        }
        for at in (128..BLOCK as usize).step_by(128) {
            if !matches!(fields.le64(at)?, 0 | 1) {
                return doubt(
                    "it has shadow copies, which need clusters that are free; delete them in the guest first, with 'vssadmin delete shadows'",
                );
            }
        }
        next = fields.le64(40)?;
    }
    doubt("its catalogue of shadow copies is too long, or leads back")
}
