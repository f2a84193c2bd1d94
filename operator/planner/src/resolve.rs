//! A machine's spec with every reference looked up.
//!
//! What can never work, what is missing and what is not there yet come back as [`Refusal`]s, all of them at once.

mod adapters;

use crate::{
    address::{AddressClaims, MacClaims},
    identity::{ObjectKey, deleting, digest, hex, hostname, machine_uuid, name, uid},
    placement::{DiskNeed, DiskPlace, Need},
    refusal::{Refusal, reason},
};
use k8s_openapi::jiff::Timestamp;
use paddock_crds::{
    VirtualHardDisk, VirtualMachine, VirtualNetwork,
    reference::{PoolFile, condition},
    virtual_hard_disk::{Access, BoundFile, DiskState, OwnerKind, UndoDisk, UndoState},
    virtual_machine::{AssignedAdapter, Bus, UndoMode},
    virtual_machine_instance::{
        InstanceAdapter, InstanceConfig, InstanceDisk, InstanceKernel, InstanceUndo,
    },
};
use std::{collections::BTreeMap, sync::Arc};

/// The largest disk on an IDE bus, 127 GiB: what Virtual Server and the VHD format's geometry allow there.
pub const IDE_LIMIT_BYTES: i64 = 127 << 30;

/// What a machine's references lead to.
#[derive(Debug)]
pub struct References<'a> {
    /// VirtualHardDisks of its namespace by name; those that exist.
    pub disks: &'a BTreeMap<String, Arc<VirtualHardDisk>>,
    /// Disks that another machine's plan is just taking.
    pub taken: &'a BTreeMap<String, ObjectKey>,
    /// Who else reads each disk, and what its file is made from.
    pub readers: &'a BTreeMap<String, Readers>,
    /// VirtualNetworks of its namespace by name; those that exist.
    pub networks: &'a BTreeMap<String, Arc<VirtualNetwork>>,
    /// Every hold on a MAC address.
    pub macs: &'a MacClaims,
    /// Every hold on an IP address.
    pub addresses: &'a AddressClaims,
    /// The adapters of its instance, if there is one: they are kept before what the status says.
    pub current: &'a [InstanceAdapter],
}

/// Who else reads a disk, and what its file is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readers {
    /// Differencing disks that have it as their parent, made and to be made.
    pub children: Vec<String>,
    /// Disks that are just being made as copies of it.
    pub copies: Vec<String>,
    /// Another plan is just giving it to a task.
    pub taken: bool,
    /// The host that has the parent or source that its file is still to be made from, unless hosts share that.
    pub near: Option<String>,
}

/// A disk of a machine, looked up.
#[derive(Clone, Debug)]
pub struct ResolvedDisk {
    /// Name within the machine.
    pub name: String,
    /// The VirtualHardDisk.
    pub disk: Arc<VirtualHardDisk>,
    /// The bus.
    pub bus: Bus,
    /// Controller on the bus.
    pub controller: i32,
    /// Place on the controller.
    pub unit: i32,
}

/// A machine with every reference looked up.
#[derive(Clone, Debug, Default)]
pub struct Resolved {
    /// Disks in order, those that exist.
    pub disks: Vec<ResolvedDisk>,
    /// Adapters in order.
    pub adapters: Vec<InstanceAdapter>,
    /// What the status says of them.
    pub assigned: Vec<AssignedAdapter>,
    /// Why it cannot start yet for want of a disk's file. A host may be chosen, so that the file can be made.
    pub waits: Vec<Refusal>,
    /// Why it cannot start.
    pub refusals: Vec<Refusal>,
    uplinks: Vec<String>,
    /// The hosts that unmade disks have to be made on, by disk.
    near: BTreeMap<String, String>,
}

/// Looks every reference of a machine up.
#[must_use]
pub fn resolve(vm: &VirtualMachine, references: &References<'_>) -> Resolved {
    let mut resolved = Resolved::default();
    disks(vm, references, &mut resolved);
    adapters::resolve(vm, references, &mut resolved);
    resolved
}

