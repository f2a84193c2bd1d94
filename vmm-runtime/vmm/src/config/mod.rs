//! The configuration of one machine: read in two steps, so that what runs cannot be invalid.
//!
//! [`VmConfig`] is the JSON as it is written by the agent; [`VmConfig::validate`] turns it into a [`ValidVmConfig`],
//! the only form that the rest of the crate takes.

mod checks;
mod error;
#[cfg(test)]
mod tests;
mod valid;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use valid::{
    DiskSlot, MAX_IDE_DISK_BYTES, ValidAdapter, ValidBoot, ValidDisk, ValidKernel, ValidVmConfig,
};

/// The only version of the configuration's format so far.
pub const CONFIG_VERSION: u32 = 1;
/// The largest configuration that is read, in bytes.
pub const MAX_CONFIG_BYTES: usize = 1024 * 1024;

/// The configuration as it is in `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmConfig {
    /// [`CONFIG_VERSION`].
    pub version: u32,
    /// The instance's uid; unique on the host.
    pub id: String,
    /// The VM's name for people, e.g. `namespace/name`.
    pub name: String,
    /// The kind of machine.
    pub machine: Machine,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// QEMU's name of the CPU model. Without it: `host` with KVM, `max` with TCG.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cpu_model: Option<String>,
    /// Virtual processors, 1 to 32.
    pub cores: u32,
    /// Memory in MiB, 16 to 1,048,576.
    pub memory_mib: u64,
    /// The SMBIOS UUID that the guest sees.
    pub uuid: uuid::Uuid,
    /// The host's epoch that this run was started under; reported back in the status.
    pub host_epoch: u64,
    /// What to start.
    pub boot: Boot,
    /// The disks.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// The network adapters, in the guest's order. At most 8.
    #[serde(default)]
    pub network_adapters: Vec<NetworkAdapter>,
    /// The serial console.
    #[serde(default)]
    pub console: Console,
    /// Absolute path of the folder for sockets, logs and the result. It exists, belongs to this process's user and is
    /// used by this run alone.
    pub run_directory: PathBuf,
    /// The QEMU to use.
    pub qemu: Qemu,
    /// How long the guest may take to shut down when its power button was pressed, in seconds, at most 86,400.
    #[serde(default = "default_stop_deadline")]
    pub stop_deadline_seconds: u32,
}

fn default_stop_deadline() -> u32 {
    30
}

/// Kinds of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Machine {
    /// A PC with BIOS, IDE, PCI.
    #[serde(rename = "PC")]
    Pc,
    /// A machine without firmware or legacy devices; boots a kernel directly.
    MicroVM,
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The processor, through `/dev/kvm`.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// What the machine starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Boot {
    /// The kinds of device that the firmware tries, first to last. Kinds that are not listed are not tried.
    #[serde(default)]
    pub order: Vec<BootDevice>,
    /// A kernel to start directly, without firmware looking for one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kernel: Option<Kernel>,
}

/// Kinds of device that firmware can start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BootDevice {
    /// A floppy disk.
    Floppy,
    /// A CD or DVD.
    #[serde(rename = "CD")]
    Cd,
    /// The disks, by `bootIndex`, then as listed.
    HardDisk,
    /// The network adapters by PXE, as listed.
    Network,
}

/// Direct kernel boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kernel {
    /// The kernel image.
    pub kernel: PoolFile,
    /// The initial ramdisk.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub initrd: Option<PoolFile>,
    /// The kernel's command line, at most 2,047 bytes (COMMAND_LINE_SIZE of x86 Linux less the NUL).
    #[serde(default)]
    pub command_line: String,
}

/// A file in a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolFile {
    /// Absolute path of the pool's folder.
    pub pool: PathBuf,
    /// Path within the pool; may not leave it.
    pub path: PathBuf,
}

