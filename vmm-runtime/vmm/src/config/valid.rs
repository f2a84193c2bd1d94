//! The form that has passed the checks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use paddock_vhd::LockOwner;

use super::checks::{
    absolute, command_line, device_name, in_range, mac, malformed, pool_file, text,
};
use super::{
    Accelerator, AdapterModel, BootDevice, CONFIG_VERSION, ConfigError, Disk, DiskBus, Machine,
    MissingUndo, NetworkAdapter, PoolFile, VmConfig,
};

/// The largest IDE disk: 127 GiB, as Virtual Server had it (its BIOS addressed 28 bits of 512-byte sectors).
pub const MAX_IDE_DISK_BYTES: u64 = 127 << 30;

const MAX_CORES: u32 = 32;
const MIN_MEMORY_MIB: u64 = 16;
const MAX_MEMORY_MIB: u64 = 1 << 20;
const MAX_ADAPTERS: usize = 8;
const MAX_STOP_DEADLINE_SECONDS: u32 = 86_400;
const MIN_LOG_BYTES: u64 = 4096;
const MAX_LOG_BYTES: u64 = 64 << 20;
/// The longest serial number that virtio-blk and ATA IDENTIFY can hold.
const MAX_SERIAL_BYTES: usize = 20;
/// IFNAMSIZ is 16, NUL included.
const MAX_INTERFACE_BYTES: usize = 15;
const MAX_ID_BYTES: usize = 64;
const MAX_VM_NAME_BYTES: usize = 320;
const MAX_CPU_MODEL_BYTES: usize = 256;

/// Where a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DiskSlot {
    /// IDE channel 0 or 1, unit 0 or 1.
    Ide {
        /// 0 primary, 1 secondary.
        channel: u8,
        /// 0 master, 1 slave.
        unit: u8,
    },
    /// A target of a SCSI controller.
    Scsi {
        /// 0 to 3.
        controller: u8,
        /// 0 to 6.
        target: u8,
    },
    /// virtio-blk, 0 to 15.
    Virtio {
        /// Also decides the PCI slot.
        unit: u8,
    },
}

/// A checked disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidDisk {
    pub(crate) name: String,
    pub(crate) slot: DiskSlot,
    pub(crate) file: PoolFile,
    pub(crate) parents: Vec<PoolFile>,
    pub(crate) undo: Option<(PoolFile, MissingUndo)>,
    pub(crate) disk_epoch: u64,
    pub(crate) owner: Option<LockOwner>,
    pub(crate) read_only: bool,
    pub(crate) serial: String,
    /// Position in the firmware's order over all devices; `None`: not tried.
    pub(crate) boot_position: Option<u32>,
}

impl ValidDisk {
    /// The disk's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is attached.
    pub fn slot(&self) -> DiskSlot {
        self.slot
    }

    /// The epoch of the attachment that this run opens the disk under.
    pub fn disk_epoch(&self) -> u64 {
        self.disk_epoch
    }

    /// Whether a disk of this size can be attached here.
    pub fn check_size(&self, bytes: u64) -> Result<(), ConfigError> {
        match self.slot {
            DiskSlot::Ide { .. } if bytes > MAX_IDE_DISK_BYTES => {
                Err(ConfigError::DiskTooLargeForBus {
                    disk: self.name.clone(),
                    bytes,
                })
            }
            _ => Ok(()),
        }
    }
}

/// A checked network adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidAdapter {
    pub(crate) name: String,
    pub(crate) mac: [u8; 6],
    pub(crate) tap: String,
    pub(crate) model: AdapterModel,
    /// Position in the firmware's order over all devices; `None`: no boot from the network.
    pub(crate) boot_position: Option<u32>,
}

impl ValidAdapter {
    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A checked direct kernel boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidKernel {
    pub(crate) kernel: PoolFile,
    pub(crate) initrd: Option<PoolFile>,
    pub(crate) command_line: String,
}

/// What to start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValidBoot {
    /// The firmware looks through the devices that have a boot position.
    Firmware,
    /// The kernel is loaded directly.
    Kernel(ValidKernel),
}

