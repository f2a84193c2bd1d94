//! What is wrong with a configuration.

use super::valid::MAX_IDE_DISK_BYTES;
use super::{CONFIG_VERSION, MAX_CONFIG_BYTES};

/// What is wrong with a configuration. Each names the field, what it holds and what it may hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The text is too long to be read.
    #[error("the configuration has {bytes} bytes; at most {MAX_CONFIG_BYTES} are read")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// Not JSON, or not the JSON of a configuration.
    #[error("the configuration cannot be read: {message}")]
    Syntax {
        /// What the parser said.
        message: String,
    },
    /// Another format.
    #[error("version is {found}; this paddock-vmm reads version {CONFIG_VERSION}")]
    Version {
        /// The version in the file.
        found: u32,
    },
    /// A number outside its range.
    #[error("{field} is {value}; it must be {min} to {max}")]
    OutOfRange {
        /// The field.
        field: String,
        /// Its value.
        value: u64,
        /// The smallest allowed.
        min: u64,
        /// The largest allowed.
        max: u64,
    },
    /// Text of the wrong form.
    #[error("{field} is {value:?}; it must be {expected}")]
    Malformed {
        /// The field.
        field: String,
        /// Its value, shortened to 80 characters.
        value: String,
        /// What it should look like.
        expected: &'static str,
    },
    /// Two things have the same name, place or address.
    #[error("{field}: {value} is used twice")]
    Duplicate {
        /// The field.
        field: String,
        /// The value that both have.
        value: String,
    },
    /// More of something than the machine has room for.
    #[error("{field}: {count} are listed; at most {max} fit")]
    TooMany {
        /// The field.
        field: &'static str,
        /// How many there are.
        count: usize,
        /// How many may be.
        max: usize,
    },
    /// Two fields that do not go together.
    #[error("{field}: {message}")]
    Conflict {
        /// The field.
        field: String,
        /// Why not.
        message: &'static str,
    },
    /// Found when the disk is opened: it is larger than its bus can address.
    #[error(
        "disk {disk} has {bytes} bytes; a disk on the IDE bus has at most {MAX_IDE_DISK_BYTES} (127 GiB): attach it to \
         the SCSI or Virtio bus"
    )]
    DiskTooLargeForBus {
        /// The disk's name.
        disk: String,
        /// Its size.
        bytes: u64,
    },
}
