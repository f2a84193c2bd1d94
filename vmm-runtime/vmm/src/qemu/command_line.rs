//! The command line for a machine: a pure function of the configuration and of the numbers of the passed descriptors.
//!
//! PCI addresses follow from a device's place in the configuration and not from what else there is, so a guest finds
//! its adapters and disks again after others have come or gone:
//!
//! | slot | device |
//! |---|---|
//! | 0, 1 | the chipset |
//! | 2 | the display adapter (PC) |
//! | 3 to 10 | network adapters |
//! | 11 to 14 | SCSI controllers |
//! | 15 to 30 | virtio-blk disks |

use std::collections::BTreeSet;
use std::os::fd::RawFd;

use serde_json::{Value, json};

use crate::config::{
    Accelerator, AdapterModel, DiskSlot, Machine, ValidAdapter, ValidBoot, ValidDisk, ValidVmConfig,
};

/// The machine type of a PC. Pinned: a guest sees the same hardware whatever QEMU is installed.
const PC_TYPE: &str = "pc-i440fx-7.2";
const FIRST_ADAPTER_SLOT: u8 = 3;
const FIRST_SCSI_SLOT: u8 = 11;
const FIRST_VIRTIO_DISK_SLOT: u8 = 15;
/// How long QEMU tries to reach a disk again before it fails requests, in seconds.
const RECONNECT_SECONDS: u32 = 10;

/// The name of the copied kernel in QEMU's folder.
pub(crate) const KERNEL_FILE: &str = "kernel";
/// The name of the copied initial ramdisk in QEMU's folder.
pub(crate) const INITRD_FILE: &str = "initrd";

/// Descriptors that QEMU inherits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Descriptors {
    /// A connected socket for QMP.
    pub qmp: RawFd,
    /// A connected socket for the serial port.
    pub serial: RawFd,
    /// QEMU's folder, where its disk sockets and kernel are. It cannot reach it by its path.
    pub folder: RawFd,
    /// A tap for each network adapter.
    pub taps: Vec<RawFd>,
}

/// The name of a disk's socket in QEMU's folder.
pub(crate) fn disk_socket(disk: &ValidDisk) -> String {
    format!("nbd-{}.sock", disk.name)
}

/// The number of the disk that QEMU calls `node`.
pub(crate) fn disk_of_node(node: &str) -> Option<usize> {
    node.strip_prefix("disk")?.parse().ok()
}

/// QEMU's arguments, without its own name.
pub(crate) fn arguments(config: &ValidVmConfig, descriptors: &Descriptors) -> Vec<String> {
    let mut line = Line(Vec::new());
    line.option("-name", format!("guest={},debug-threads=on", config.name));
    line.option("-uuid", config.uuid.to_string());
    line.option("-machine", machine(config.machine));
    line.option("-accel", accelerator(config.accelerator));
    line.option("-cpu", config.cpu_model.clone());
    line.option(
        "-smp",
        format!("cpus={0},sockets=1,cores={0},threads=1", config.cores),
    );
    line.option("-m", format!("size={}M", config.memory_mib));
    for flag in ["-nodefaults", "-no-user-config", "-S"] {
        line.flag(flag);
    }
    line.option("-display", "none");
    line.option(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    line.option("-rtc", "base=utc,driftfix=slew");
    line.option("-action", "reboot=reset,shutdown=pause,panic=shutdown");
    line.option("-boot", "strict=on");
    line.option("-msg", "timestamp=on");
    line.option("-chardev", format!("socket,id=qmp,fd={}", descriptors.qmp));
    line.option("-mon", "chardev=qmp,mode=control");
    line.option(
        "-chardev",
        format!("socket,id=serial0,fd={}", descriptors.serial),
    );
    line.device(json!({"driver": "isa-serial", "id": "serial0-port", "chardev": "serial0"}));
    if config.machine == Machine::Pc {
        line.device(pci(
            config.machine,
            2,
            json!({"driver": "VGA", "id": "display"}),
        ));
    }
    kernel(&mut line, config, descriptors);
    disks(&mut line, config, descriptors);
    for ((index, adapter), tap) in config.adapters.iter().enumerate().zip(&descriptors.taps) {
        network_adapter(&mut line, config.machine, index, adapter, *tap);
    }
    line.0
}

fn machine(machine: Machine) -> String {
    match machine {
        // Without graphics the BIOS also talks on the serial port, where the console is.
        Machine::Pc => format!("{PC_TYPE},graphics=off,usb=off,vmport=off,dump-guest-core=off"),
        // There are no versions of this type to pin. Its PCI bus lets it have the same devices as a PC.
        Machine::MicroVM => {
            "microvm,acpi=on,pcie=on,rtc=on,usb=off,graphics=off,auto-kernel-cmdline=off,dump-guest-core=off".to_owned()
        }
    }
}

fn accelerator(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg,thread=multi",
    }
}