/// A configuration that has passed every check that needs no host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidVmConfig {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) machine: Machine,
    pub(crate) accelerator: Accelerator,
    pub(crate) cpu_model: String,
    pub(crate) cores: u32,
    pub(crate) memory_mib: u64,
    pub(crate) uuid: uuid::Uuid,
    pub(crate) host_epoch: u64,
    pub(crate) boot: ValidBoot,
    pub(crate) disks: Vec<ValidDisk>,
    pub(crate) adapters: Vec<ValidAdapter>,
    pub(crate) log_bytes: u64,
    pub(crate) run_directory: PathBuf,
    pub(crate) qemu_binary: PathBuf,
    pub(crate) qemu_uid: u32,
    pub(crate) qemu_gid: u32,
    pub(crate) stop_deadline_seconds: u32,
}

impl ValidVmConfig {
    /// The instance's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's epoch.
    pub fn host_epoch(&self) -> u64 {
        self.host_epoch
    }

    /// The disks, as listed.
    pub fn disks(&self) -> &[ValidDisk] {
        &self.disks
    }

    /// The network adapters, as listed.
    pub fn network_adapters(&self) -> &[ValidAdapter] {
        &self.adapters
    }

    /// The run directory.
    pub fn run_directory(&self) -> &Path {
        &self.run_directory
    }
}

impl TryFrom<VmConfig> for ValidVmConfig {
    type Error = ConfigError;

    fn try_from(config: VmConfig) -> Result<Self, ConfigError> {
        if config.version != CONFIG_VERSION {
            return Err(ConfigError::Version {
                found: config.version,
            });
        }
        let id = text(
            "id",
            config.id,
            MAX_ID_BYTES,
            "1 to 64 of letters, digits and -._",
            |c| c.is_ascii_alphanumeric() || "-._".contains(c),
        )?;
        let name = text(
            "name",
            config.name,
            MAX_VM_NAME_BYTES,
            "1 to 320 of letters, digits and -._/",
            |c| c.is_ascii_alphanumeric() || "-._/".contains(c),
        )?;
        let cpu_model = match config.cpu_model {
            Some(model) => text(
                "cpuModel",
                model,
                MAX_CPU_MODEL_BYTES,
                "QEMU's name of a CPU model, with +/- features",
                |c| c.is_ascii_alphanumeric() || "-._+,=".contains(c),
            )?,
            None => default_cpu_model(config.accelerator).to_owned(),
        };
        in_range("cores", config.cores, 1, MAX_CORES)?;
        in_range(
            "memoryMib",
            config.memory_mib,
            MIN_MEMORY_MIB,
            MAX_MEMORY_MIB,
        )?;
        in_range(
            "console.logBytes",
            config.console.log_bytes,
            MIN_LOG_BYTES,
            MAX_LOG_BYTES,
        )?;
        in_range(
            "stopDeadlineSeconds",
            config.stop_deadline_seconds,
            0,
            MAX_STOP_DEADLINE_SECONDS,
        )?;
        // QEMU is the part that a guest can attack; it never runs as root.
        in_range("qemu.uid", config.qemu.uid, 1, u32::MAX - 1)?;
        in_range("qemu.gid", config.qemu.gid, 1, u32::MAX - 1)?;
        let run_directory = absolute("runDirectory", config.run_directory)?;
        let qemu_binary = absolute("qemu.binary", config.qemu.binary)?;

        let order = boot_order(config.boot.order)?;
        let mut disks = valid_disks(config.disks)?;
        let mut adapters = valid_adapters(config.network_adapters)?;
        if config.boot.kernel.is_none() {
            // QEMU itself takes the first position for a kernel.
            assign_boot_positions(&order, &mut disks, &mut adapters);
        }
        let boot = match config.boot.kernel {
            None => ValidBoot::Firmware,
            Some(kernel) => ValidBoot::Kernel(ValidKernel {
                command_line: command_line(kernel.command_line)?,
                initrd: kernel
                    .initrd
                    .map(|file| pool_file("boot.kernel.initrd", file))
                    .transpose()?,
                kernel: pool_file("boot.kernel.kernel", kernel.kernel)?,
            }),
        };
        let config = ValidVmConfig {
            id,
            name,
            machine: config.machine,
            accelerator: config.accelerator,
            cpu_model,
            cores: config.cores,
            memory_mib: config.memory_mib,
            uuid: config.uuid,
            host_epoch: config.host_epoch,
            boot,
            disks: disks.into_iter().map(|(disk, _)| disk).collect(),
            adapters,
            log_bytes: config.console.log_bytes,
            run_directory,
            qemu_binary,
            qemu_uid: config.qemu.uid,
            qemu_gid: config.qemu.gid,
            stop_deadline_seconds: config.stop_deadline_seconds,
        };
        check_micro_vm(&config)?;
        Ok(config)
    }
}

fn default_cpu_model(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    }
}

