//! The volumes of a disk that is mounted, and their devices.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use paddock_free_space::{Disk, PartitionTable, WalkError, contents};

use crate::failure::{Exit, Failure};
use crate::mounting::loop_device::{self, Part};
use crate::mounting::state::{Mounted, StateFolder, Volume};

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

/// Finds the volumes of a disk that is a loop device, and gives each a device:
/// the kernel's own of a partition, or else a loop device over its part of the
/// file. Those are kept as they are made, so that nothing that ends this
/// leaves one unknown.
///
/// Where the table contradicts itself, the volumes are those that the kernel
/// finds all the same; returns what is wrong with it.
pub(crate) fn attach(
    folder: &StateFolder,
    mounted: &mut Mounted,
) -> Result<Option<String>, Failure> {
    let image = &mounted.image;
    let file = File::open(image).map_err(|error| Failure::io(image, "open", &error))?;
    let size = mounted.size;
    let contents = match contents(&Image { file, size }) {
        Ok(contents) => contents,
        Err(WalkError::Table { found }) => {
            mounted.volumes = kernels_own(&mounted.device);
            folder.save(mounted)?;
            return Ok(Some(found));
        }
        Err(error) => return Err(Failure::new(Exit::System, error.to_string())),
    };
    for (number, volume) in (1..).zip(&contents.volumes) {
        let kernel = match contents.table {
            PartitionTable::None => Some(mounted.device.clone()),
            // Logical partitions are numbered otherwise.
            PartitionTable::Mbr | PartitionTable::Gpt => {
                loop_device::partition_node(&mounted.device, number)
                    .filter(|node| place_of(node) == Some((volume.start, volume.len)))
            }
        };
        let own_loop = kernel.is_none();
        let device = match kernel {
            Some(device) => device,
            None => {
                let part = Part {
                    offset: volume.start,
                    len: volume.len,
                    read_only: mounted.read_only,
                    partitions: false,
                };
                loop_device::attach(mounted.owner(), part)?
            }
        };
        mounted.volumes.push(Volume {
            number,
            start: volume.start,
            length: volume.len,
            kind: volume.kind.to_string(),
            device,
            own_loop,
            folder: None,
            mounted_as: None,
        });
        folder.save(mounted)?;
    }
    Ok(None)
}

/// The most partitions that the kernel makes nodes of.
const MOST: usize = 256;

/// The partitions that the kernel itself found on a device.
fn kernels_own(device: &Path) -> Vec<Volume> {
    let nodes = (1..=MOST).filter_map(|number| {
        let node = loop_device::partition_node(device, number)?;
        let (start, length) = place_of(&node)?;
        Some(Volume {
            number,
            start,
            length,
            kind: "unknown".to_owned(),
            device: node,
            own_loop: false,
            folder: None,
            mounted_as: None,
        })
    });
    nodes.collect()
}

/// The first byte and the length of a partition's node.
fn place_of(node: &Path) -> Option<(u64, u64)> {
    let bytes = |what: &str| -> Option<u64> {
        let name = node.file_name()?.to_str()?;
        let text = std::fs::read_to_string(format!("/sys/class/block/{name}/{what}")).ok()?;
        text.trim().parse::<u64>().ok()?.checked_mul(512)
    };
    Some((bytes("start")?, bytes("size")?))
}