/// Kinds of disk bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DiskBus {
    /// IDE: controllers (channels) 0 and 1, units 0 and 1.
    #[serde(rename = "IDE")]
    Ide,
    /// SCSI: controllers 0 to 3, units (target ids) 0 to 6. The guest sees virtio-scsi.
    #[serde(rename = "SCSI")]
    Scsi,
    /// virtio-blk: controller 0, units 0 to 15.
    Virtio,
}

/// A virtual hard disk and where it is attached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disk {
    /// Unique within the machine: 1 to 32 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// The bus.
    pub bus: DiskBus,
    /// The controller on the bus.
    #[serde(default)]
    pub controller: u32,
    /// The place on the controller.
    pub unit: u32,
    /// Absolute path of the pool's folder.
    pub pool: PathBuf,
    /// Path of the VHD within the pool.
    pub path: PathBuf,
    /// The parents of a differencing disk, nearest first, at most 63: only read. They are looked for where the disk
    /// says, and in the folders of these files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<PoolFile>,
    /// The undo disk that takes what the guest writes. Without it the guest writes into the VHD itself, else that is
    /// only read.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub undo: Option<UndoDisk>,
    /// The epoch of the attachment that allows this run to open the disk.
    pub disk_epoch: u64,
    /// On a folder that hosts share: as whom the disk is opened. It is refused to who comes with a lower epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<DiskOwner>,
    /// Never write.
    #[serde(default)]
    pub read_only: bool,
    /// The serial number that the guest sees: at most 20 printable ASCII characters. Empty: none.
    #[serde(default)]
    pub serial: String,
    /// Place among the disks when the firmware looks for one to start from; disks without it come last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub boot_index: Option<u32>,
}

/// Who opens a disk on a folder that hosts share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DiskOwner {
    /// The host's name in the cluster: 1 to 253 printable ASCII characters.
    pub host: String,
    /// Identity of the host's boot.
    pub boot_id: uuid::Uuid,
}

/// A differencing disk over a disk, which takes all that is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UndoDisk {
    /// Absolute path of the pool's folder.
    pub pool: PathBuf,
    /// Path within the pool; ends with `.vud`.
    pub path: PathBuf,
    /// What is done when there is no such file.
    pub missing: MissingUndo,
}

/// What is done about an undo disk that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MissingUndo {
    /// It is made.
    Create,
    /// The start fails: a guest has written into it.
    Refuse,
}

/// A network adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkAdapter {
    /// Unique within the machine: 1 to 32 of `a-z`, `0-9`, `-`.
    pub name: String,
    /// Six hexadecimal pairs with colons; unicast, not all zero.
    pub mac: String,
    /// The tap device that is there already: 1 to 15 characters.
    pub tap: String,
    /// What the guest sees.
    pub model: AdapterModel,
}

/// Kinds of network adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AdapterModel {
    /// virtio-net.
    Virtio,
    /// Intel 82540EM.
    E1000,
}

/// The serial console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Console {
    /// How much of the output is kept in `console.log` and `console.log.1` together, in bytes: 4,096 to 64 MiB.
    #[serde(default = "default_log_bytes")]
    pub log_bytes: u64,
}

fn default_log_bytes() -> u64 {
    1024 * 1024
}

impl Default for Console {
    fn default() -> Self {
        Console {
            log_bytes: default_log_bytes(),
        }
    }
}

/// The QEMU to use, and as whom it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Qemu {
    /// Absolute path of `qemu-system-x86_64`.
    pub binary: PathBuf,
    /// User id, not 0. When `paddock-vmm` is not root it must be its own.
    pub uid: u32,
    /// Group id, not 0. When `paddock-vmm` is not root it must be its own.
    pub gid: u32,
}

impl VmConfig {
    /// Reads the JSON text of a configuration, without looking at what it says.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        if text.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLong { bytes: text.len() });
        }
        serde_json::from_slice(text).map_err(|error| ConfigError::Syntax {
            message: error.to_string(),
        })
    }

    /// Checks everything that can be checked without touching the host.
    pub fn validate(self) -> Result<ValidVmConfig, ConfigError> {
        ValidVmConfig::try_from(self)
    }
}
