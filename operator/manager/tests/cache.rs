//! The cache: what plans take is taken at once, and each change wakes those it concerns and nobody else.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod lab;

use k8s_openapi::jiff::Timestamp;
use lab::{Lab, creates, disk, host, instance, key, lease, machine, object, reason};
use paddock_crds::{Host, VirtualHardDisk, VirtualHardDiskTask, VirtualMachine, reference::Time};
use paddock_operator::{cache::Origin, queue::Work};
use paddock_planner::{ObjectKey, lease::LeaseState, machine::Action};
use serde_json::{Value, json};

#[tokio::test]
async fn memory_and_addresses_are_taken_before_the_api_shows_it() {
    // 64 MiB and 128.64 MiB of overhead fit twice into 400 MiB, not three times.
    let lab = Lab::new("400Mi").await;
    for name in ["a", "b", "c"] {
        lab.cache
            .observe(machine(name, "64Mi", None), Origin::Watch);
    }
    assert_eq!(creates(&lab.plan("a")).as_deref(), Some("10.0.0.17"));
    assert_eq!(creates(&lab.plan("b")).as_deref(), Some("10.0.0.18"));
    assert_eq!(reason(&lab.plan("c")), "Unschedulable");
    // Planned again, it takes what it took.
    assert_eq!(creates(&lab.plan("a")).as_deref(), Some("10.0.0.17"));
    lab.cache
        .forget::<VirtualMachine>(&key("a"), Some("uid-a"), Origin::Watch);
    assert_eq!(creates(&lab.plan("c")).as_deref(), Some("10.0.0.17"));
}

#[tokio::test]
async fn a_disk_is_taken_by_one_plan() {
    let lab = Lab::new("4Gi").await;
    lab.cache.observe(disk("root"), Origin::Watch);
    for name in ["a", "b"] {
        lab.cache
            .observe(machine(name, "64Mi", Some("root")), Origin::Watch);
    }
    assert!(creates(&lab.plan("b")).is_some());
    assert_eq!(reason(&lab.plan("a")), "DiskInUse");
    lab.cache
        .forget::<VirtualMachine>(&key("b"), Some("uid-b"), Origin::Watch);
    assert!(creates(&lab.plan("a")).is_some());
}

#[tokio::test]
async fn a_change_wakes_those_it_concerns() {
    let lab = Lab::new("400Mi").await;
    lab.cache
        .observe(machine("a", "64Mi", Some("root")), Origin::Watch);
    lab.cache.observe(machine("b", "64Mi", None), Origin::Watch);
    lab.cache
        .observe(machine("big", "8Gi", None), Origin::Watch);
    assert_eq!(lab.drain().await.len(), 3);
    lab.cache.observe(disk("root"), Origin::Watch);
    assert_eq!(
        lab.drain().await,
        [Work::Machine(key("a")), Work::Disk(key("root"))]
    );
    // Only who waits is woken by a host.
    let planned = lab.plan("b");
    assert_eq!(reason(&lab.plan("big")), "Unschedulable");
    lab.cache.observe(host("host-a", "500Mi"), Origin::Watch);
    assert_eq!(
        lab.drain().await,
        [Work::Machine(key("big")), Work::Host("host-a".to_owned())]
    );
    // A renewal wakes nobody; a fenced lease wakes the host and the machines on it.
    let spec = planned.plan.actions.iter().find_map(|a| match a {
        Action::CreateInstance(spec) => Some(spec.as_ref().clone()),
        _ => None,
    });
    let instance = instance("b", spec.unwrap());
    lab.cache.observe(instance, Origin::Own);
    assert_eq!(lab.drain().await, [Work::Machine(key("b"))]);
    let mut renewed = lease(1, LeaseState::Held);
    renewed.nonce = Some("n2".to_owned());
    renewed.resource_version = "2".to_owned();
    lab.cache.observe_lease("host-a", Some(renewed));
    assert_eq!(lab.drain().await, []);
    lab.cache
        .observe_lease("host-a", Some(lease(2, LeaseState::Fenced)));
    assert_eq!(
        lab.drain().await,
        [Work::Machine(key("b")), Work::Host("host-a".to_owned())]
    );
}

#[tokio::test]
async fn what_is_counted_of_a_host_wakes_nobody_who_waits() {
    let lab = Lab::new("400Mi").await;
    lab.cache
        .observe(machine("big", "8Gi", None), Origin::Watch);
    lab.drain().await;
    assert_eq!(reason(&lab.plan("big")), "Unschedulable");
    let mut counted = host("host-a", "400Mi");
    let status = counted.status.as_mut().unwrap();
    status.storage = Some("shared 1 GiB/2 GiB".to_owned());
    status.pools[0].free_bytes = Some(7);
    status.committed = vec![paddock_crds::host::Committed {
        pool: "shared".to_owned(),
        bytes: 1 << 30,
        disks: 1,
    }];
    lab.cache.observe(counted, Origin::Own);
    assert_eq!(lab.drain().await, [Work::Host("host-a".to_owned())]);
    let mut labelled = host("host-a", "400Mi");
    labelled.metadata.labels = Some([("rack".to_owned(), "1".to_owned())].into());
    lab.cache.observe(labelled, Origin::Watch);
    assert!(lab.drain().await.contains(&Work::Machine(key("big"))));
}

