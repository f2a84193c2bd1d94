use serde_json::{Value, json};

use super::*;

/// A configuration with one of everything.
fn valid() -> Value {
    json!({
        "version": 1, "id": "6f1c-0", "name": "default/web", "machine": "PC", "accelerator": "kvm",
        "cpuModel": "host,+x2apic", "cores": 2, "memoryMib": 512,
        "uuid": "00000000-0000-4000-8000-000000000001", "hostEpoch": 3,
        "boot": {"order": ["CD", "HardDisk", "Network"]},
        "disks": [
            {"name": "data", "bus": "SCSI", "controller": 3, "unit": 6, "pool": "/p", "path": "a/data.vhd",
             "diskEpoch": 2, "readOnly": true, "serial": "S 1"},
            {"name": "root", "bus": "IDE", "unit": 0, "pool": "/p", "path": "root.vhd", "diskEpoch": 1,
             "owner": {"host": "node-a", "bootId": "00000000-0000-4000-8000-0000000000b0"}, "bootIndex": 4}
        ],
        "networkAdapters": [{"name": "lan", "mac": "02:00:5E:00:00:ff", "tap": "pdt0123456789a", "model": "E1000"}],
        "console": {"logBytes": 4096}, "runDirectory": "/run/paddock/vms/6f1c",
        "qemu": {"binary": "/usr/bin/qemu-system-x86_64", "uid": 1000, "gid": 1000}, "stopDeadlineSeconds": 5
    })
}

fn validate(config: &Value) -> Result<ValidVmConfig, ConfigError> {
    VmConfig::from_json(config.to_string().as_bytes())?.validate()
}

/// The error after `change`.
fn refused(change: impl FnOnce(&mut Value)) -> ConfigError {
    let mut config = valid();
    change(&mut config);
    validate(&config).unwrap_err()
}

#[test]
fn a_valid_one_is_taken_over_as_it_is() {
    let config = validate(&valid()).unwrap();
    assert_eq!(
        (config.id(), config.name(), config.host_epoch()),
        ("6f1c-0", "default/web", 3)
    );
    assert_eq!(config.cpu_model, "host,+x2apic");
    let [data, root] = config.disks() else {
        panic!()
    };
    assert_eq!(
        (data.name(), data.slot()),
        (
            "data",
            DiskSlot::Scsi {
                controller: 3,
                target: 6
            }
        )
    );
    assert_eq!(
        (data.read_only, data.disk_epoch(), data.serial.as_str()),
        (true, 2, "S 1")
    );
    assert_eq!(
        (root.name(), root.slot()),
        (
            "root",
            DiskSlot::Ide {
                channel: 0,
                unit: 0
            }
        )
    );
    let boot = uuid::Uuid::from_u128(0x4000_8000_0000_0000_00b0);
    assert_eq!(
        (root.owner.clone(), data.owner.clone()),
        (
            Some(paddock_vhd::LockOwner::new(1, "node-a", boot).unwrap()),
            None
        )
    );
    let error = refused(|config| config["disks"][1]["owner"]["host"] = json!("node a"));
    let error = error.to_string();
    assert!(error.contains("disks[root].owner.host"), "{error}");
    // No CD drive; root has an index, data has none; then the network.
    let [lan] = config.network_adapters() else {
        panic!()
    };
    assert_eq!(
        (root.boot_position, data.boot_position, lan.boot_position),
        (Some(0), Some(1), Some(2))
    );
    assert_eq!(
        (lan.mac, lan.tap.as_str()),
        ([2, 0, 0x5e, 0, 0, 0xff], "pdt0123456789a")
    );
    assert_eq!(config.boot, ValidBoot::Firmware);
}

#[test]
fn what_is_not_said_has_the_documented_default() {
    let mut config = valid();
    let fields = config.as_object_mut().unwrap();
    for field in [
        "cpuModel",
        "disks",
        "networkAdapters",
        "console",
        "stopDeadlineSeconds",
    ] {
        fields.remove(field);
    }
    fields["boot"] = json!({});
    let config = validate(&config).unwrap();
    assert_eq!(
        (
            config.cpu_model.as_str(),
            config.log_bytes,
            config.stop_deadline_seconds
        ),
        ("host", 1 << 20, 30)
    );
}

