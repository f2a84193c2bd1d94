//! From an instance to the configuration of its `paddock-vmm`, and the checks that only this host can make.

use super::serial;
use crate::{
    backend::{GuestKey, StartOrder},
    host::{self, accelerator::Verdict},
    instance::core::Failure,
};
use paddock_crds::{
    HostSpec,
    host::Accelerator as HostAccelerator,
    reference::PoolFile,
    virtual_hard_disk::UndoState,
    virtual_machine::{Acceleration, AdapterModel, Bus},
    virtual_machine_instance::{InstanceConfig, InstanceDisk},
};
use paddock_net::{AdapterName, OwnerId, TapName};
use paddock_vhd::{
    OpenError, OpenErrorKind, ParentSearch, Pool, PoolError, inspect, inspect_chain,
};
use paddock_vmm::config::{
    Accelerator, Boot, BootDevice, CONFIG_VERSION, Console, Disk, DiskBus, DiskOwner, Kernel,
    MAX_IDE_DISK_BYTES, Machine, MissingUndo, NetworkAdapter, Qemu, UndoDisk, VmConfig,
};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// What runs an instance's instructions on a host with this verdict.
///
/// # Errors
/// When the host has not what the instance asks for.
pub fn accelerator(config: &InstanceConfig, verdict: &Verdict) -> Result<HostAccelerator, Failure> {
    let refused = |message: String| Err(Failure::new("HypervisorFailed", message));
    match (config.acceleration, verdict.accelerator) {
        (_, HostAccelerator::None) => {
            refused(format!("no guest runs on this host: {}", verdict.message))
        }
        (Acceleration::Required, HostAccelerator::Emulation) => refused(format!(
            "acceleration is Required and this host has none: {}",
            verdict.message
        )),
        (Acceleration::Disabled, _) => Ok(HostAccelerator::Emulation),
        (Acceleration::Auto | Acceleration::Required, found) => Ok(found),
    }
}

/// What a configuration is made with, besides the instance.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// The Host's spec.
    pub host: &'a HostSpec,
    /// What the probe found.
    pub verdict: &'a Verdict,
    /// The run folder.
    pub run_folder: &'a Path,
    /// QEMU.
    pub qemu: &'a Path,
    /// The user of this machine's QEMU.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// Identity of the running boot.
    pub boot_id: Uuid,
}

/// The configuration of an instance.
///
/// # Errors
/// When the host has not what the instance names.
pub fn config(order: &StartOrder, with: &Circumstances<'_>) -> Result<VmConfig, Failure> {
    let spec = &order.instance.spec;
    let machine = &spec.config;
    let chosen = accelerator(machine, with.verdict)?;
    let refused = |what: &str| {
        Failure::new(
            "HypervisorFailed",
            format!("{what} of the instance is not one that a machine can have"),
        )
    };
    Ok(VmConfig {
        version: CONFIG_VERSION,
        id: order.key.uid.clone(),
        name: order.key.to_string(),
        machine: Machine::Pc,
        accelerator: match chosen {
            HostAccelerator::Kvm => Accelerator::Kvm,
            HostAccelerator::Emulation | HostAccelerator::None => Accelerator::Tcg,
        },
        // What the probe tried goes with the accelerator that it tried.
        cpu_model: with
            .verdict
            .cpu_model
            .clone()
            .filter(|_| chosen == with.verdict.accelerator),
        cores: u32::try_from(machine.cores).map_err(|_| refused("cores"))?,
        memory_mib: u64::try_from(machine.memory_mebibytes).map_err(|_| refused("memory"))?,
        uuid: machine.uuid.parse().map_err(|_| refused("uuid"))?,
        host_epoch: u64::try_from(spec.host_epoch).map_err(|_| refused("hostEpoch"))?,
        boot: Boot {
            order: vec![BootDevice::HardDisk],
            kernel: match &machine.kernel {
                None => None,
                Some(kernel) => Some(Kernel {
                    kernel: image(with.host, &kernel.kernel)?,
                    initrd: kernel
                        .initrd
                        .as_ref()
                        .map(|initrd| image(with.host, initrd))
                        .transpose()?,
                    command_line: kernel.command_line.clone(),
                }),
            },
        },
        disks: machine
            .disks
            .iter()
            .zip(0..)
            .map(|(described, index)| {
                let owner = DiskOwner {
                    host: spec.host.clone(),
                    boot_id: with.boot_id,
                };
                disk(with.host, described, index, owner)
            })
            .collect::<Result<_, _>>()?,
        network_adapters: machine
            .network_adapters
            .iter()
            .map(|adapter| {
                Ok(NetworkAdapter {
                    name: adapter.name.clone(),
                    mac: adapter.mac_address.clone(),
                    tap: tap(&order.key, &adapter.name)?.to_string(),
                    model: match adapter.model {
                        AdapterModel::E1000 => paddock_vmm::config::AdapterModel::E1000,
                        AdapterModel::Auto | AdapterModel::Virtio => {
                            paddock_vmm::config::AdapterModel::Virtio
                        }
                    },
                })
            })
            .collect::<Result<_, Failure>>()?,
        console: Console::default(),
        run_directory: with.run_folder.to_owned(),
        qemu: Qemu {
            binary: with.qemu.to_owned(),
            uid: with.user,
            gid: with.group,
        },
        stop_deadline_seconds: u32::try_from(machine.stop_deadline_seconds)
            .map_err(|_| refused("stopDeadlineSeconds"))?,
    })
}