fn kernel(line: &mut Line, config: &ValidVmConfig, descriptors: &Descriptors) {
    if let ValidBoot::Kernel(kernel) = &config.boot {
        line.option("-kernel", in_folder(descriptors, KERNEL_FILE));
        if kernel.initrd.is_some() {
            line.option("-initrd", in_folder(descriptors, INITRD_FILE));
        }
        if !kernel.command_line.is_empty() {
            line.option("-append", kernel.command_line.clone());
        }
    }
}

fn disks(line: &mut Line, config: &ValidVmConfig, descriptors: &Descriptors) {
    let controllers: BTreeSet<u8> = config
        .disks
        .iter()
        .filter_map(|disk| match disk.slot {
            DiskSlot::Scsi { controller, .. } => Some(controller),
            _ => None,
        })
        .collect();
    for controller in controllers {
        let device = json!({"driver": "virtio-scsi-pci", "id": format!("scsi{controller}")});
        line.device(pci(config.machine, FIRST_SCSI_SLOT + controller, device));
    }
    for (index, disk) in config.disks.iter().enumerate() {
        line.option(
            "-blockdev",
            block_node(index, disk, descriptors).to_string(),
        );
        line.device(disk_device(config.machine, index, disk));
    }
}

fn block_node(index: usize, disk: &ValidDisk, descriptors: &Descriptors) -> Value {
    json!({
        "driver": "nbd",
        "node-name": format!("disk{index}"),
        "server": {"type": "unix", "path": in_folder(descriptors, &disk_socket(disk))},
        "export": disk.name,
        "read-only": disk.read_only,
        "discard": "unmap",
        "reconnect-delay": RECONNECT_SECONDS,
    })
}

fn disk_device(machine: Machine, index: usize, disk: &ValidDisk) -> Value {
    let mut device = match disk.slot {
        DiskSlot::Ide { channel, unit } => {
            json!({"driver": "ide-hd", "bus": format!("ide.{channel}"), "unit": unit})
        }
        DiskSlot::Scsi { controller, target } => {
            json!({"driver": "scsi-hd", "bus": format!("scsi{controller}.0"), "scsi-id": target, "lun": 0})
        }
        DiskSlot::Virtio { unit } => pci(
            machine,
            FIRST_VIRTIO_DISK_SLOT + unit,
            json!({"driver": "virtio-blk-pci"}),
        ),
    };
    device["id"] = format!("disk-{}", disk.name).into();
    device["drive"] = format!("disk{index}").into();
    // A full pool pauses the guest; its write is repeated when it goes on. Other errors are the guest's to see.
    device["werror"] = "enospc".into();
    device["rerror"] = "report".into();
    if !disk.serial.is_empty() {
        device["serial"] = disk.serial.clone().into();
    }
    if let Some(position) = disk.boot_position {
        device["bootindex"] = position.into();
    }
    device
}

