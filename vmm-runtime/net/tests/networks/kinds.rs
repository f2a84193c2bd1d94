//! Who reaches whom on each kind of network.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use paddock_net::{NetworkError, NetworkKind, UplinkError};

use super::frames::{BROADCAST, Udp, arp, udp_payload};
use super::guest::{Guest, Wire};
use super::namespace::{cable, isolated, run};
use super::wishes::{adapter, external, manager, network};

/// What the host sends from on a bridge.
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 88];
/// An address of the host that is on no network of ours.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

fn bridge_mac(bridge: &str) -> [u8; 6] {
    let text = run("ip", &["-o", "link", "show", "dev", bridge]);
    let mac = text
        .split("link/ether ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    let bytes: Vec<u8> = mac
        .split(':')
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

#[test]
fn the_host_hears_internal_guests_alone() {
    isolated("kinds::the_host_hears_internal_guests_alone", || async {
        run("ip", &["address", "add", "192.0.2.1/32", "dev", "lo"]);
        cable(1500);
        let socket = UdpSocket::bind((HOST, 5000)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let manager = manager().await;
        let kinds = [
            (1, NetworkKind::Private),
            (2, external("lan0")),
            (3, NetworkKind::Internal),
        ];
        let mut guests = Vec::new();
        for (number, kind) in kinds {
            let wish = network(number, kind);
            let bridge = manager.ensure_network(&wish).await.unwrap();
            let ip = Ipv4Addr::new(10, number, 0, 20);
            let spec = adapter(number, Some(ip));
            let tap = manager.ensure_adapter(&wish, &spec).await.unwrap();
            let mut guest = Guest::open(&tap);
            let to_host = Udp {
                from: spec.mac.bytes(),
                to: bridge_mac(bridge.as_str()),
                source: ip,
                destination: HOST,
                source_port: 1,
                destination_port: 5000,
            };
            // The LAN cannot talk to the host through the bridge either.
            if number == 2 {
                let mut far = Wire::open("far0");
                let lan = Udp {
                    from: [2, 0, 0, 0, 0, 77],
                    source: Ipv4Addr::new(10, 2, 0, 77),
                    ..to_host
                };
                far.send(&lan.frame(b"LAN"));
                let marker = Udp {
                    to: BROADCAST,
                    ..lan
                }
                .frame(b"marker");
                far.send(&marker);
                guest.until("the LAN's marker", |frame| frame == marker);
                guest.send(
                    &Udp {
                        from: spec.mac.bytes(),
                        source: ip,
                        ..lan
                    }
                    .frame(b"External"),
                );
            } else {
                // Not even by way of a group address that the bridge hands to
                // the host unseen, under a forged name.
                let aside = Udp {
                    from: [2, 0, 0, 0, 0, 99],
                    to: [1, 0x80, 0xc2, 0, 0, 2],
                    source: Ipv4Addr::new(10, number, 0, 99),
                    ..to_host
                };
                guest.send(&aside.frame(b"aside"));
                guest.send(&to_host.frame(format!("guest {number}").as_bytes()));
            }
            guests.push((guest, bridge, spec, ip));
        }
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(std::str::from_utf8(&buffer[..length]), Ok("guest 3"));

        // The Private and the External bridge answer no ARP and say nothing;
        // neighbours are heard.
        for (number, kind) in [(1, NetworkKind::Private), (2, external("lan0"))] {
            let (guest, bridge, spec, ip) = &mut guests[usize::from(number) - 1];
            let mac = spec.mac.bytes();
            guest.send(&arp(mac, mac, *ip, HOST));
            let mut far = (number == 2).then(|| Wire::open("far0"));
            let mut host = Wire::open(bridge.as_str());
            host.send(&arp(HOST_MAC, HOST_MAC, HOST, *ip));
            let neighbour = adapter(50 + number, Some(Ipv4Addr::new(10, number, 0, 50)));
            let tap = manager
                .ensure_adapter(&network(number, kind), &neighbour)
                .await
                .unwrap();
            let mut other = Guest::open(&tap);
            let marker = arp(
                neighbour.mac.bytes(),
                neighbour.mac.bytes(),
                neighbour.ip.unwrap(),
                *ip,
            );
            other.send(&marker);
            let heard = guest.until("the neighbour", |frame| frame == marker);
            assert_eq!(heard.len(), 1, "{heard:02x?}");
            if let Some(far) = &mut far {
                let heard = far.until("the neighbour", |frame| frame == marker);
                assert!(
                    heard.iter().all(|frame| frame[6..12] != HOST_MAC),
                    "{heard:02x?}"
                );
            }
            let addresses = run("ip", &["-o", "address", "show", "dev", bridge.as_str()]);
            assert_eq!(addresses, "");
        }

        // The host reaches an Internal guest: it asks for the guest's MAC.
        let (guest, bridge, spec, ip) = &mut guests[2];
        let talk = UdpSocket::bind("10.3.0.1:0").unwrap();
        talk.send_to(b"hello", (*ip, 6000)).unwrap();
        let asks = |frame: &[u8]| {
            frame[12..14] == [8, 6] && frame[21] == 1 && frame[38..42] == ip.octets()
        };
        guest.until("the host's ARP request", asks);
        let host_mac = bridge_mac(bridge.as_str());
        let mut reply = arp(
            spec.mac.bytes(),
            spec.mac.bytes(),
            *ip,
            Ipv4Addr::new(10, 3, 0, 1),
        );
        reply[..6].copy_from_slice(&host_mac);
        reply[21] = 2;
        reply[32..38].copy_from_slice(&host_mac);
        guest.send(&reply);
        let heard = guest.until("the host's datagram", |frame| {
            udp_payload(frame, 6000).is_some()
        });
        assert_eq!(
            udp_payload(heard.last().unwrap(), 6000),
            Some(&b"hello"[..])
        );
        // It does not answer ARP for its other addresses there.
        let mac = spec.mac.bytes();
        guest.send(&arp(mac, mac, *ip, HOST));
        guest.send(&arp(mac, mac, *ip, Ipv4Addr::new(10, 3, 0, 1)));
        let heard = guest.until("the host's ARP reply", |frame| {
            frame[12..14] == [8, 6] && frame[21] == 2
        });
        assert_eq!(heard.last().unwrap()[28..32], [10, 3, 0, 1]);
    });
}

#[test]
fn an_external_guest_reaches_the_far_side() {
    isolated("kinds::an_external_guest_reaches_the_far_side", || async {
        cable(9000);
        let manager = manager().await;
        let wish = network(2, external("lan0"));
        let bridge = manager.ensure_network(&wish).await.unwrap();
        let ip = Ipv4Addr::new(10, 2, 0, 20);
        let spec = adapter(1, Some(ip));
        let tap = manager.ensure_adapter(&wish, &spec).await.unwrap();
        let mut guest = Guest::open(&tap);
        let mut far = Wire::open("far0");
        let mac = spec.mac.bytes();
        let hello = arp(mac, mac, ip, Ipv4Addr::new(10, 2, 0, 99));
        guest.send(&hello);
        far.until("the guest's frame", |frame| frame == hello);
        let mut answer = arp(
            [2, 0, 0, 0, 0, 99],
            [2, 0, 0, 0, 0, 99],
            Ipv4Addr::new(10, 2, 0, 99),
            ip,
        );
        answer[..6].copy_from_slice(&mac);
        far.send(&answer);
        guest.until("the far side's frame", |frame| frame == answer);
        // The uplink's MTU is the guests', too.
        assert!(run("ip", &["link", "show", "dev", tap.as_str()]).contains("mtu 9000"));
        // Another host's forged frame is that host's business; ours drops its
        // own guests' forgeries before the LAN hears them.
        guest.send(&arp(mac, mac, Ipv4Addr::new(10, 2, 0, 99), ip));
        guest.send(&hello);
        assert_eq!(far.until("the marker", |frame| frame == hello).len(), 1);
        assert!(run("ip", &["link", "show", "dev", "lan0"]).contains(&format!("master {bridge}")));
    });
}

#[test]
fn an_uplink_that_the_host_needs_is_refused() {
    isolated(
        "kinds::an_uplink_that_the_host_needs_is_refused",
        || async {
            let manager = manager().await;
            let ensure = async |uplink: &str| match manager
                .ensure_network(&network(2, external(uplink)))
                .await
            {
                Err(NetworkError::Uplink { network, source }) if network == "default/net-2" => {
                    source
                }
                other => panic!("{other:?}"),
            };
            assert!(
                matches!(ensure("lan0").await, UplinkError::Missing(name) if name.as_str() == "lan0")
            );
            assert!(
                matches!(ensure("lo").await, UplinkError::NotEthernet(name) if name.as_str() == "lo")
            );
            cable(1500);
            run("ip", &["address", "add", "192.0.2.7/24", "dev", "lan0"]);
            let error = ensure("lan0").await;
            assert!(
                matches!(&error, UplinkError::HasAddress { address, .. } if *address == Ipv4Addr::new(192, 0, 2, 7))
            );
            let said = error.to_string();
            assert!(
                said.contains("lan0 carries the host's address 192.0.2.7"),
                "{said}"
            );
            run("ip", &["address", "flush", "dev", "lan0"]);
            run("ip", &["route", "add", "default", "dev", "lan0"]);
            assert!(matches!(
                ensure("lan0").await,
                UplinkError::HasDefaultRoute(_)
            ));
            run("ip", &["route", "del", "default"]);
            // No refusal left a trace.
            assert!(manager.list().await.unwrap().bridges.is_empty());

            manager
                .ensure_network(&network(3, external("lan0")))
                .await
                .unwrap();
            let error = ensure("lan0").await.to_string();
            assert!(
                error.contains("uplink lan0 already belongs to pdk"),
                "{error}"
            );
            // The one that has it keeps it.
            manager
                .ensure_network(&network(3, external("lan0")))
                .await
                .unwrap();
        },
    );
}

#[test]
fn a_network_can_change_its_kind() {
    isolated("kinds::a_network_can_change_its_kind", || async {
        cable(1500);
        let manager = manager().await;
        let bridge = manager
            .ensure_network(&network(2, NetworkKind::Internal))
            .await
            .unwrap();
        let addresses = || run("ip", &["-o", "address", "show", "dev", bridge.as_str()]);
        let uplink = || run("ip", &["link", "show", "dev", "lan0"]);
        assert!(addresses().contains("inet 10.2.0.1/24"));
        manager
            .ensure_network(&network(2, external("lan0")))
            .await
            .unwrap();
        assert_eq!(addresses(), "");
        assert!(uplink().contains("master"));
        let mut moved = network(2, NetworkKind::Internal);
        moved.host_address = Some(Ipv4Addr::new(10, 2, 0, 9));
        manager.ensure_network(&moved).await.unwrap();
        assert!(addresses().contains("inet 10.2.0.9/24") && !addresses().contains("10.2.0.1/"));
        assert!(!uplink().contains("master"));
        assert!(!run("nft", &["list", "table", "bridge", "paddock"]).contains("lan0"));
    });
}