/// A microVM has no BIOS that knows disks, no IDE and no place for option ROMs.
fn check_micro_vm(config: &ValidVmConfig) -> Result<(), ConfigError> {
    if config.machine != Machine::MicroVM {
        return Ok(());
    }
    let conflict = |field: String, message| Err(ConfigError::Conflict { field, message });
    if config.boot == ValidBoot::Firmware {
        return conflict(
            "boot.kernel".to_owned(),
            "a MicroVM boots a kernel directly: name one, or use machine PC",
        );
    }
    for disk in &config.disks {
        if matches!(disk.slot, DiskSlot::Ide { .. }) {
            return conflict(
                format!("disks[{}].bus", disk.name),
                "a MicroVM has no IDE bus: use Virtio or SCSI",
            );
        }
    }
    for adapter in &config.adapters {
        if adapter.model != AdapterModel::Virtio {
            return conflict(
                format!("networkAdapters[{}].model", adapter.name),
                "a MicroVM has Virtio adapters only",
            );
        }
    }
    Ok(())
}

fn boot_order(order: Vec<BootDevice>) -> Result<Vec<BootDevice>, ConfigError> {
    let mut seen = BTreeSet::new();
    for device in &order {
        if !seen.insert(format!("{device:?}")) {
            return Err(ConfigError::Duplicate {
                field: "boot.order".to_owned(),
                value: format!("{device:?}"),
            });
        }
    }
    Ok(order)
}

fn valid_disks(disks: Vec<Disk>) -> Result<Vec<(ValidDisk, Option<u32>)>, ConfigError> {
    let mut names = BTreeSet::new();
    let mut slots = BTreeSet::new();
    let mut boot_indexes = BTreeSet::new();
    let mut valid = Vec::with_capacity(disks.len());
    for (index, disk) in disks.into_iter().enumerate() {
        let name = device_name(&format!("disks[{index}].name"), disk.name)?;
        let field = |field: &str| format!("disks[{name}].{field}");
        if !names.insert(name.clone()) {
            return Err(ConfigError::Duplicate {
                field: "disks.name".to_owned(),
                value: name,
            });
        }
        let slot = disk_slot(&name, disk.bus, disk.controller, disk.unit)?;
        if !slots.insert(slot) {
            return Err(ConfigError::Duplicate {
                field: field("unit"),
                value: format!(
                    "{:?} controller {} unit {}",
                    disk.bus, disk.controller, disk.unit
                ),
            });
        }
        if let Some(boot_index) = disk.boot_index
            && !boot_indexes.insert(boot_index)
        {
            return Err(ConfigError::Duplicate {
                field: field("bootIndex"),
                value: boot_index.to_string(),
            });
        }
        if disk.read_only && matches!(slot, DiskSlot::Ide { .. }) {
            return Err(ConfigError::Conflict {
                field: field("readOnly"),
                message: "an IDE disk cannot be read-only: attach it to the SCSI or Virtio bus",
            });
        }
        if disk.serial.len() > MAX_SERIAL_BYTES
            || !disk
                .serial
                .chars()
                .all(|c| c.is_ascii_graphic() || c == ' ')
        {
            return Err(malformed(
                field("serial"),
                &disk.serial,
                "at most 20 printable ASCII characters",
            ));
        }
        let file = pool_file(
            &format!("disks[{name}]"),
            PoolFile {
                pool: disk.pool,
                path: disk.path,
            },
        )?;
        if disk.parents.len() >= paddock_vhd::MAX_CHAIN {
            return Err(ConfigError::OutOfRange {
                field: field("parents.length"),
                value: disk.parents.len() as u64,
                min: 0,
                max: paddock_vhd::MAX_CHAIN as u64 - 1,
            });
        }
        let parents = disk
            .parents
            .into_iter()
            .map(|parent| pool_file(&field("parents"), parent))
            .collect::<Result<_, _>>()?;
        let undo = disk.undo.map(|undo| {
            let missing = undo.missing;
            let file = PoolFile {
                pool: undo.pool,
                path: undo.path,
            };
            if file.path.extension().is_none_or(|ending| ending != "vud") {
                return Err(malformed(
                    field("undo.path"),
                    &file.path.to_string_lossy(),
                    "a name that ends with .vud",
                ));
            }
            Ok((pool_file(&field("undo"), file)?, missing))
        });
        let undo = undo.transpose()?;
        if disk.read_only && undo.is_some() {
            return Err(ConfigError::Conflict {
                field: field("undo"),
                message: "a disk that is only read has nothing to undo: remove one of the two",
            });
        }
        let disk_epoch = disk.disk_epoch;
        let owner = disk.owner.map(|owner| {
            LockOwner::new(disk_epoch, owner.host.clone(), owner.boot_id).map_err(|_| {
                malformed(
                    field("owner.host"),
                    &owner.host,
                    "1 to 253 printable ASCII characters, and no spaces",
                )
            })
        });
        let owner = owner.transpose()?;
        valid.push((
            ValidDisk {
                name,
                slot,
                file,
                parents,
                undo,
                disk_epoch,
                owner,
                read_only: disk.read_only,
                serial: disk.serial,
                boot_position: None,
            },
            disk.boot_index,
        ));
    }
    Ok(valid)
}

