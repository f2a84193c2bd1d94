//! The CEL rules, evaluated without a server. The end-to-end tests try the same objects on a real one,
//! which also checks enumerations, required fields and list keys.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use paddock_crds::host::PoolKind;
use paddock_crds::{Host, VirtualHardDisk, VirtualHardDiskTask, VirtualMachine, VirtualNetwork};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn object<T: DeserializeOwned>(kind: &str, spec: Value) -> T {
    serde_json::from_value(json!({
        "apiVersion": "paddock.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "it", "namespace": "default"},
        "spec": spec,
    }))
    .unwrap()
}

fn machine(spec: Value) -> VirtualMachine {
    object("VirtualMachine", spec)
}

fn disk(spec: Value) -> VirtualHardDisk {
    object("VirtualHardDisk", spec)
}

fn network(spec: Value) -> VirtualNetwork {
    object("VirtualNetwork", spec)
}

/// Asserts that the rules refuse with exactly these messages.
fn refused<E: std::fmt::Display>(result: Result<(), E>, part: &str) {
    match result {
        Ok(()) => panic!("accepted, expected a refusal naming {part:?}"),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains(part), "expected {part:?} in {text:?}");
        }
    }
}

#[test]
fn accepts_a_whole_machine() {
    let vm = machine(json!({
        "memory": "192Mi",
        "cpu": {"cores": 2},
        "boot": {"kernel": {"pool": "images", "path": "linux/vmlinuz", "initrd": "linux/initrd", "commandLine": "quiet"}},
        "disks": [
            {"name": "system", "bus": "Virtio", "virtualHardDiskRef": {"name": "a"}},
            {"name": "data", "bus": "IDE", "virtualHardDiskRef": {"name": "b"}},
        ],
        "networkAdapters": [
            {"name": "lan", "virtualNetworkRef": {"name": "lab"}, "macAddress": "02:00:00:00:00:01"},
            {"name": "dmz", "macAddress": "02:00:00:00:00:02"},
        ],
    }));
    assert_eq!(vm.validate_cel().map_err(|e| e.to_string()), Ok(()));
}

#[test]
fn refuses_memory_out_of_bounds() {
    for memory in ["15Mi", "4097Gi", "100M", "17000000"] {
        refused(
            machine(json!({"memory": memory})).validate_cel(),
            "memory must be a whole number of Mi between 16Mi and 4Ti",
        );
    }
}

#[test]
fn refuses_more_disks_than_a_bus_holds() {
    for (bus, most, message) in [
        ("IDE", 4, "an IDE bus holds at most 4 disks"),
        ("SCSI", 28, "SCSI holds at most 28 disks"),
        ("Virtio", 16, "Virtio holds at most 16 disks"),
    ] {
        let with = |n: usize| {
            let disks: Vec<Value> = (0..n)
                .map(|i| json!({"name": format!("d{i}"), "bus": bus, "virtualHardDiskRef": {"name": format!("v{i}")}}))
                .collect();
            machine(json!({"memory": "64Mi", "disks": disks})).validate_cel()
        };
        assert_eq!(
            with(most).map_err(|e| e.to_string()),
            Ok(()),
            "{most} on {bus}"
        );
        refused(with(most + 1), message);
    }
}

#[test]
fn refuses_a_mac_address_twice_in_a_machine() {
    refused(
        machine(json!({"memory": "64Mi", "networkAdapters": [
            {"name": "a", "macAddress": "02:00:00:00:00:0A"},
            {"name": "b", "macAddress": "02:00:00:00:00:0a"},
        ]}))
        .validate_cel(),
        "each macAddress may be used once in a machine",
    );
}

#[test]
fn refuses_paths_that_leave_their_pool() {
    for path in [
        "/etc/passwd",
        "..",
        "../x",
        "a/../b",
        "a/./b",
        "./a",
        "a//b",
        "a/",
        "a\nb",
    ] {
        refused(
            machine(
                json!({"memory": "64Mi", "boot": {"kernel": {"pool": "images", "path": path}}}),
            )
            .validate_cel(),
            "stay in its pool",
        );
        refused(
            disk(json!({"size": "1Gi", "file": {"path": path}})).validate_cel(),
            "stay in its pool",
        );
    }
    for path in ["a", "a/b.vhd", "..a/b..", "a b/c.vhd"] {
        assert_eq!(
            disk(json!({"size": "1Gi", "file": {"path": path}}))
                .validate_cel()
                .map_err(|e| e.to_string()),
            Ok(()),
            "{path}"
        );
    }
}

