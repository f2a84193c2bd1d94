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

/// Interfaces with their numbers and flags, and the packet filter with its
/// handles: any change shows.
fn everything() -> String {
    let filter = run(
        "sh",
        &["-c", "nft -a list table bridge paddock 2>&1 || true"],
    );
    format!(
        "{}{}{filter}",
        run("ip", &["-o", "link"]),
        run("ip", &["-o", "address"])
    )
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
        let bare = || run("ip", &["-br", "link"]);
        let before = bare();
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
        assert_eq!(bare(), before);
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