fn disk(
    host: &HostSpec,
    disk: &InstanceDisk,
    index: u32,
    owner: DiskOwner,
) -> Result<Disk, Failure> {
    let number = |value: i32| u32::try_from(value).unwrap_or(u32::MAX);
    Ok(Disk {
        name: disk.name.clone(),
        bus: match disk.bus {
            Bus::Ide => DiskBus::Ide,
            Bus::Scsi => DiskBus::Scsi,
            Bus::Virtio => DiskBus::Virtio,
        },
        controller: number(disk.controller),
        unit: number(disk.unit),
        pool: host::pool_path(host, &disk.file.pool)?,
        path: PathBuf::from(&disk.file.path),
        parents: disk
            .parents
            .iter()
            .map(|parent| file(host, parent))
            .collect::<Result<_, _>>()?,
        undo: match &disk.undo {
            None => None,
            Some(undo) => Some(UndoDisk {
                pool: host::pool_path(host, &undo.file.pool)?,
                path: PathBuf::from(&undo.file.path),
                missing: match undo.state {
                    UndoState::New => MissingUndo::Create,
                    UndoState::Kept | UndoState::Committing | UndoState::Discarding => {
                        MissingUndo::Refuse
                    }
                },
            }),
        },
        disk_epoch: u64::try_from(disk.disk_epoch).unwrap_or_default(),
        // The undo disk is in the same pool.
        owner: host::is_shared(host, &disk.file.pool).then_some(owner),
        read_only: false,
        serial: serial::of(&disk.name),
        boot_index: Some(index),
    })
}

fn file(host: &HostSpec, file: &PoolFile) -> Result<paddock_vmm::config::PoolFile, Failure> {
    Ok(paddock_vmm::config::PoolFile {
        pool: host::pool_path(host, &file.pool)?,
        path: PathBuf::from(&file.path),
    })
}

/// A file that is given to the guest as it is, and so never lies where disks do.
fn image(host: &HostSpec, file: &PoolFile) -> Result<paddock_vmm::config::PoolFile, Failure> {
    Ok(paddock_vmm::config::PoolFile {
        pool: host::image_pool_path(host, &file.pool)?,
        path: PathBuf::from(&file.path),
    })
}

/// The tap of an adapter; its name follows from the instance and the adapter.
///
/// # Errors
/// When one of the names is none.
pub fn tap(key: &GuestKey, adapter: &str) -> Result<TapName, Failure> {
    let refused = |error: paddock_net::InvalidName| {
        Failure::new("NetworkUnavailable", format!("adapter {adapter}: {error}"))
    };
    let owner = OwnerId::new(&key.uid).map_err(refused)?;
    let name = AdapterName::new(adapter).map_err(refused)?;
    Ok(TapName::of(&owner, &name))
}

/// Looks at every disk, the kernel and the initrd. Blocks.
///
/// # Errors
/// What is wrong with the first one that cannot be used.
pub fn check_files(config: &InstanceConfig, host: &HostSpec) -> Result<(), Failure> {
    for disk in &config.disks {
        check_disk(disk, host)?;
    }
    let kernel = config.kernel.iter();
    for file in kernel.flat_map(|kernel| std::iter::once(&kernel.kernel).chain(&kernel.initrd)) {
        let pool = open_folder(&file.pool, &host::image_pool_path(host, &file.pool)?)?;
        pool.open_read(&file.path).map_err(|error| {
            let reason = match error {
                PoolError::Io { .. } => "PoolUnavailable",
                PoolError::PathEscapes { .. } => "PathEscapesPool",
                _ => "ImageNotFound",
            };
            Failure::new(reason, format!("pool {}: {error}", file.pool))
        })?;
    }
    Ok(())
}