fn disks(vm: &VirtualMachine, references: &References<'_>, resolved: &mut Resolved) {
    let key = ObjectKey::of(&vm.metadata);
    let mut seen = BTreeMap::new();
    let mut used: BTreeMap<&'static str, i32> = BTreeMap::new();
    for disk in &vm.spec.disks {
        let target = &disk.virtual_hard_disk_ref.name;
        let index = used.entry(bus_name(disk.bus)).or_default();
        let place = place_on_bus(disk.bus, *index);
        *index += 1;
        let Some((controller, unit)) = place else {
            resolved.refusals.push(Refusal::wrong(
                reason::TOO_MANY_DISKS,
                format!(
                    "disk \"{}\": {} holds at most {} disks; move it to another bus",
                    disk.name,
                    bus_name(disk.bus),
                    bus_capacity(disk.bus)
                ),
            ));
            continue;
        };
        if let Some(first) = seen.insert(target.clone(), disk.name.clone()) {
            resolved.refusals.push(Refusal::wrong(
                reason::DUPLICATE_DISK,
                format!(
                    "disks \"{first}\" and \"{}\" both name VirtualHardDisk \"{target}\"; a disk can be attached once",
                    disk.name
                ),
            ));
            continue;
        }
        let Some(found) = references.disks.get(target) else {
            resolved.refusals.push(Refusal::waits(
                reason::VIRTUAL_HARD_DISK_NOT_FOUND,
                format!(
                    "disk \"{}\": there is no VirtualHardDisk \"{target}\" in namespace \"{}\"",
                    disk.name, key.namespace
                ),
            ));
            continue;
        };
        let near = references.readers.get(target).and_then(|r| r.near.clone());
        if let Some(near) = near {
            resolved.near.insert(target.clone(), near);
        }
        if let Some(refusal) = disk_refusal(vm, disk.bus, &disk.name, found, references)
            .or_else(|| family_refusal(vm, &disk.name, found, references))
        {
            resolved.refusals.push(refusal);
        } else if let Some(wait) = not_ready(&disk.name, found) {
            resolved.waits.push(wait);
        }
        resolved.disks.push(ResolvedDisk {
            name: disk.name.clone(),
            disk: found.clone(),
            bus: disk.bus,
            controller,
            unit,
        });
    }
}

fn bus_name(bus: Bus) -> &'static str {
    match bus {
        Bus::Ide => "IDE",
        Bus::Scsi => "SCSI",
        Bus::Virtio => "Virtio",
    }
}

fn bus_capacity(bus: Bus) -> i32 {
    match bus {
        Bus::Ide => 4,
        Bus::Scsi => 28,
        Bus::Virtio => 16,
    }
}

/// Controller and unit of the `index`-th disk on a bus: IDE has two channels of two, SCSI four controllers of
/// seven (the eighth address is the controller's own), Virtio sixteen in a row.
fn place_on_bus(bus: Bus, index: i32) -> Option<(i32, i32)> {
    if index >= bus_capacity(bus) {
        return None;
    }
    Some(match bus {
        Bus::Ide => (index / 2, index % 2),
        Bus::Scsi => (index / 7, index % 7),
        Bus::Virtio => (0, index),
    })
}