#[test]
fn bounds_the_size_of_a_disk() {
    for size in ["3Mi", "2040Gi", "1G"] {
        assert_eq!(
            disk(json!({"size": size}))
                .validate_cel()
                .map_err(|e| e.to_string()),
            Ok(()),
            "{size}"
        );
    }
    for size in ["2Mi", "2041Gi", "3145729"] {
        refused(
            disk(json!({"size": size})).validate_cel(),
            "size must be between 3Mi and 2040Gi",
        );
    }
    refused(disk(json!({})).validate_cel(), "size is required");
}

#[test]
fn keeps_what_a_disk_was_made_of() {
    let old =
        disk(json!({"size": "1Gi", "source": {"image": {"pool": "images", "path": "a.img"}}}));
    let same_size_in_other_words =
        disk(json!({"size": "1024Mi", "source": {"image": {"pool": "images", "path": "a.img"}}}));
    assert_eq!(
        same_size_in_other_words
            .validate_cel_update(&old)
            .map_err(|e| e.to_string()),
        Ok(())
    );
    refused(
        disk(json!({"size": "1Gi"})).validate_cel_update(&old),
        "source cannot be added or removed",
    );
    refused(
        disk(json!({"size": "1Gi", "source": {"image": {"pool": "images", "path": "b.img"}}}))
            .validate_cel_update(&old),
        "source cannot be changed",
    );
}

fn accepted<E: std::fmt::Display>(result: Result<(), E>) {
    assert_eq!(result.map_err(|e| e.to_string()), Ok(()));
}

#[test]
fn a_size_is_raised_and_lowered_only_to_what_the_disk_has() {
    let old = disk(json!({"size": "2Gi"}));
    accepted(disk(json!({"size": "3Gi"})).validate_cel_update(&old));
    let mut smaller = disk(json!({"size": "1Gi"}));
    refused(
        smaller.validate_cel_update(&old),
        "size can be raised, but not lowered",
    );
    let mut omitted = disk(json!({}));
    refused(omitted.validate_cel_update(&old), "size is required");
    for (actual, lowers) in [(1 << 30, true), ((1 << 30) + 512, false)] {
        let status = paddock_crds::VirtualHardDiskStatus {
            size_bytes: Some(actual),
            ..Default::default()
        };
        smaller.status = Some(status.clone());
        assert_eq!(smaller.validate_cel_update(&old).is_ok(), lowers);
        omitted.status = Some(status);
        accepted(omitted.validate_cel_update(&old));
    }
}

#[test]
fn a_differencing_disk_has_a_parent_and_nothing_of_its_own() {
    let child = json!({"type": "Differencing", "parentRef": {"name": "base"}});
    accepted(disk(child.clone()).validate_cel());
    for (field, value, part) in [
        (
            "type",
            json!("Dynamic"),
            "parentRef is required with type Differencing",
        ),
        ("size", json!("1Gi"), "remove size"),
        (
            "source",
            json!({"cloneRef": {"name": "a"}}),
            "remove source",
        ),
        (
            "file",
            json!({"mode": "Adopt", "path": "a.vhd"}),
            "remove file.mode",
        ),
    ] {
        let mut spec = child.clone();
        spec[field] = value;
        refused(disk(spec).validate_cel(), part);
    }
    refused(
        disk(json!({"type": "Differencing"})).validate_cel(),
        "parentRef is required",
    );
}

#[test]
fn a_type_changes_but_never_to_differencing() {
    let child = disk(json!({"type": "Differencing", "parentRef": {"name": "base"}}));
    let dynamic = disk(json!({"size": "1Gi"}));
    let fixed = disk(json!({"type": "Fixed", "size": "1Gi"}));
    accepted(fixed.validate_cel_update(&dynamic));
    accepted(dynamic.validate_cel_update(&fixed));
    accepted(dynamic.validate_cel_update(&child));
    refused(
        child.validate_cel_update(&dynamic),
        "a disk cannot become a differencing disk",
    );
    refused(
        disk(json!({"type": "Differencing", "parentRef": {"name": "other"}}))
            .validate_cel_update(&child),
        "parentRef cannot be changed",
    );
}