#[test]
fn a_configuration_is_read_back_as_it_was_written() {
    let config = VmConfig::from_json(valid().to_string().as_bytes()).unwrap();
    let text = serde_json::to_vec(&config).unwrap();
    assert_eq!(VmConfig::from_json(&text).unwrap(), config);
}

#[test]
fn unknown_fields_are_refused_everywhere() {
    for place in [
        "",
        "/boot",
        "/disks/0",
        "/networkAdapters/0",
        "/console",
        "/qemu",
    ] {
        let error = refused(|config| config.pointer_mut(place).unwrap()["colour"] = json!("red"));
        let ConfigError::Syntax { message } = error else {
            panic!("{place}: {error}")
        };
        assert!(
            message.contains("unknown field `colour`"),
            "{place}: {message}"
        );
    }
    let long = vec![b' '; MAX_CONFIG_BYTES + 1];
    assert_eq!(
        VmConfig::from_json(&long),
        Err(ConfigError::TooLong {
            bytes: MAX_CONFIG_BYTES + 1
        })
    );
}

#[test]
fn numbers_have_their_ranges() {
    for (place, max_and_min) in [
        ("/cores", [1, 32]),
        ("/memoryMib", [16, 1 << 20]),
        ("/console/logBytes", [4096, 64 << 20]),
        ("/stopDeadlineSeconds", [0, 86_400]),
        ("/qemu/uid", [1, u64::from(u32::MAX) - 1]),
        ("/qemu/gid", [1, u64::from(u32::MAX) - 1]),
    ] {
        let [min, max] = max_and_min;
        let mut config = valid();
        for value in [min, max] {
            *config.pointer_mut(place).unwrap() = json!(value);
            validate(&config).unwrap();
        }
        for value in [min.checked_sub(1), Some(max + 1)].into_iter().flatten() {
            let field = place[1..].replace('/', ".");
            assert_eq!(
                refused(|config| *config.pointer_mut(place).unwrap() = json!(value)),
                ConfigError::OutOfRange {
                    field,
                    value,
                    min,
                    max
                }
            );
        }
    }
    assert_eq!(
        refused(|config| config["version"] = json!(2)),
        ConfigError::Version { found: 2 }
    );
}

#[test]
fn buses_have_their_places() {
    for (bus, controller, unit, field, max) in [
        ("IDE", 2, 0, "controller", 1),
        ("IDE", 0, 2, "unit", 1),
        ("SCSI", 4, 0, "controller", 3),
        ("SCSI", 0, 7, "unit", 6),
        ("Virtio", 1, 0, "controller", 0),
        ("Virtio", 0, 16, "unit", 15),
    ] {
        let error = refused(|config| {
            let disk = &mut config["disks"][0];
            disk["bus"] = json!(bus);
            disk["controller"] = json!(controller);
            disk["unit"] = json!(unit);
        });
        let (field, value) = (format!("disks[data].{field}"), max + 1);
        assert_eq!(
            error,
            ConfigError::OutOfRange {
                field,
                value,
                min: 0,
                max
            }
        );
    }
}

