//! Which host is chosen, and what each other one answers.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod model;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use model::host;
use paddock_crds::{
    host::{Accelerator, PoolState, Uplink},
    virtual_machine::Acceleration,
};
use paddock_planner::placement::{
    Availability, DiskNeed, DiskPlace, HostView, Need, place, selects,
};
use std::{collections::BTreeMap, sync::Arc};

fn need(mebibytes: u64) -> Need {
    Need {
        memory: mebibytes << 20,
        cores: 1,
        ..Need::default()
    }
}

fn chosen(hosts: &[HostView], need: &Need) -> String {
    place(hosts, need)
        .expect("a host takes it")
        .name()
        .to_owned()
}

fn refusal(host: &HostView, need: &Need) -> String {
    let none = place(std::slice::from_ref(host), need).expect_err("it refuses");
    none.refusals[host.name()].clone()
}

fn edit(mut view: HostView, change: impl FnOnce(&mut paddock_crds::Host)) -> HostView {
    change(Arc::make_mut(&mut view.host));
    view
}

fn disk(place: DiskPlace, pool: &str) -> DiskNeed {
    DiskNeed {
        name: "root".to_owned(),
        pool: pool.to_owned(),
        place,
        image_pool: None,
        parent_pools: vec![],
    }
}

#[test]
fn the_last_host_then_the_reserved_one_then_most_free_memory_then_the_name() {
    let mut hosts = [host("b", "2Gi"), host("a", "2Gi"), host("c", "4Gi")];
    assert_eq!(chosen(&hosts, &need(64)), "c");
    hosts[2].allocated = 3 << 30;
    assert_eq!(chosen(&hosts, &need(64)), "a");
    let mut last = need(64);
    last.reserved = Some("b".to_owned());
    assert_eq!(chosen(&hosts, &last), "b");
    last.last_host = Some("c".to_owned());
    assert_eq!(chosen(&hosts, &last), "c");
    last.memory = 2 << 30;
    assert_eq!(chosen(&hosts, &last), "b");
    last.reserved = Some("c".to_owned());
    assert_eq!(chosen(&hosts, &last), "a");
}

#[test]
fn memory_is_given_to_the_last_byte_and_no_further() {
    let mut view = host("a", "1Gi");
    view.allocated = 512 << 20;
    assert_eq!(chosen(std::slice::from_ref(&view), &need(512)), "a");
    let mut more = need(512);
    more.memory += 1;
    assert_eq!(
        refusal(&view, &more),
        "memory short by 1 bytes (512.1 MiB needed with overhead, 512 MiB free)"
    );
    view.allocated = 5 << 30;
    assert_eq!(
        refusal(&view, &need(1)),
        "memory short by 1 MiB (1 MiB needed with overhead, 0 bytes free)"
    );
}