#[test]
fn a_disk_of_its_own_is_made_of_a_child_without_a_size() {
    let child = json!({"type": "Differencing", "parentRef": {"name": "base"}});
    let status = paddock_crds::VirtualHardDiskStatus {
        size_bytes: Some(1 << 30),
        ..Default::default()
    };
    let made = |spec: Value| {
        let mut disk = disk(spec);
        disk.status = Some(status.clone());
        disk
    };
    let child = made(child);
    for spec in [
        json!({"type": "Fixed"}),
        json!({"type": "Dynamic"}),
        json!({}),
    ] {
        accepted(made(spec).validate_cel_update(&child));
    }
}

#[test]
fn an_adopted_disk_has_the_type_that_its_file_has_unless_another_is_asked_for() {
    use paddock_crds::virtual_hard_disk::DiskType;
    let adopt = json!({"path": "a.vhd", "mode": "Adopt"});
    let plain = disk(json!({"file": adopt}));
    let fixed = disk(json!({"file": adopt, "type": "Fixed"}));
    accepted(plain.validate_cel());
    accepted(fixed.validate_cel_update(&plain));
    accepted(plain.validate_cel_update(&fixed));
    assert_eq!(plain.spec.wanted_type(), None);
    assert_eq!(fixed.spec.wanted_type(), Some(DiskType::Fixed));
    let made = disk(json!({"size": "1Gi"}));
    assert_eq!(made.spec.wanted_type(), Some(DiskType::Dynamic));
}

#[test]
fn a_linked_disk_is_its_device_and_stays_that() {
    let device = json!({"host": "host-a", "device": "/dev/disk/by-id/ata-X"});
    let linked = json!({"type": "Linked", "linked": device});
    accepted(disk(linked.clone()).validate_cel());
    for (field, value, part) in [
        (
            "type",
            json!("Fixed"),
            "linked is required with type Linked",
        ),
        ("size", json!("1Gi"), "remove size and source"),
        (
            "source",
            json!({"cloneRef": {"name": "a"}}),
            "remove size and source",
        ),
        (
            "file",
            json!({"mode": "Adopt", "path": "a.vhd"}),
            "a linked disk is made, not adopted",
        ),
    ] {
        let mut spec = linked.clone();
        spec[field] = value;
        refused(disk(spec).validate_cel(), part);
    }
    refused(
        disk(json!({"type": "Linked"})).validate_cel(),
        "linked is required",
    );
    for device in [
        "/dev/sda",
        "/dev/disk/by-id/",
        "/dev/disk/by-id/..",
        "/dev/disk/by-id/a/b",
        "/dev/disk/by-id/../../etc/shadow",
        "/dev/disk/by-id/a b",
    ] {
        let mut spec = linked.clone();
        spec["linked"]["device"] = json!(device);
        refused(disk(spec).validate_cel(), "device must be /dev/disk/by-id/");
    }
    let mut other = linked.clone();
    other["linked"]["host"] = json!("host-b");
    refused(
        disk(other).validate_cel_update(&disk(linked.clone())),
        "linked cannot be changed",
    );
    refused(
        disk(json!({"size": "1Gi"})).validate_cel_update(&disk(linked.clone())),
        "a linked disk cannot become another",
    );
    refused(
        disk(linked).validate_cel_update(&disk(json!({"size": "1Gi"}))),
        "a linked disk cannot become another",
    );
}

#[test]
fn a_source_is_one_thing() {
    let image = json!({"pool": "images", "path": "a.img"});
    accepted(disk(json!({"source": {"image": image}})).validate_cel());
    accepted(disk(json!({"source": {"cloneRef": {"name": "a"}}})).validate_cel());
    let http = json!({"url": "https://a.example/b.img", "sha256": "0".repeat(64)});
    accepted(disk(json!({"source": {"http": http}})).validate_cel());
    accepted(disk(json!({"source": {"linkedRef": {"name": "a"}}})).validate_cel());
    for source in [
        json!({}),
        json!({"image": image, "cloneRef": {"name": "a"}}),
        json!({"image": image, "http": http}),
        json!({"cloneRef": {"name": "a"}, "linkedRef": {"name": "a"}}),
    ] {
        refused(
            disk(json!({"source": source})).validate_cel(),
            "exactly one of",
        );
    }
}