#[tokio::test]
async fn a_machine_that_waits_for_its_disk_keeps_its_place() {
    let lab = Lab::new("4Gi").await;
    lab.cache.observe(host("host-b", "4Gi"), Origin::Watch);
    lab.cache
        .observe_lease("host-b", Some(lease(1, LeaseState::Held)));
    let unmade = json!({"size": "1Gi", "file": {"pool": "shared"}});
    let unmade: VirtualHardDisk = object("VirtualHardDisk", "root", unmade, Value::Null);
    lab.cache.observe(unmade, Origin::Watch);
    let place = |name: &str, memory: &str, disk: Option<&str>| {
        lab.cache
            .observe(machine(name, memory, disk), Origin::Watch);
        let planned = lab.plan(name);
        let host = planned.plan.reservation.map(|r| r.host);
        (host.unwrap_or_default(), planned.frees)
    };
    let waits = ("host-a".to_owned(), false);
    assert_eq!(place("a", "64Mi", Some("root")), waits);
    assert_eq!(place("b", "64Mi", None).0, "host-b");
    assert_eq!(place("c", "512Mi", None).0, "host-a");
    // There is more room on the other host by now, but a move would have everybody who waits looked at.
    let again = lab.plan("a");
    let host = again.plan.reservation.map(|r| r.host).unwrap_or_default();
    assert_eq!((host, again.frees), waits);
}

/// A disk that is not made, in a namespace, younger or older than others.
fn adopter(namespace: &str, path: &str, made: &str) -> VirtualHardDisk {
    let mut disk: VirtualHardDisk = object(
        "VirtualHardDisk",
        "thief",
        json!({"file": {"pool": "shared", "path": path, "mode": "Adopt"}}),
        Value::Null,
    );
    disk.metadata.namespace = Some(namespace.to_owned());
    let made: Timestamp = made.parse().unwrap();
    disk.metadata.creation_timestamp = Some(Time(made));
    disk
}

#[tokio::test]
async fn a_file_that_a_disk_has_is_no_other_disks() {
    let lab = Lab::new("4Gi").await;
    let mut victim: VirtualHardDisk = object(
        "VirtualHardDisk",
        "d",
        json!({"size": "1Gi", "file": {"pool": "shared", "path": "first.vhd"}}),
        json!({
            "state": "Ready", "diskEpoch": 3, "file": {"pool": "shared", "path": "first-3.vhd"},
            "obsoleteFiles": [{"pool": "shared", "path": "first-2.vhd"}],
            "undo": {"file": {"pool": "shared", "path": "first-3.vud"}, "machine": "web", "state": "Kept"},
        }),
    );
    lab.cache.observe(victim.clone(), Origin::Watch);
    let other = |path: &str, made: &str| {
        let disk = adopter("u", path, made);
        let key = ObjectKey::new("u", "thief");
        lab.cache.world().other_with_its_file(&key, &disk)
    };
    let (older, younger) = ("2025-01-01T00:00:00Z", "2027-01-01T00:00:00Z");
    for path in ["first-3.vhd", "first-2.vhd", "first-3.vud"] {
        for made in [older, younger] {
            assert_eq!(other(path, made), Some(key("d")), "{path}");
        }
    }
    // What is merely asked for is the earlier one's.
    assert_eq!(other("first.vhd", younger), Some(key("d")));
    assert_eq!(other("first.vhd", older), None);
    assert_eq!(other("second.vhd", younger), None);
    // A file that a conversion is just making.
    let task: VirtualHardDiskTask = object(
        "VirtualHardDiskTask",
        "d-convert-4",
        json!({"action": "Convert", "virtualHardDiskRef": {"name": "d"}}),
        json!({"host": "host-a", "hostEpoch": 1, "order": {
            "diskUid": "uid-d", "diskEpoch": 4, "file": {"pool": "shared", "path": "first-3.vhd"},
            "target": {"pool": "shared", "path": "first-4.vhd"},
        }}),
    );
    assert_eq!(other("first-4.vhd", older), None);
    lab.cache.observe(task, Origin::Watch);
    assert_eq!(other("first-4.vhd", older), Some(key("d")));
    // Who waits for a file is woken when it is given up.
    lab.cache.world().pending_disks.insert(key("waits"));
    lab.drain().await;
    victim.metadata.resource_version = Some("900".to_owned());
    victim.status.as_mut().unwrap().obsolete_files.clear();
    lab.cache.observe(victim, Origin::Watch);
    assert!(lab.drain().await.contains(&Work::Disk(key("waits"))));
    assert_eq!(other("first-2.vhd", younger), None);
}