fn disk_refusal(
    vm: &VirtualMachine,
    bus: Bus,
    name_in_machine: &str,
    disk: &VirtualHardDisk,
    references: &References<'_>,
) -> Option<Refusal> {
    let target = name(&disk.metadata);
    let status = disk.status.as_ref();
    if deleting(&disk.metadata) && !attached_to(disk, uid(&vm.metadata)) {
        return Some(Refusal::waits(
            reason::VIRTUAL_HARD_DISK_NOT_READY,
            format!("disk \"{name_in_machine}\": VirtualHardDisk \"{target}\" is being deleted"),
        ));
    }
    let size = status.and_then(|s| s.size_bytes).or_else(|| {
        let size = disk.spec.size.as_ref()?;
        i64::try_from(size.bytes()).ok()
    });
    if let Some(size) = size.filter(|s| bus == Bus::Ide && *s > IDE_LIMIT_BYTES) {
        return Some(Refusal::wrong(
            reason::DISK_TOO_LARGE_FOR_BUS,
            format!(
                "disk \"{name_in_machine}\": VirtualHardDisk \"{target}\" has {size} bytes, an IDE disk at most {IDE_LIMIT_BYTES} (127 GiB); set its bus to SCSI or Virtio",
            ),
        ));
    }
    let attachment = status.and_then(|s| s.attachment.as_ref());
    if let Some(attachment) = attachment
        && attachment.owner.uid != uid(&vm.metadata)
        && attachment.owner.kind == OwnerKind::VirtualMachine
    {
        return Some(Refusal::waits(
            reason::DISK_IN_USE,
            format!(
                "disk \"{name_in_machine}\": VirtualHardDisk \"{target}\" is attached to VirtualMachine \"{}\" (uid {}) on host {}, until that host proves that its guest has ended; if the host is off for good, set spec.outOfService.token on Host \"{}\"",
                attachment.owner.name, attachment.owner.uid, attachment.host, attachment.host
            ),
        ));
    }
    references.taken.get(target).map(|other| {
        Refusal::waits(
            reason::DISK_IN_USE,
            format!(
                "disk \"{name_in_machine}\": VirtualHardDisk \"{target}\" is being attached to VirtualMachine \"{}\"",
                other.name
            ),
        )
    })
}

/// Why a disk that others build upon, or that has another's changes over it, cannot be used.
fn family_refusal(
    vm: &VirtualMachine,
    name_in_machine: &str,
    disk: &VirtualHardDisk,
    references: &References<'_>,
) -> Option<Refusal> {
    let target = name(&disk.metadata);
    let status = disk.status.as_ref();
    let undo = status.and_then(|s| s.undo.as_ref());
    let waits = |reason, what: String| {
        Some(Refusal::waits(
            reason,
            format!("disk \"{name_in_machine}\": VirtualHardDisk \"{target}\" {what}"),
        ))
    };
    if let Some(undo) = undo.filter(|u| u.machine != name(&vm.metadata)) {
        return waits(
            reason::DISK_IN_USE,
            format!(
                "has an undo disk with changes of VirtualMachine \"{}\": commit or discard it first with a VirtualHardDiskTask CommitUndo or DiscardUndo",
                undo.machine
            ),
        );
    }
    if crate::disk::is_linked(disk) {
        return Some(Refusal::wrong(
            reason::DISK_LINKED,
            format!(
                "disk \"{name_in_machine}\": VirtualHardDisk \"{target}\" stands for a physical disk, which no machine may use: make a disk of it by source.linkedRef, and name that"
            ),
        ));
    }
    if attached_to(disk, uid(&vm.metadata)) {
        return None;
    }
    if vm.spec.undo_disks.mode == UndoMode::Disabled
        && undo.is_some_and(|u| !crate::machine::undo::is_own(vm, u))
    {
        return waits(
            reason::DISK_IN_USE,
            format!(
                "has an undo disk with changes of an earlier VirtualMachine \"{}\": set spec.undoDisks.request to Commit or Discard, or spec.undoDisks.mode to Enabled to go on with them",
                name(&vm.metadata)
            ),
        );
    }
    let settles = undo.is_some_and(|u| {
        let commits = status.is_some_and(|s| s.unfinished.is_some());
        commits || matches!(u.state, UndoState::Committing | UndoState::Discarding)
    });
    if settles {
        return waits(
            reason::VIRTUAL_HARD_DISK_NOT_READY,
            "waits until its undo disk is committed or discarded".to_owned(),
        );
    }
    if disk.spec.access == Access::ReadOnly && vm.spec.undo_disks.mode == UndoMode::Disabled {
        return Some(Refusal::wrong(
            reason::DISK_READ_ONLY,
            format!(
                "disk \"{name_in_machine}\": spec.access of VirtualHardDisk \"{target}\" is ReadOnly: use a differencing disk with it as parent, or set spec.undoDisks.mode of the machine to Enabled"
            ),
        ));
    }
    let readers = references.readers.get(target)?;
    if !readers.children.is_empty() {
        return waits(
            reason::DISK_HAS_CHILDREN,
            format!(
                "is the parent of differencing disks, which would lose what they show if it were written: {}",
                crate::disk::listed(readers.children.clone())
            ),
        );
    }
    if !readers.copies.is_empty() {
        return waits(
            reason::DISK_IN_USE,
            format!(
                "is being copied to {}",
                crate::disk::listed(readers.copies.clone())
            ),
        );
    }
    if readers.taken {
        return waits(
            reason::DISK_IN_USE,
            "is just being given to a task".to_owned(),
        );
    }
    None
}