#[test]
fn an_address_on_the_web_is_whole_and_holds_no_password() {
    let from = |url: &str| {
        let http = json!({"url": url, "sha256": "0".repeat(64)});
        disk(json!({"source": {"http": http}})).validate_cel()
    };
    for url in [
        "http://a",
        "https://images.example:8443/a/b.img?version=2&x=%20\"",
        "http://10.0.0.1:80/",
        "https://[fd00::1]/a.img",
    ] {
        accepted(from(url));
    }
    for url in [
        "",
        "ftp://a/b",
        "HTTP://a/b",
        "file:///etc/passwd",
        "http:///b",
        "http://user:word@a/b",
        "http://a/b#c",
        "http://a/b c",
        "http://a/\u{e9}",
        "http://a\\b",
        "http://a/b\n",
        "http://[::1/b",
    ] {
        refused(from(url), "url must begin with http:// or https://");
    }
}

#[test]
fn a_task_has_what_its_action_needs_and_no_more() {
    let task = |spec: Value| {
        let mut spec = spec;
        spec["virtualHardDiskRef"] = json!({"name": "a"});
        object::<VirtualHardDiskTask>("VirtualHardDiskTask", spec)
    };
    let target = json!({"pool": "default", "path": "out.img"});
    for spec in [
        json!({"action": "Check"}),
        json!({"action": "Compact", "precompact": "Enabled", "defragment": "Disabled"}),
        json!({"action": "Resize", "size": "1Gi", "shrink": "IfEmpty"}),
        json!({"action": "Export", "target": target, "format": "DynamicVhd"}),
    ] {
        accepted(task(spec).validate_cel());
    }
    for (spec, part) in [
        (json!({"action": "Resize"}), "needs a size"),
        (
            json!({"action": "Resize", "size": "1Mi"}),
            "size must be between",
        ),
        (
            json!({"action": "Check", "size": "1Gi"}),
            "belong to the action Resize",
        ),
        (
            json!({"action": "Check", "precompact": "Enabled"}),
            "belong to the action Compact",
        ),
        (
            json!({"action": "Check", "defragment": "Enabled"}),
            "belong to the action Compact",
        ),
        (json!({"action": "Export"}), "needs a target"),
        (
            json!({"action": "Check", "target": target}),
            "belong to the action Export",
        ),
        (
            json!({"action": "Export", "target": {"pool": "default", "path": "../a"}}),
            "stay in its pool",
        ),
    ] {
        refused(task(spec).validate_cel(), part);
    }
    refused(
        task(json!({"action": "Compact"})).validate_cel_update(&task(json!({"action": "Check"}))),
        "a task cannot be changed",
    );
}

#[test]
fn asks_for_a_path_to_adopt() {
    refused(
        disk(json!({"file": {"mode": "Adopt"}})).validate_cel(),
        "file.path is required with file.mode Adopt",
    );
    assert_eq!(
        disk(json!({"file": {"mode": "Adopt", "path": "old.vhd"}}))
            .validate_cel()
            .map_err(|e| e.to_string()),
        Ok(())
    );
}

#[test]
fn bounds_networks() {
    let good = network(
        json!({"type": "Internal", "subnet": "192.168.50.0/24", "hostAddress": "192.168.50.9",
        "dhcp": {"mode": "Enabled", "rangeStart": "192.168.50.10", "rangeEnd": "192.168.50.99"}}),
    );
    assert_eq!(good.validate_cel().map_err(|e| e.to_string()), Ok(()));
    for (spec, part) in [
        (
            json!({"type": "Internal", "subnet": "192.168.50.0/28"}),
            "between /8 and /27",
        ),
        (
            json!({"type": "Internal", "subnet": "192.168.50.1/24"}),
            "between /8 and /27",
        ),
        (json!({"type": "External"}), "uplink is required"),
        (
            json!({"type": "Private", "uplink": "lan"}),
            "uplink is required for an External network and only allowed there",
        ),
        (
            json!({"type": "Internal", "dhcp": {"mode": "Enabled"}}),
            "subnet is required when dhcp.mode is Enabled",
        ),
        (
            json!({"type": "Internal"}),
            "subnet is required on an Internal network",
        ),
        (
            json!({"type": "Internal", "subnet": "10.0.0.0/24",
                "dhcp": {"mode": "Enabled", "gateway": "10.0.1.1"}}),
            "dhcp.gateway must be an address of subnet",
        ),
        (
            json!({"type": "Internal", "subnet": "127.1.2.0/24"}),
            "must not hold loopback",
        ),
        (
            json!({"type": "Private", "subnet": "169.254.7.0/24"}),
            "must not hold loopback",
        ),
        (
            json!({"type": "Private", "subnet": "169.0.0.0/8"}),
            "must not hold loopback",
        ),
        (
            json!({"type": "Private", "subnet": "240.0.0.0/24"}),
            "must not hold loopback",
        ),
        (
            json!({"type": "Private", "subnet": "10.0.0.0/24", "hostAddress": "10.0.0.1"}),
            "hostAddress must be an address of subnet",
        ),
        (
            json!({"type": "Internal", "subnet": "10.0.0.0/24", "hostAddress": "10.0.1.1"}),
            "hostAddress must be an address of subnet",
        ),
        (
            json!({"type": "Internal", "subnet": "10.0.0.0/24", "dhcp": {"rangeStart": "10.0.1.1"}}),
            "rangeStart must be an address of subnet",
        ),
        (
            json!({"type": "Internal", "subnet": "10.0.0.0/24", "dhcp": {"rangeEnd": "10.0.1.1"}}),
            "rangeEnd must be an address of subnet",
        ),
        (
            json!({"type": "Internal", "subnet": "10.0.0.0/24", "dhcp": {"dns": ["nonsense"]}}),
            "dns must hold IPv4 addresses",
        ),
    ] {
        refused(network(spec).validate_cel(), part);
    }
}

