//! The volumes of a disk that is mounted, and their devices.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use paddock_free_space::{Disk, PartitionTable, free_space};

use crate::failure::Failure;
use crate::mounting::loop_device::{self, Part};
use crate::mounting::state::Volume;

/// The disk's file.
struct Image {
    file: File,
    size: u64,
}

impl Disk for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }
}

/// Finds the volumes of the disk `image`, which is the loop device `device`,
/// and gives each a device: the kernel's own of a partition, or else a loop
/// device over its part of the file. Those are put into `volumes` as they are
/// made, so that an error leaves none unknown.
pub(crate) fn attach(
    image: &Path,
    device: &Path,
    size: u64,
    read_only: bool,
    volumes: &mut Vec<Volume>,
) -> Result<(), Failure> {
    let file = File::open(image).map_err(|error| Failure::io(image, "open", &error))?;
    // A table that can't be right: the disk is there all the same.
    let Ok(report) = free_space(&Image { file, size }) else {
        return Ok(());
    };
    for (number, volume) in (1..).zip(&report.volumes) {
        let kernel = match report.table {
            PartitionTable::None => Some(device.to_owned()),
            // Logical partitions are numbered otherwise.
            PartitionTable::Mbr | PartitionTable::Gpt => {
                loop_device::partition_node(device, number)
                    .filter(|node| is_at(node, volume.start, volume.len))
            }
        };
        let own_loop = kernel.is_none();
        let device = match kernel {
            Some(device) => device,
            None => {
                let part = Part {
                    offset: volume.start,
                    len: volume.len,
                    read_only,
                    partitions: false,
                };
                loop_device::attach(image, part)?
            }
        };
        volumes.push(Volume {
            number,
            start: volume.start,
            length: volume.len,
            kind: volume.kind.to_string(),
            device,
            own_loop,
            folder: None,
        });
    }
    Ok(())
}

/// Whether a partition's node is where we found the partition.
fn is_at(node: &Path, start: u64, len: u64) -> bool {
    let sectors = |what: &str| -> Option<u64> {
        let name = node.file_name()?.to_str()?;
        let text = std::fs::read_to_string(format!("/sys/class/block/{name}/{what}")).ok()?;
        text.trim().parse().ok()
    };
    sectors("start") == Some(start / 512) && sectors("size") == Some(len / 512)
}
