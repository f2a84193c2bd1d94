//! Restarts, repairs, removal.

use std::net::Ipv4Addr;

use paddock_net::{
    AdapterError, AdapterName, FoundBridge, FoundTap, Inventory, NetworkError, NetworkKind,
    OwnerId, TapError,
};

use super::frames::arp;
use super::guest::Guest;
use super::namespace::{cable, isolated, run};
use super::wishes::{TAP_OWNER, adapter, external, manager, network};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 20);

/// Interfaces, one in a line, without what the kernel changes a moment later
/// by itself (carrier, operational state).
fn interfaces() -> String {
    let links: serde_json::Value = serde_json::from_str(&run("ip", &["-j", "link"])).unwrap();
    let line = |link: &serde_json::Value| {
        let up = link["flags"]
            .as_array()
            .unwrap()
            .iter()
            .any(|flag| flag == "UP");
        let facts = ["ifindex", "ifname", "ifalias", "address", "mtu", "master"]
            .map(|key| link[key].to_string());
        format!("{} up={up}\n", facts.join(" "))
    };
    links.as_array().unwrap().iter().map(line).collect()
}

/// Interfaces with their numbers, addresses, and the packet filter with its
/// handles: any change shows.
fn everything() -> String {
    let filter = run("nft", &["-a", "list", "table", "bridge", "paddock"]);
    let addresses = run("ip", &["-4", "-o", "address"]);
    format!("{}{addresses}{filter}", interfaces())
}

#[test]
fn a_restart_changes_nothing() {
    isolated("lifecycle::a_restart_changes_nothing", || async {
        cable(1500);
        let networks = [
            network(7, NetworkKind::Internal),
            network(8, NetworkKind::Private),
            network(9, external("lan0")),
        ];
        let adapters = [
            (0, adapter(1, Some(OWN))),
            (1, adapter(2, Some(Ipv4Addr::new(10, 8, 0, 20)))),
            (1, adapter(3, None)),
            (2, adapter(4, Some(Ipv4Addr::new(10, 9, 0, 20)))),
        ];
        let first = manager().await;
        first.probe().await.unwrap();
        for network in &networks {
            first.ensure_network(network).await.unwrap();
        }
        let mut guests = Vec::new();
        for (network, spec) in &adapters {
            guests.push(Guest::open(
                &first
                    .ensure_adapter(&networks[*network], spec)
                    .await
                    .unwrap(),
            ));
        }
        let listed = first.list().await.unwrap();
        assert_eq!((listed.bridges.len(), listed.taps.len()), (3, 4));
        let before = everything();
        drop(first);

        let second = manager().await;
        assert_eq!(second.list().await.unwrap(), listed);
        // Nothing is unprotected before all are ensured again.
        second.ensure_network(&networks[0]).await.unwrap();
        assert_eq!(everything(), before);
        for network in &networks {
            second.ensure_network(network).await.unwrap();
        }
        for (network, spec) in &adapters {
            second
                .ensure_adapter(&networks[*network], spec)
                .await
                .unwrap();
        }
        second.repair().await.unwrap();
        assert_eq!(everything(), before);

        // The guests' descriptors still carry frames.
        let mac = adapters[1].1.mac.bytes();
        let hello = arp(
            mac,
            mac,
            Ipv4Addr::new(10, 8, 0, 20),
            Ipv4Addr::new(10, 8, 0, 21),
        );
        guests[1].send(&hello);
        guests[2].until("the neighbour", |frame| frame == hello);
    });
}

#[test]
fn what_is_listed_tells_whose_it_is() {
    isolated("lifecycle::what_is_listed_tells_whose_it_is", || async {
        let manager = manager().await;
        assert_eq!(manager.list().await.unwrap(), Inventory::default());
        let wish = network(7, NetworkKind::Private);
        let bridge = manager.ensure_network(&wish).await.unwrap();
        let tap = manager
            .ensure_adapter(&wish, &adapter(1, Some(OWN)))
            .await
            .unwrap();
        let expected = Inventory {
            bridges: vec![FoundBridge {
                name: bridge.clone(),
                network: Some(wish.id.clone()),
            }],
            taps: vec![FoundTap {
                name: tap.clone(),
                bridge: Some(bridge),
                adapter: Some((
                    OwnerId::new("vm-1").unwrap(),
                    AdapterName::new("lan").unwrap(),
                )),
            }],
        };
        assert_eq!(manager.list().await.unwrap(), expected);
        let tap = run("ip", &["-d", "-o", "link", "show", "dev", tap.as_str()]);
        for fact in [
            "type tap",
            "pi off",
            "vnet_hdr on",
            "persist on",
            &format!("user {TAP_OWNER}"),
        ] {
            assert!(tap.contains(fact), "{fact} in {tap}");
        }
    });
}