#[tokio::test]
async fn a_file_that_is_yet_to_be_made_is_nobody_elses() {
    let lab = Lab::new("4Gi").await;
    let unmade: VirtualHardDisk = object(
        "VirtualHardDisk",
        "d",
        json!({"size": "1Gi", "file": {"pool": "shared"}}),
        Value::Null,
    );
    let path = paddock_planner::disk::file(&unmade).path;
    lab.cache.observe(unmade, Origin::Watch);
    let thief = adopter("u", &path, "2027-01-01T00:00:00Z");
    let own = ObjectKey::new("u", "thief");
    let found = lab.cache.world().other_with_its_file(&own, &thief);
    assert_eq!(found, Some(key("d")));
}

#[tokio::test]
async fn a_forged_annotation_leads_to_no_disk_of_another_namespace() {
    let lab = Lab::new("4Gi").await;
    let mut task: VirtualHardDiskTask = object(
        "VirtualHardDiskTask",
        "forged",
        json!({"action": "Merge", "virtualHardDiskRef": {"name": "d"}}),
        Value::Null,
    );
    task.metadata.namespace = Some("b".to_owned());
    let annotations = [
        ("paddock.dev/virtual-hard-disk", "t/d"),
        ("paddock.dev/virtual-hard-disk-uid", "uid-d"),
    ];
    let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned()));
    task.metadata.annotations = Some(annotations.into());
    lab.cache.observe(task.clone(), Origin::Watch);
    assert_eq!(lab.drain().await, [Work::Disk(ObjectKey::new("b", "d"))]);
    let world = lab.cache.world();
    assert_eq!(world.index.tasks_named_for(&key("d")).count(), 0);
    assert_eq!(world.index.tasks_of("uid-d").count(), 0);
}

#[tokio::test]
async fn committed_sizes_follow_the_disks() {
    let lab = Lab::new("4Gi").await;
    let made = |name: &str, pool: &str, host: Option<&str>, bytes: i64| -> VirtualHardDisk {
        let mut status = json!({
            "state": "Ready", "diskEpoch": 1, "sizeBytes": bytes,
            "file": {"pool": pool, "path": format!("{name}.vhd")},
        });
        if let Some(host) = host {
            status["host"] = json!(host);
        }
        object(
            "VirtualHardDisk",
            name,
            json!({"file": {"pool": pool}}),
            status,
        )
    };
    let sum = |pool: &str, host: Option<&str>| lab.cache.world().index.committed(pool, host);
    assert_eq!(sum("default", Some("host-a")), (0, 0));
    for disk in [
        made("a", "default", Some("host-a"), 10),
        made("b", "default", Some("host-a"), 20),
        made("c", "default", Some("host-b"), 40),
        made("d", "shared", None, 80),
        // In a shared pool, and yet bound: its parent is on one host alone.
        made("e", "shared", Some("host-a"), 160),
    ] {
        lab.cache.observe(disk, Origin::Watch);
    }
    // One without a file takes nothing.
    let unmade = object("VirtualHardDisk", "f", json!({"size": "1Gi"}), Value::Null);
    lab.cache.observe::<VirtualHardDisk>(unmade, Origin::Watch);
    assert_eq!(sum("default", Some("host-a")), (30, 2));
    assert_eq!(sum("default", Some("host-b")), (40, 1));
    assert_eq!(sum("default", None), (0, 0));
    assert_eq!(sum("shared", None), (80, 1));

    let host: Host = object(
        "Host",
        "host-a",
        json!({"pools": [
            {"name": "default", "path": "/d"},
            {"name": "shared", "path": "/s", "scope": "Shared"},
            {"name": "images", "path": "/i", "kinds": ["Images"]},
        ]}),
        Value::Null,
    );
    let told = || {
        let committed = paddock_operator::host::committed(&lab.cache.world(), &host);
        let told = committed.into_iter().map(|c| (c.pool, c.bytes, c.disks));
        told.collect::<Vec<_>>()
    };
    let expected = |default: (i64, i32), shared: (i64, i32)| {
        vec![
            ("default".to_owned(), default.0, default.1),
            ("shared".to_owned(), shared.0, shared.1),
        ]
    };
    assert_eq!(told(), expected((30, 2), (240, 2)));
    // Grown, and gone.
    let grown = made("a", "default", Some("host-a"), 15);
    lab.cache.observe(grown, Origin::Watch);
    assert_eq!(told(), expected((35, 2), (240, 2)));
    for name in ["a", "b", "e"] {
        let uid = format!("uid-{name}");
        lab.cache
            .forget::<VirtualHardDisk>(&key(name), Some(&uid), Origin::Watch);
    }
    assert_eq!(told(), expected((0, 0), (80, 1)));
}
