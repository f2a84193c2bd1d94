//! Cut cables.

use paddock_lab::{Direction, Fault, Lab};

use crate::setup::{Stub, can_run, connect, count, fault, host, wait_for};

/// Whether `at` knows the link address of `of`: it heard an ARP packet from there.
fn has_heard(lab: &Lab, at: &str, of: &str) -> bool {
    let known = lab
        .exec_ok(at, &["ip", "-j", "neigh", "show", "to", of])
        .unwrap();
    known.contains("lladdr")
}

#[test]
fn links_are_cut_and_mended() {
    if !can_run() {
        return;
    }
    let stub = Stub::new();
    let lab = Lab::start(&stub.options()).unwrap();
    let a = host(&lab, "host-a").address.to_string();
    let api = lab
        .exec_ok(
            "api",
            &["ip", "-4", "-o", "address", "show", "dev", "mgmt0"],
        )
        .unwrap();
    let api = api
        .split_whitespace()
        .nth(3)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(connect(&lab, "host-a", &api, 6443), Some(0));

    let silence = |direction| {
        fault(
            &lab,
            Fault::Cut {
                target: "host-a".into(),
                direction,
            },
        );
        for (at, of) in [("host-a", &api), ("api", &a)] {
            // Forgotten, so that only what passes now counts.
            lab.exec("host-a", &["ip", "neigh", "flush", "all"])
                .unwrap();
            lab.exec("api", &["ip", "neigh", "flush", "all"]).unwrap();
            assert_eq!(
                connect(&lab, at, of, 6443),
                Some(124),
                "{direction:?} from {at}"
            );
            // What is cut is never heard; what is not is heard by the one that was asked for. (Old connections may be heard besides.)
            let host_heard = has_heard(&lab, "host-a", &api);
            let api_heard = has_heard(&lab, "api", &a);
            match direction {
                Direction::ToApi => assert!(!api_heard && (host_heard || at == "host-a")),
                Direction::FromApi => assert!(!host_heard && (api_heard || at == "api")),
                Direction::Both => assert!(!host_heard && !api_heard),
            }
        }
        assert_eq!(host(&lab, "host-a").cut, Some(direction));
        assert_eq!(connect(&lab, "host-b", &api, 6443), Some(0));
        fault(
            &lab,
            Fault::Heal {
                target: Some("host-a".into()),
            },
        );
        assert_eq!(host(&lab, "host-a").cut, None);
        // Waits out the failed neighbour entries of the silence.
        wait_for("the link", || {
            connect(&lab, "host-a", &api, 6443) == Some(0)
        });
    };
    silence(Direction::ToApi);
    silence(Direction::FromApi);
    silence(Direction::Both);

    // The LAN: nobody listens, so a refusal is the sign of life.
    for (name, address) in [("host-a", "192.168.77.1/24"), ("host-b", "192.168.77.2/24")] {
        lab.exec_ok(name, &["ip", "address", "add", address, "dev", "lan0"])
            .unwrap();
    }
    wait_for("the LAN", || {
        connect(&lab, "host-a", "192.168.77.2", 9) == Some(1)
    });
    assert_eq!(connect(&lab, "lab", "192.168.77.1", 9), Some(1));
    fault(
        &lab,
        Fault::CutLan {
            host: "host-a".into(),
        },
    );
    assert!(host(&lab, "host-a").lan_cut);
    assert_eq!(connect(&lab, "host-a", "192.168.77.2", 9), Some(124));
    assert_eq!(connect(&lab, "lab", "192.168.77.1", 9), Some(124));
    assert_eq!(connect(&lab, "lab", "192.168.77.2", 9), Some(1));
    // A cut outlives a reboot.
    fault(
        &lab,
        Fault::KillHost {
            host: "host-a".into(),
            stay_down: false,
        },
    );
    wait_for("host-a", || count(&lab, "host-a").is_some());
    assert!(host(&lab, "host-a").lan_cut);
    fault(&lab, Fault::Heal { target: None });
    assert!(!host(&lab, "host-a").lan_cut);
    assert!(
        lab.fault(Fault::CutLan {
            host: "nobody".into()
        })
        .is_err()
    );
    lab.down().unwrap();
}