fn check_disk(disk: &InstanceDisk, host: &HostSpec) -> Result<(), Failure> {
    let pool = open_pool(host, &disk.file.pool)?;
    let mut search = ParentSearch::new();
    for parent in &disk.parents {
        let pool = open_pool(host, &parent.pool)?;
        let folder = Path::new(&parent.path).parent().unwrap_or(Path::new(""));
        search = search.root(pool.clone()).folder(pool, folder);
    }
    let failed = |file: &PoolFile, error: &OpenError| {
        let reason = match error.kind() {
            OpenErrorKind::NotFound | OpenErrorKind::PathEscapes => "DiskMissing",
            OpenErrorKind::Corrupt | OpenErrorKind::Unsupported => "DiskCorrupt",
            OpenErrorKind::InUse => "DiskInUse",
            OpenErrorKind::NoSpace => "PoolFull",
            OpenErrorKind::ParentNotFound | OpenErrorKind::ParentMismatch => "ParentNotFound",
            OpenErrorKind::ParentChanged => "ParentChanged",
            _ => "PoolUnavailable",
        };
        named(disk, file, reason, error)
    };
    let chain = inspect_chain(&pool, &disk.file.path, &search)
        .map_err(|error| failed(&disk.file, &error))?;
    let Some((_, _, found)) = chain.first() else {
        return Ok(());
    };
    if let Some(undo) = &disk.undo {
        let pool = open_pool(host, &undo.file.pool)?;
        match inspect(&pool, &undo.file.path) {
            Ok(_) => {}
            Err(error) if error.kind() == OpenErrorKind::NotFound => {
                if undo.state != UndoState::New {
                    return Err(named(
                        disk,
                        &undo.file,
                        "UndoDiskNotFound",
                        &"its undo disk is not there, and a guest has written into it: put it back, or discard it",
                    ));
                }
            }
            Err(error) => return Err(failed(&undo.file, &error)),
        }
    }
    if disk.bus == Bus::Ide && found.virtual_size > MAX_IDE_DISK_BYTES {
        return Err(Failure::new(
            "DiskTooLargeForBus",
            format!(
                "disk {} (VirtualHardDisk {}) has {} bytes, and a disk on the IDE bus has at most {MAX_IDE_DISK_BYTES} (127 GiB): attach it to the SCSI or Virtio bus",
                disk.name, disk.virtual_hard_disk, found.virtual_size
            ),
        ));
    }
    Ok(())
}

fn named(
    disk: &InstanceDisk,
    file: &PoolFile,
    reason: &'static str,
    what: &dyn std::fmt::Display,
) -> Failure {
    Failure::new(
        reason,
        format!(
            "disk {} (VirtualHardDisk {}, pool {}, {}): {what}",
            disk.name, disk.virtual_hard_disk, file.pool, file.path
        ),
    )
}

fn open_pool(host: &HostSpec, name: &str) -> Result<Pool, Failure> {
    open_folder(name, &host::pool_path(host, name)?)
}

fn open_folder(name: &str, path: &Path) -> Result<Pool, Failure> {
    Pool::open(path)
        .map_err(|error| Failure::new("PoolUnavailable", format!("pool {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::host::{Pool as HostPool, PoolScope};

    #[test]
    fn a_disk_that_hosts_share_is_opened_as_its_owner() {
        let pool = |name: &str, scope| HostPool {
            name: name.to_owned(),
            path: format!("/{name}"),
            scope,
            kinds: vec![],
        };
        let host = HostSpec {
            pools: vec![
                pool("own", PoolScope::Local),
                pool("all", PoolScope::Shared),
            ],
            ..HostSpec::default()
        };
        let owner = DiskOwner {
            host: "host-a".to_owned(),
            boot_id: Uuid::from_u128(7),
        };
        let described = |pool: &str| {
            let json = serde_json::json!({
                "name": "d", "virtualHardDisk": "d", "bus": "Virtio", "controller": 0, "unit": 0, "diskEpoch": 5,
                "file": {"pool": pool, "path": "d.vhd"},
            });
            serde_json::from_value::<InstanceDisk>(json).unwrap()
        };
        let shared = disk(&host, &described("all"), 0, owner.clone()).unwrap();
        assert_eq!((shared.disk_epoch, shared.owner), (5, Some(owner.clone())));
        let local = disk(&host, &described("own"), 0, owner).unwrap();
        assert_eq!((local.disk_epoch, local.owner), (5, None));
    }
}