fn disk_slot(
    name: &str,
    bus: DiskBus,
    controller: u32,
    unit: u32,
) -> Result<DiskSlot, ConfigError> {
    let (controllers, units): (u32, u32) = match bus {
        DiskBus::Ide => (2, 2),
        // Target 7 is the host adapter's, as on the Adaptec card that Virtual Server emulated.
        DiskBus::Scsi => (4, 7),
        DiskBus::Virtio => (1, 16),
    };
    let controller = in_range(
        &format!("disks[{name}].controller"),
        controller,
        0,
        controllers - 1,
    )? as u8;
    let unit = in_range(&format!("disks[{name}].unit"), unit, 0, units - 1)? as u8;
    Ok(match bus {
        DiskBus::Ide => DiskSlot::Ide {
            channel: controller,
            unit,
        },
        DiskBus::Scsi => DiskSlot::Scsi {
            controller,
            target: unit,
        },
        DiskBus::Virtio => DiskSlot::Virtio { unit },
    })
}

fn valid_adapters(adapters: Vec<NetworkAdapter>) -> Result<Vec<ValidAdapter>, ConfigError> {
    if adapters.len() > MAX_ADAPTERS {
        return Err(ConfigError::TooMany {
            field: "networkAdapters",
            count: adapters.len(),
            max: MAX_ADAPTERS,
        });
    }
    let mut names = BTreeSet::new();
    let mut macs = BTreeSet::new();
    let mut taps = BTreeSet::new();
    let mut valid = Vec::with_capacity(adapters.len());
    for (index, adapter) in adapters.into_iter().enumerate() {
        let name = device_name(&format!("networkAdapters[{index}].name"), adapter.name)?;
        let duplicate = |field: &str, value: &str| {
            Err(ConfigError::Duplicate {
                field: format!("networkAdapters.{field}"),
                value: value.to_owned(),
            })
        };
        if !names.insert(name.clone()) {
            return duplicate("name", &name);
        }
        let mac = mac(&format!("networkAdapters[{name}].mac"), &adapter.mac)?;
        if !macs.insert(mac) {
            return duplicate("mac", &adapter.mac);
        }
        let tap = adapter.tap;
        if tap.is_empty()
            || tap.len() > MAX_INTERFACE_BYTES
            || !tap
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            || tap.chars().all(|c| c == '.')
        {
            return Err(malformed(
                format!("networkAdapters[{name}].tap"),
                &tap,
                "an interface name: 1 to 15 of letters, digits and -_.",
            ));
        }
        if !taps.insert(tap.clone()) {
            return duplicate("tap", &tap);
        }
        valid.push(ValidAdapter {
            name,
            mac,
            tap,
            model: adapter.model,
            boot_position: None,
        });
    }
    Ok(valid)
}

/// Numbers the devices in the order in which the firmware tries them.
fn assign_boot_positions(
    order: &[BootDevice],
    disks: &mut [(ValidDisk, Option<u32>)],
    adapters: &mut [ValidAdapter],
) {
    let mut position = 0..;
    for device in order {
        match device {
            BootDevice::HardDisk => {
                let mut by_index: Vec<&mut (ValidDisk, Option<u32>)> = disks.iter_mut().collect();
                // Stable: disks without an index stay as listed, after those with one.
                by_index.sort_by_key(|(_, index)| index.map_or(u64::MAX, u64::from));
                for (disk, _) in by_index {
                    disk.boot_position = position.next();
                }
            }
            BootDevice::Network => {
                for adapter in adapters.iter_mut() {
                    adapter.boot_position = position.next();
                }
            }
            // There are no such drives in a configuration of this version, so there is nothing to try.
            BootDevice::Floppy | BootDevice::Cd => {}
        }
    }
}