#[test]
fn nothing_is_there_twice() {
    let twice = |field: &str, value: &str| ConfigError::Duplicate {
        field: field.into(),
        value: value.into(),
    };
    assert_eq!(
        refused(|config| config["disks"][1]["name"] = json!("data")),
        twice("disks.name", "data")
    );
    assert_eq!(
        refused(|config| {
            config["disks"][1]["bus"] = json!("SCSI");
            config["disks"][1]["controller"] = json!(3);
            config["disks"][1]["unit"] = json!(6);
        }),
        twice("disks[root].unit", "Scsi controller 3 unit 6")
    );
    assert_eq!(
        refused(|config| config["disks"][0]["bootIndex"] = json!(4)),
        twice("disks[root].bootIndex", "4")
    );
    let second_adapter = |field: &str, value: &str| {
        refused(|config| {
            let mut adapter =
                json!({"name": "b", "mac": "02:00:00:00:00:02", "tap": "t2", "model": "Virtio"});
            adapter[field] = json!(value);
            config["networkAdapters"]
                .as_array_mut()
                .unwrap()
                .push(adapter);
        })
    };
    assert_eq!(
        second_adapter("name", "lan"),
        twice("networkAdapters.name", "lan")
    );
    assert_eq!(
        second_adapter("tap", "pdt0123456789a"),
        twice("networkAdapters.tap", "pdt0123456789a")
    );
    assert_eq!(
        second_adapter("mac", "02:00:5e:00:00:FF"),
        twice("networkAdapters.mac", "02:00:5e:00:00:FF")
    );
    assert_eq!(
        refused(|config| config["boot"]["order"] = json!(["HardDisk", "HardDisk"])),
        twice("boot.order", "HardDisk")
    );
}

#[test]
fn texts_have_their_form() {
    for (place, values) in [
        ("/id", vec!["", "a/b", "../x"]),
        ("/name", vec!["", "a b", "a,b", "a\nb"]),
        ("/cpuModel", vec!["", "a b", "max;x"]),
        (
            "/runDirectory",
            vec!["", "run", "/run/../etc", "/run/\u{0}"],
        ),
        ("/qemu/binary", vec!["qemu-system-x86_64"]),
        (
            "/disks/0/name",
            vec![
                "",
                "Data",
                "a.b",
                "a/b",
                "123456789012345678901234567890123",
            ],
        ),
        ("/disks/0/pool", vec!["pool", "/p/../q"]),
        (
            "/disks/0/path",
            vec!["", "/etc/shadow", "../x", "a/../../x", "./x"],
        ),
        (
            "/disks/0/serial",
            vec!["123456789012345678901", "ä", "a\nb"],
        ),
        ("/networkAdapters/0/name", vec!["", "eth_0"]),
        (
            "/networkAdapters/0/tap",
            vec!["", "1234567890123456", "a/b", ".", ".."],
        ),
        (
            "/networkAdapters/0/mac",
            vec![
                "",
                "02:00:00:00:00",
                "02:00:00:00:00:00:00",
                "02-00-00-00-00-00",
                "+2:00:00:00:00:00",
                "03:00:00:00:00:00",
                "00:00:00:00:00:00",
                "0200:00:00:00:00",
            ],
        ),
    ] {
        for value in values {
            let error = refused(|config| *config.pointer_mut(place).unwrap() = json!(value));
            let ConfigError::Malformed { value: found, .. } = &error else {
                panic!("{place} {value:?}: {error}")
            };
            assert_eq!(*found, value.chars().take(80).collect::<String>());
        }
    }
}