#[test]
fn every_field_of_every_kind_is_documented() {
    fn walk(path: &str, schema: &Value, missing: &mut Vec<String>) {
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                let path = format!("{path}.{name}");
                if property["description"]
                    .as_str()
                    .unwrap_or_default()
                    .is_empty()
                {
                    missing.push(path.clone());
                }
                walk(&path, property, missing);
            }
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], missing);
        }
    }
    let crds = paddock_crds::crds().unwrap();
    assert_eq!(crds.len(), 6);
    let mut missing = Vec::new();
    for crd in &crds {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert!(
            schema["properties"]["spec"]["properties"].is_object(),
            "{kind} has a spec"
        );
        for part in ["spec", "status"] {
            walk(
                &format!("{kind}.{part}"),
                &schema["properties"][part],
                &mut missing,
            );
        }
    }
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn nothing_is_nullable_and_every_text_is_bounded() {
    fn walk(path: &str, schema: &Value, faults: &mut Vec<String>) {
        if schema["nullable"] == Value::Bool(true) {
            faults.push(format!("{path} is nullable"));
        }
        let bounded = ["maxLength", "enum", "format"]
            .iter()
            .any(|key| !schema[*key].is_null());
        if schema["type"] == "string" && !bounded {
            faults.push(format!("{path} has no maxLength"));
        }
        if schema["type"] == "array" && schema["maxItems"].is_null() {
            faults.push(format!("{path} has no maxItems"));
        }
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                walk(&format!("{path}.{name}"), property, faults);
            }
        }
        if schema["items"].is_object() {
            walk(&format!("{path}[]"), &schema["items"], faults);
        }
    }
    let mut faults = Vec::new();
    for crd in paddock_crds::crds().unwrap() {
        let kind = crd["spec"]["names"]["kind"].as_str().unwrap().to_owned();
        let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        walk(
            &format!("{kind}.spec"),
            &schema["properties"]["spec"],
            &mut faults,
        );
        walk(
            &format!("{kind}.status"),
            &schema["properties"]["status"],
            &mut faults,
        );
    }
    // Kubernetes' own types: Condition and LabelSelector bring their own bounds or none.
    faults.retain(|fault| !fault.contains(".conditions[].") && !fault.contains("hostSelector"));
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn a_pool_holds_disks_or_images() {
    let host = |kinds: Value| -> Host {
        object(
            "Host",
            json!({"pools": [{"name": "p", "path": "/p", "kinds": kinds}]}),
        )
    };
    for kinds in [json!(["Disks"]), json!(["Images"])] {
        let valid = host(kinds.clone()).validate_cel();
        assert_eq!(valid.map_err(|e| e.to_string()), Ok(()), "{kinds}");
    }
    for kinds in [json!(["Disks", "Images"]), json!(["Images", "Disks"])] {
        refused(host(kinds).validate_cel(), "Disks or Images, not both");
    }
    let bare: Host = object("Host", json!({"pools": [{"name": "p", "path": "/p"}]}));
    assert_eq!(bare.spec.pools[0].kinds, [PoolKind::Disks]);
}