/// Whether a disk is attached to the owner with this UID.
#[must_use]
pub fn attached_to(disk: &VirtualHardDisk, owner_uid: &str) -> bool {
    disk.status
        .as_ref()
        .and_then(|s| s.attachment.as_ref())
        .is_some_and(|a| a.owner.uid == owner_uid)
}

fn not_ready(name_in_machine: &str, disk: &VirtualHardDisk) -> Option<Refusal> {
    let target = name(&disk.metadata);
    let status = disk.status.as_ref();
    let made = status.is_some_and(|s| {
        s.file.is_some() && matches!(s.state, DiskState::Ready | DiskState::Attached)
    });
    let at_work = status
        .and_then(|s| s.attachment.as_ref())
        .is_some_and(|a| a.owner.kind == OwnerKind::VirtualHardDiskTask);
    if made && !at_work {
        return None;
    }
    let why = status
        .and_then(|s| condition(&s.conditions, paddock_crds::names::condition::READY))
        .map(|c| format!(" ({}: {})", c.reason, c.message))
        .unwrap_or_default();
    Some(Refusal::waits(
        reason::VIRTUAL_HARD_DISK_NOT_READY,
        format!("disk \"{name_in_machine}\": VirtualHardDisk \"{target}\" is not ready{why}"),
    ))
}

/// When a machine's object was made.
#[must_use]
pub fn created(vm: &VirtualMachine) -> Option<Timestamp> {
    vm.metadata.creation_timestamp.as_ref().map(|t| t.0)
}

/// The image pool that a disk's file still has to be made from.
#[must_use]
pub fn image_pool(disk: &VirtualHardDisk) -> Option<String> {
    let made = disk.status.as_ref().is_some_and(|s| s.file.is_some());
    disk.spec
        .source
        .as_ref()
        .filter(|_| !made)
        .and_then(|s| s.image.as_ref())
        .map(|image| image.pool.clone())
}

impl Resolved {
    /// What the machine asks of its host. `shared` tells whether a pool is shared by hosts.
    #[must_use]
    pub fn need(
        &self,
        vm: &VirtualMachine,
        shared: impl Fn(&str) -> bool,
        held_by: Option<String>,
    ) -> Need {
        let disks = self
            .disks
            .iter()
            .map(|d| {
                let status = d.disk.status.as_ref();
                let pool = d.disk.spec.file.pool.clone();
                let disk = name(&d.disk.metadata);
                let host = status.and_then(|s| s.host.clone());
                let place = match self.near.get(disk).cloned().or(host) {
                    Some(host) => DiskPlace::Bound(host),
                    None if status.is_some_and(|s| s.file.is_some()) || shared(&pool) => {
                        DiskPlace::Shared
                    }
                    None => DiskPlace::Unbound,
                };
                DiskNeed {
                    name: name(&d.disk.metadata).to_owned(),
                    pool,
                    place,
                    image_pool: image_pool(&d.disk),
                    parent_pools: status
                        .iter()
                        .flat_map(|s| &s.parent_files)
                        .map(|f| f.pool.clone())
                        .collect(),
                }
            })
            .collect();
        let kernel = vm.spec.boot.as_ref().and_then(|b| b.kernel.as_ref());
        Need {
            memory: crate::memory::need(vm.spec.memory.bytes()),
            cores: vm.spec.cpu.cores,
            acceleration: vm.spec.acceleration,
            selector: vm.spec.host_selector.as_deref().cloned(),
            disks,
            image_pools: kernel.map(|k| k.pool.clone()).into_iter().collect(),
            uplinks: self.uplinks.clone(),
            last_host: vm.status.as_ref().and_then(|s| s.host.clone()),
            reserved: None,
            held_by,
        }
    }