#[test]
fn kernels_are_checked() {
    let kernel = |kernel: Value| {
        let mut config = valid();
        config["boot"] = json!({"kernel": kernel});
        validate(&config)
    };
    let file = json!({"pool": "/p", "path": "vmlinuz"});
    let config =
        kernel(json!({"kernel": file, "initrd": file, "commandLine": "x".repeat(2047)})).unwrap();
    assert!(matches!(config.boot, ValidBoot::Kernel(_)));
    assert!(
        config
            .disks()
            .iter()
            .all(|disk| disk.boot_position.is_none()),
        "QEMU gives position 0 to the kernel"
    );
    for line in ["x".repeat(2048), "a\nb".to_owned()] {
        assert!(matches!(
            kernel(json!({"kernel": file, "commandLine": line})),
            Err(ConfigError::Malformed { field, .. }) if field == "boot.kernel.commandLine"
        ));
    }
    assert!(matches!(
        kernel(json!({"kernel": file, "initrd": {"pool": "/p", "path": "/initrd"}})),
        Err(ConfigError::Malformed { field, .. }) if field == "boot.kernel.initrd.path"
    ));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let conflict = |error: ConfigError| match error {
        ConfigError::Conflict { field, .. } => field,
        error => panic!("{error}"),
    };
    assert_eq!(
        conflict(refused(
            |config| config["disks"][1]["readOnly"] = json!(true)
        )),
        "disks[root].readOnly"
    );
    let micro_vm = |change: &dyn Fn(&mut Value)| {
        conflict(refused(|config| {
            config["machine"] = json!("MicroVM");
            config["boot"] = json!({"kernel": {"kernel": {"pool": "/p", "path": "vmlinuz"}}});
            change(config);
        }))
    };
    assert_eq!(
        micro_vm(&|config| config["boot"] = json!({})),
        "boot.kernel"
    );
    assert_eq!(micro_vm(&|_| {}), "disks[root].bus");
    assert_eq!(
        micro_vm(&|config| config["disks"] = json!([])),
        "networkAdapters[lan].model"
    );
    assert_eq!(
        refused(|config| {
            let adapter = |n: u8| {
                json!({"name": format!("n{n}"), "mac": format!("02:00:00:00:00:{n:02x}"), "tap": format!("t{n}"),
                       "model": "Virtio"})
            };
            config["networkAdapters"] = (0..9).map(adapter).collect();
        }),
        ConfigError::TooMany {
            field: "networkAdapters",
            count: 9,
            max: 8
        }
    );
}

#[test]
fn an_ide_disk_ends_at_127_gib() {
    let config = validate(&valid()).unwrap();
    let [data, root] = config.disks() else {
        panic!()
    };
    assert_eq!(MAX_IDE_DISK_BYTES, 136_365_211_648);
    assert_eq!(root.check_size(MAX_IDE_DISK_BYTES), Ok(()));
    let bytes = MAX_IDE_DISK_BYTES + 512;
    assert_eq!(
        root.check_size(bytes),
        Err(ConfigError::DiskTooLargeForBus {
            disk: "root".into(),
            bytes
        })
    );
    assert_eq!(data.check_size(2040 << 30), Ok(()));
}

#[test]
fn parents_and_an_undo_disk_are_taken_over() {
    let mut config = valid();
    config["disks"][1]["parents"] = json!([{"pool": "/q", "path": "base.vhd"}]);
    config["disks"][1]["undo"] = json!({"pool": "/p", "path": "vm/root.vud", "missing": "Refuse"});
    let config = validate(&config).unwrap();
    let file = |pool: &str, path: &str| PoolFile {
        pool: pool.into(),
        path: path.into(),
    };
    let root = &config.disks()[1];
    assert_eq!(root.parents, [file("/q", "base.vhd")]);
    assert_eq!(
        root.undo,
        Some((file("/p", "vm/root.vud"), MissingUndo::Refuse))
    );
    assert_eq!(
        (&config.disks()[0].undo, config.disks()[0].parents.len()),
        (&None, 0)
    );
}

#[test]
fn parents_and_undo_disks_that_cannot_be_are_refused() {
    let undo = |path: &str| json!({"pool": "/p", "path": path, "missing": "Create"});
    for (disk, field, value, expected) in [
        (1, "undo", undo("root.vhd"), "disks[root].undo.path"),
        (1, "undo", undo("../root.vud"), "disks[root].undo.path"),
        (0, "undo", undo("data.vud"), "disks[data].undo"),
        (
            1,
            "parents",
            json!([{"pool": "q", "path": "b.vhd"}]),
            "disks[root].parents.pool",
        ),
        (
            1,
            "parents",
            json!(vec![json!({"pool": "/q", "path": "b.vhd"}); 64]),
            "disks[root].parents.length",
        ),
    ] {
        let error = refused(|config| config["disks"][disk][field] = value.clone());
        let message = error.to_string();
        assert!(
            message.starts_with(&format!("{expected} "))
                || message.starts_with(&format!("{expected}:")),
            "{message}"
        );
    }
}