#[test]
fn removal_leaves_nothing() {
    isolated("lifecycle::removal_leaves_nothing", || async {
        cable(1500);
        let before = interfaces();
        let manager = manager().await;
        let wish = network(9, external("lan0"));
        let bridge = manager.ensure_network(&wish).await.unwrap();
        let tap = manager
            .ensure_adapter(&wish, &adapter(4, Some(Ipv4Addr::new(10, 9, 0, 20))))
            .await
            .unwrap();
        let other = manager
            .ensure_adapter(&wish, &adapter(5, None))
            .await
            .unwrap();
        let error = manager.remove_network(&wish.id).await.unwrap_err();
        let mut expected = vec![tap.clone(), other.clone()];
        expected.sort();
        match error {
            NetworkError::InUse {
                bridge: found,
                mut taps,
            } => {
                taps.sort();
                assert_eq!((found, taps), (bridge, expected));
            }
            other => panic!("{other}"),
        }
        // A guest that still has its tap open loses it.
        let _guest = Guest::open(&tap);
        manager.remove_adapter(&tap).await.unwrap();
        let filter = run("nft", &["list", "table", "bridge", "paddock"]);
        assert!(
            !filter.contains(tap.as_str()) && filter.contains(other.as_str()),
            "{filter}"
        );
        manager.remove_adapter(&other).await.unwrap();
        manager.remove_network(&wish.id).await.unwrap();
        assert_eq!(interfaces(), before);
        assert_eq!(run("nft", &["list", "ruleset"]), "");
        // And once more, of what is gone.
        manager.remove_adapter(&tap).await.unwrap();
        manager.remove_network(&wish.id).await.unwrap();
        manager.repair().await.unwrap();
        assert_eq!(run("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn a_flushed_packet_filter_is_repaired() {
    isolated("lifecycle::a_flushed_packet_filter_is_repaired", || async {
        cable(1500);
        let manager = manager().await;
        let wish = network(9, external("lan0"));
        manager.ensure_network(&wish).await.unwrap();
        manager
            .ensure_adapter(&wish, &adapter(4, Some(Ipv4Addr::new(10, 9, 0, 20))))
            .await
            .unwrap();
        manager
            .ensure_adapter(&wish, &adapter(5, None))
            .await
            .unwrap();
        let list = || run("nft", &["list", "ruleset"]);
        let before = list();
        assert!(before.contains("10.9.0.20"));
        run("nft", &["flush", "ruleset"]);
        manager.repair().await.unwrap();
        assert_eq!(list(), before);
        // A rule that is gone, or one too many, is noticed as well.
        run("nft", &["flush", "chain", "bridge", "paddock", "guest_arp"]);
        manager.repair().await.unwrap();
        assert_eq!(list(), before);
        run(
            "nft",
            &[
                "insert",
                "rule",
                "bridge",
                "paddock",
                "from_guest",
                "accept",
            ],
        );
        manager.repair().await.unwrap();
        assert_eq!(list(), before);
        // Other tables are left alone.
        run("nft", &["add", "table", "bridge", "other"]);
        manager.repair().await.unwrap();
        assert!(list().contains("table bridge other"));
    });
}

#[test]
fn names_of_others_are_left_alone() {
    isolated("lifecycle::names_of_others_are_left_alone", || async {
        let manager = manager().await;
        let wish = network(7, NetworkKind::Private);
        let bridge = manager.ensure_network(&wish).await.unwrap();
        manager.remove_network(&wish.id).await.unwrap();
        run("ip", &["link", "add", bridge.as_str(), "type", "veth"]);
        let taken = |error: NetworkError| matches!(error, NetworkError::NameTaken { .. });
        assert!(taken(manager.ensure_network(&wish).await.unwrap_err()));
        assert!(taken(manager.remove_network(&wish.id).await.unwrap_err()));
        run("ip", &["link", "del", bridge.as_str()]);
        run("ip", &["link", "add", bridge.as_str(), "type", "bridge"]);
        run(
            "ip",
            &[
                "link",
                "set",
                bridge.as_str(),
                "alias",
                "paddock network other",
            ],
        );
        assert!(taken(manager.ensure_network(&wish).await.unwrap_err()));
        // One without an alias is what a cut creation leaves: adopted.
        run("ip", &["link", "set", bridge.as_str(), "alias", ""]);
        manager.ensure_network(&wish).await.unwrap();
        assert_eq!(
            manager.list().await.unwrap().bridges[0].network,
            Some(wish.id)
        );
    });
}

#[test]
fn an_open_tap_is_not_given_to_another_user() {
    isolated(
        "lifecycle::an_open_tap_is_not_given_to_another_user",
        || async {
            let manager = manager().await;
            let wish = network(7, NetworkKind::Private);
            let mut spec = adapter(1, Some(OWN));
            let missing = manager.ensure_adapter(&wish, &spec).await.unwrap_err();
            assert!(
                matches!(missing, AdapterError::NoBridge { .. }),
                "{missing}"
            );
            manager.ensure_network(&wish).await.unwrap();
            let tap = manager.ensure_adapter(&wish, &spec).await.unwrap();
            let guest = Guest::open(&tap);
            spec.tap_owner_uid = 4243;
            let busy = manager.ensure_adapter(&wish, &spec).await.unwrap_err();
            assert!(
                matches!(&busy, AdapterError::Tap(TapError::Busy { found, expected: 4243, .. }) if found == "4242"),
                "{busy}"
            );
            drop(guest);
            manager.ensure_adapter(&wish, &spec).await.unwrap();
            let link = run("ip", &["-d", "-o", "link", "show", "dev", tap.as_str()]);
            assert!(link.contains("user 4243"), "{link}");
        },
    );
}

#[test]
fn the_host_forwards_nothing_and_has_no_ipv6() {
    isolated(
        "lifecycle::the_host_forwards_nothing_and_has_no_ipv6",
        || async {
            for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{family}"), "1").unwrap();
            }
            let manager = manager().await;
            let setting = |interface: &str, name: &str| {
                let path = format!("/proc/sys/net/{}", name.replace("IF", interface));
                std::fs::read_to_string(path).unwrap().trim().to_owned()
            };
            let names = [
                "ipv4/conf/IF/forwarding",
                "ipv4/conf/IF/arp_ignore",
                "ipv6/conf/IF/disable_ipv6",
            ];
            for (number, kind, expected) in [
                (7, NetworkKind::Internal, ["0", "1", "1"]),
                (8, NetworkKind::Private, ["0", "8", "1"]),
            ] {
                let wish = network(number, kind);
                let bridge = manager.ensure_network(&wish).await.unwrap();
                assert_eq!(names.map(|name| setting(bridge.as_str(), name)), expected);
                let tap = manager
                    .ensure_adapter(&wish, &adapter(number, None))
                    .await
                    .unwrap();
                assert_eq!(setting(tap.as_str(), names[1]), "8");
                assert_eq!(setting(tap.as_str(), names[2]), "1");
            }
        },
    );
}

#[test]
fn an_adapter_moves_to_another_network() {
    isolated("lifecycle::an_adapter_moves_to_another_network", || async {
        let manager = manager().await;
        let (from, to) = (
            network(7, NetworkKind::Internal),
            network(8, NetworkKind::Private),
        );
        manager.ensure_network(&from).await.unwrap();
        manager.ensure_network(&to).await.unwrap();
        let tap = manager
            .ensure_adapter(&from, &adapter(1, Some(OWN)))
            .await
            .unwrap();
        let hosted =
            || run("nft", &["list", "set", "bridge", "paddock", "hosted"]).contains(tap.as_str());
        assert!(hosted());
        let moved = adapter(1, Some(Ipv4Addr::new(10, 8, 0, 20)));
        assert_eq!(manager.ensure_adapter(&to, &moved).await.unwrap(), tap);
        let link = run("ip", &["-o", "link", "show", "dev", tap.as_str()]);
        let bridge = paddock_net::BridgeName::of(&to.id);
        assert!(
            link.contains(&format!("master {bridge}")) && link.contains(",UP"),
            "{link}"
        );
        assert!(!hosted());
        let found = manager.list().await.unwrap().taps;
        assert_eq!(found[0].bridge.as_ref(), Some(&bridge));
    });
}