    /// The machine as its host gets it. `held` tells the epoch of each disk's attachment, and its undo disk.
    ///
    /// `None` while a disk has no file: then there is nothing to start.
    #[must_use]
    pub fn config(
        &self,
        vm: &VirtualMachine,
        held: impl Fn(&VirtualHardDisk) -> (i64, Option<UndoDisk>),
    ) -> Option<InstanceConfig> {
        let disks = self
            .disks
            .iter()
            .map(|d| {
                let status = d.disk.status.as_ref()?;
                let file = status.file.as_ref()?;
                let (disk_epoch, undo) = held(&d.disk);
                Some(InstanceDisk {
                    name: d.name.clone(),
                    virtual_hard_disk: name(&d.disk.metadata).to_owned(),
                    file: pool_file(file),
                    parents: status.parent_files.iter().map(pool_file).collect(),
                    undo: undo.map(|undo| InstanceUndo {
                        file: pool_file(&undo.file),
                        state: undo.state,
                    }),
                    disk_epoch,
                    bus: d.bus,
                    controller: d.controller,
                    unit: d.unit,
                })
            })
            .collect::<Option<Vec<_>>>()?;
        Some(InstanceConfig {
            disks,
            network_adapters: self.adapters.clone(),
            ..bare_config(vm)
        })
    }
}

fn pool_file(file: &BoundFile) -> PoolFile {
    PoolFile {
        pool: file.pool.clone(),
        path: file.path.clone(),
    }
}

/// The machine without disks and adapters.
#[must_use]
pub fn bare_config(vm: &VirtualMachine) -> InstanceConfig {
    let kernel = vm.spec.boot.as_ref().and_then(|b| b.kernel.as_ref());
    InstanceConfig {
        uuid: machine_uuid(uid(&vm.metadata)),
        hostname: hostname(name(&vm.metadata)),
        machine: vm.spec.machine,
        acceleration: vm.spec.acceleration,
        cores: vm.spec.cpu.cores,
        memory_mebibytes: i64::try_from(vm.spec.memory.bytes() >> 20).unwrap_or(i64::MAX),
        kernel: kernel.map(|k| {
            Box::new(InstanceKernel {
                kernel: k.kernel_file(),
                initrd: k.initrd_file(),
                command_line: k.command_line.clone(),
            })
        }),
        disks: Vec::new(),
        network_adapters: Vec::new(),
        stop_deadline_seconds: vm.spec.stop_deadline_seconds,
    }
}

/// A revision of what a running guest cannot be given: 16 hexadecimal digits of SHA-256 over the configuration
/// without disk epochs, how far undo disks are, the stop deadline and the answers of DHCP servers, all of which reach a running guest.
#[must_use]
pub fn config_revision(config: &InstanceConfig) -> String {
    let mut fixed = config.clone();
    fixed.stop_deadline_seconds = 0;
    for disk in &mut fixed.disks {
        disk.disk_epoch = 0;
        if let Some(undo) = &mut disk.undo {
            undo.state = UndoState::New;
        }
    }
    for adapter in &mut fixed.network_adapters {
        if let Some(network) = &mut adapter.network {
            network.dhcp = None;
        }
    }
    // A struct of strings, numbers and enums always has a JSON form; its keys come in the order of the fields.
    let text = serde_json::to_string(&fixed).unwrap_or_default();
    hex(&digest(&["config", &text])[..8])
}