fn network_adapter(
    line: &mut Line,
    machine: Machine,
    index: usize,
    adapter: &ValidAdapter,
    tap: RawFd,
) {
    line.option("-netdev", format!("tap,id=net{index},fd={tap}"));
    let driver = match adapter.model {
        AdapterModel::Virtio => "virtio-net-pci",
        AdapterModel::E1000 => "e1000",
    };
    let [a, b, c, d, e, f] = adapter.mac;
    let device = json!({
        "driver": driver,
        "id": format!("adapter-{}", adapter.name),
        "netdev": format!("net{index}"),
        "mac": format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
    });
    // `valid` allows 8 adapters.
    let mut device = pci(machine, FIRST_ADAPTER_SLOT + index as u8, device);
    match adapter.boot_position {
        Some(position) => device["bootindex"] = position.into(),
        // No boot from the network: no boot ROM to look for.
        None => device["romfile"] = "".into(),
    }
    line.device(device);
}

fn pci(machine: Machine, slot: u8, mut device: Value) -> Value {
    let bus = match machine {
        Machine::Pc => "pci.0",
        Machine::MicroVM => "pcie.0",
    };
    device["bus"] = bus.into();
    device["addr"] = format!("{slot:#x}").into();
    device
}

/// A path that QEMU resolves through its own descriptor of the folder: no parent need be searchable for it, and it is
/// short enough for a socket's address.
fn in_folder(descriptors: &Descriptors, name: &str) -> String {
    format!("/proc/self/fd/{}/{name}", descriptors.folder)
}

struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn option(&mut self, option: &str, value: impl Into<String>) {
        self.0.push(option.to_owned());
        self.0.push(value.into());
    }

    /// As JSON, in which nothing in a value can be taken for another option.
    fn device(&mut self, device: Value) {
        self.option("-device", device.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VmConfig;

    /// JSON with its keys sorted, whichever order the JSON library was built for; other arguments as they are.
    fn sorted(argument: &str) -> String {
        fn write(value: &Value) -> String {
            match value {
                Value::Object(fields) => {
                    let fields: std::collections::BTreeMap<_, _> = fields.iter().collect();
                    let fields: Vec<_> = fields
                        .iter()
                        .map(|(key, value)| format!("{key:?}:{}", write(value)))
                        .collect();
                    format!("{{{}}}", fields.join(","))
                }
                value => value.to_string(),
            }
        }
        match serde_json::from_str(argument) {
            Ok(value @ Value::Object(_)) => write(&value),
            _ => argument.to_owned(),
        }
    }

    fn check(name: &str) {
        let folder = std::path::Path::new("src/qemu/expected");
        let config = std::fs::read(folder.join(format!("{name}.json"))).unwrap();
        let config = VmConfig::from_json(&config).unwrap().validate().unwrap();
        let taps = (40..).take(config.adapters.len()).collect();
        let line = arguments(
            &config,
            &Descriptors {
                qmp: 10,
                serial: 11,
                folder: 12,
                taps,
            },
        );
        // An option and its value on each line, for people.
        let mut text = String::new();
        for argument in &line {
            let separator = if text.is_empty() {
                ""
            } else if argument.starts_with('-') {
                "\n"
            } else {
                " "
            };
            text += separator;
            text += &sorted(argument);
        }
        text += "\n";
        let path = folder.join(format!("{name}.args"));
        if std::env::var_os("PADDOCK_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(
            text,
            std::fs::read_to_string(&path).unwrap(),
            "{}",
            path.display()
        );
    }

    #[test]
    fn the_smallest_pc() {
        check("smallest");
    }

    #[test]
    fn a_pc_with_one_of_everything() {
        check("everything");
    }

    #[test]
    fn a_pc_with_a_kernel() {
        check("kernel");
    }

    #[test]
    fn a_micro_vm() {
        check("micro-vm");
    }

    #[test]
    fn nodes_lead_back_to_disks() {
        assert_eq!(disk_of_node("disk0"), Some(0));
        assert_eq!(disk_of_node("disk12"), Some(12));
        assert_eq!(disk_of_node(""), None);
        assert_eq!(disk_of_node("floppy0"), None);
    }
}