#[test]
fn each_host_says_why() {
    let view = host("a", "1Gi");
    let mut cores = need(1);
    cores.cores = 5;
    assert_eq!(refusal(&view, &cores), "5 cores asked for, it has 4");

    let mut kvm = need(1);
    kvm.acceleration = Acceleration::Required;
    assert_eq!(
        refusal(&view, &kvm),
        "acceleration is Required and it has no hardware virtualization"
    );
    let accelerated = edit(view.clone(), |h| {
        h.status.as_mut().unwrap().accelerator = Some(Accelerator::Kvm);
    });
    assert_eq!(chosen(&[accelerated], &kvm), "a");
    let none = edit(view.clone(), |h| {
        h.status.as_mut().unwrap().accelerator = Some(Accelerator::None);
    });
    assert_eq!(refusal(&none, &need(1)), "no accelerator for guests");

    let mut pool = need(1);
    pool.disks = vec![disk(DiskPlace::Unbound, "fast")];
    assert_eq!(refusal(&view, &pool), "pool \"fast\" missing");
    pool.disks = vec![disk(DiskPlace::Shared, "images")];
    assert_eq!(refusal(&view, &pool), "pool \"images\" is not for Disks");
    pool.disks = vec![disk(DiskPlace::Bound("b".to_owned()), "default")];
    assert_eq!(refusal(&view, &pool), "disk \"root\" is bound to b");
    pool.disks = vec![disk(DiskPlace::Shared, "default")];
    assert_eq!(
        refusal(&view, &pool),
        "disk \"root\" is in the shared pool \"default\", which is Local here"
    );
    let broken = edit(view.clone(), |h| {
        let pool = &mut h.status.as_mut().unwrap().pools[0];
        pool.state = PoolState::Unavailable;
        pool.message = Some("not mounted".to_owned());
    });
    pool.disks = vec![disk(DiskPlace::Unbound, "default")];
    assert_eq!(
        refusal(&broken, &pool),
        "pool \"default\" unavailable (not mounted)"
    );
    pool.disks[0].image_pool = Some("pictures".to_owned());
    assert_eq!(refusal(&view, &pool), "pool \"pictures\" missing");

    let mut kernel = need(1);
    kernel.image_pools = vec!["kernels".to_owned()];
    assert_eq!(refusal(&view, &kernel), "pool \"kernels\" missing");

    let mut uplink = need(1);
    uplink.uplinks = vec!["lan".to_owned()];
    assert_eq!(refusal(&view, &uplink), "uplink \"lan\" missing");
    let unreported = edit(view.clone(), |h| {
        h.spec.uplinks.push(Uplink {
            name: "lan".to_owned(),
            interface: "eth1".to_owned(),
        });
    });
    assert_eq!(
        refusal(&unreported, &uplink),
        "uplink \"lan\" not yet reported by its agent"
    );

    let mut selector = need(1);
    selector.selector = Some(LabelSelector {
        match_labels: Some([("rack".to_owned(), "1".to_owned())].into()),
        match_expressions: None,
    });
    assert_eq!(
        refusal(&view, &selector),
        "labels do not match hostSelector"
    );

    let mut held = need(1);
    held.held_by = Some("b".to_owned());
    assert_eq!(refusal(&view, &held), "its disks are attached on b");

    let mut silent = view;
    silent.availability = Availability::NotReady {
        reason: "LeaseExpired",
        message: "its agent has been silent".to_owned(),
    };
    assert_eq!(
        refusal(&silent, &cores),
        "not ready: its agent has been silent"
    );
}

#[test]
fn the_message_lists_every_host_and_those_that_are_missing() {
    let hosts = [host("a", "1Gi"), host("b", "2Gi")];
    let mut need = need(4096);
    need.disks = vec![disk(DiskPlace::Bound("z".to_owned()), "default")];
    let none = place(&hosts, &need).unwrap_err();
    assert_eq!(
        none.message(),
        "a: disk \"root\" is bound to z, memory short by 3 GiB (4 GiB needed with overhead, 1 GiB free); \
         b: disk \"root\" is bound to z, memory short by 2 GiB (4 GiB needed with overhead, 2 GiB free); \
         z: holds disk \"root\", but there is no such Host"
    );
    assert_eq!(
        place(&[], &Need::default()).unwrap_err().message(),
        "there is no Host"
    );
}

#[test]
fn selectors_follow_kubernetes() {
    let labels: BTreeMap<String, String> = [("rack".to_owned(), "1".to_owned())].into();
    let expression = |operator: &str, key: &str, values: &[&str]| LabelSelector {
        match_labels: None,
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: key.to_owned(),
            operator: operator.to_owned(),
            values: Some(values.iter().map(|v| (*v).to_owned()).collect()),
        }]),
    };
    for (operator, key, values, expected) in [
        ("In", "rack", &["1", "2"][..], true),
        ("In", "rack", &["2"], false),
        ("In", "row", &["1"], false),
        ("NotIn", "rack", &["1"], false),
        ("NotIn", "row", &["1"], true),
        ("Exists", "rack", &[], true),
        ("Exists", "row", &[], false),
        ("DoesNotExist", "row", &[], true),
        ("DoesNotExist", "rack", &[], false),
        ("Gt", "rack", &["0"], false),
    ] {
        let selector = expression(operator, key, values);
        assert_eq!(
            selects(&selector, Some(&labels)),
            expected,
            "{key} {operator} {values:?}"
        );
    }
    assert!(selects(&LabelSelector::default(), None));
}
