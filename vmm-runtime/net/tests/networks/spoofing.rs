//! What a guest cannot send.

use std::net::Ipv4Addr;

use paddock_net::NetworkKind;

use super::frames::{BROADCAST, Mac, Udp, arp, ethernet, icmpv6, udpv6};
use super::guest::Guest;
use super::namespace::isolated;
use super::wishes::{adapter, manager, network};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 20);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 21);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const A: Mac = [2, 0, 0, 0, 0, 1];
const B: Mac = [2, 0, 0, 0, 0, 2];
const OTHER: Mac = [2, 0, 0, 0, 0, 99];

fn udp(from: Mac, source: Ipv4Addr, source_port: u16, destination_port: u16) -> Udp {
    Udp {
        from,
        to: BROADCAST,
        source,
        destination: PEER,
        source_port,
        destination_port,
    }
}

/// Sends each frame from A, then a marker; returns which of them B heard.
fn heard<'a>(
    a: &mut Guest,
    b: &mut Guest,
    marker: &[u8],
    sent: &'a [(&'a str, Vec<u8>)],
) -> Vec<&'a str> {
    for (_, frame) in sent {
        a.send(frame);
    }
    a.send(marker);
    let frames = b.until("the marker", |frame| frame == marker);
    frames[..frames.len() - 1]
        .iter()
        .map(|frame| {
            sent.iter()
                .find(|(_, f)| f == frame)
                .map_or("a frame that nobody sent", |(name, _)| name)
        })
        .collect()
}

#[test]
fn an_assigned_adapter_sends_as_itself_alone() {
    isolated(
        "spoofing::an_assigned_adapter_sends_as_itself_alone",
        || async {
            let manager = manager().await;
            let network = network(7, NetworkKind::Private);
            manager.ensure_network(&network).await.unwrap();
            let mut a = Guest::open(
                &manager
                    .ensure_adapter(&network, &adapter(1, Some(OWN)))
                    .await
                    .unwrap(),
            );
            let mut b = Guest::open(
                &manager
                    .ensure_adapter(&network, &adapter(2, Some(PEER)))
                    .await
                    .unwrap(),
            );
            let marker = udp(A, OWN, 1000, 2000).frame(b"marker");

            let mut reply = arp(A, A, PEER, OWN);
            reply[21] = 2;
            // An ARP request whose header says other than Ethernet and IPv4.
            let odd = |at: usize, value: u8| {
                let mut frame = arp(A, A, OWN, PEER);
                frame[at] = value;
                frame
            };
            let tagged = [&[0, 5, 8, 0][..], &udp(A, OWN, 1, 2).packet(b"tagged")].concat();
            let forged = [
                ("MAC", udp(OTHER, OWN, 1, 2).frame(b"forged MAC")),
                ("the peer's MAC", udp(B, PEER, 1, 2).frame(b"forged peer")),
                (
                    "IPv4",
                    udp(A, Ipv4Addr::new(10, 7, 0, 22), 1, 2).frame(b"forged IPv4"),
                ),
                (
                    "the peer's IPv4",
                    udp(A, PEER, 1, 2).frame(b"forged peer IPv4"),
                ),
                ("no IPv4", udp(A, NONE, 1, 2).frame(b"no IPv4")),
                ("ARP frame MAC", arp(OTHER, A, OWN, PEER)),
                ("ARP sender MAC", arp(A, OTHER, OWN, PEER)),
                (
                    "ARP sender IPv4",
                    arp(A, A, Ipv4Addr::new(10, 7, 0, 22), PEER),
                ),
                ("ARP probe with another MAC", arp(A, OTHER, NONE, PEER)),
                ("ARP reply for the peer", reply),
                ("ARP of other hardware", odd(15, 6)),
                ("ARP of another protocol", odd(16, 9)),
                ("ARP of longer hardware addresses", odd(18, 8)),
                ("ARP of longer protocol addresses", odd(19, 16)),
                (
                    "ARP cut short",
                    ethernet(BROADCAST, A, 0x0806, &[0, 1, 8, 0, 6, 4])[..20].to_vec(),
                ),
                ("VLAN tag", ethernet(BROADCAST, A, 0x8100, &tagged)),
                (
                    "spanning tree",
                    ethernet([1, 0x80, 0xc2, 0, 0, 0], A, 38, &[0x42, 0x42, 3]),
                ),
                (
                    "unknown type",
                    ethernet(BROADCAST, A, 0x88b5, b"experiment"),
                ),
                ("IPv6", udpv6(A, 1000)),
                ("DHCP answer", udp(A, OWN, 67, 68).frame(b"DHCP answer")),
                ("DHCP request", udp(A, NONE, 68, 67).frame(b"DHCP request")),
            ];
            assert_eq!(heard(&mut a, &mut b, &marker, &forged), Vec::<&str>::new());

            let own = [
                ("ARP request", arp(A, A, OWN, PEER)),
                ("ARP probe", arp(A, A, NONE, OWN)),
                ("ARP announcement", arp(A, A, OWN, OWN)),
                ("IPv4", udp(A, OWN, 1, 2).frame(b"own IPv4")),
            ];
            let names: Vec<_> = own.iter().map(|(name, _)| *name).collect();
            assert_eq!(heard(&mut a, &mut b, &marker, &own), names);
        },
    );
}

#[test]
fn an_unassigned_adapter_sends_any_address_from_its_mac() {
    isolated(
        "spoofing::an_unassigned_adapter_sends_any_address_from_its_mac",
        || async {
            let manager = manager().await;
            let mut network = network(7, NetworkKind::Private);
            network.subnet = None;
            network.dhcp = None;
            manager.ensure_network(&network).await.unwrap();
            let mut a = Guest::open(
                &manager
                    .ensure_adapter(&network, &adapter(1, None))
                    .await
                    .unwrap(),
            );
            let mut b = Guest::open(
                &manager
                    .ensure_adapter(&network, &adapter(2, None))
                    .await
                    .unwrap(),
            );
            let marker = udp(A, OWN, 1000, 2000).frame(b"marker");
            let forged = [
                ("MAC", udp(OTHER, OWN, 1, 2).frame(b"forged MAC")),
                ("ARP sender MAC", arp(A, OTHER, OWN, PEER)),
                (
                    "ARP cut short",
                    ethernet(BROADCAST, A, 0x0806, &[0, 1, 8, 0, 6, 4])[..20].to_vec(),
                ),
                ("DHCP answer", udp(A, OWN, 67, 68).frame(b"DHCP answer")),
                ("router advertisement", icmpv6(A, 134)),
                ("redirect", icmpv6(A, 137)),
                ("DHCPv6 answer", udpv6(A, 547)),
                (
                    "spanning tree",
                    ethernet([1, 0x80, 0xc2, 0, 0, 0], A, 38, &[0x42, 0x42, 3]),
                ),
            ];
            assert_eq!(heard(&mut a, &mut b, &marker, &forged), Vec::<&str>::new());
            let own = [
                (
                    "IPv4",
                    udp(A, Ipv4Addr::new(198, 51, 100, 1), 1, 2).frame(b"any IPv4"),
                ),
                ("ARP", arp(A, A, Ipv4Addr::new(198, 51, 100, 1), PEER)),
                ("IPv6", udpv6(A, 1000)),
                ("neighbour solicitation", icmpv6(A, 135)),
                ("DHCP request", udp(A, NONE, 68, 67).frame(b"DHCP request")),
            ];
            let names: Vec<_> = own.iter().map(|(name, _)| *name).collect();
            assert_eq!(heard(&mut a, &mut b, &marker, &own), names);
        },
    );
}

#[test]
fn a_change_of_address_takes_effect_at_once() {
    isolated(
        "spoofing::a_change_of_address_takes_effect_at_once",
        || async {
            let manager = manager().await;
            let network = network(7, NetworkKind::Private);
            manager.ensure_network(&network).await.unwrap();
            let mut a = Guest::open(
                &manager
                    .ensure_adapter(&network, &adapter(1, Some(OWN)))
                    .await
                    .unwrap(),
            );
            let mut b = Guest::open(
                &manager
                    .ensure_adapter(&network, &adapter(2, Some(PEER)))
                    .await
                    .unwrap(),
            );
            let new = Ipv4Addr::new(10, 7, 0, 30);
            let from_new = udp(A, new, 1, 2).frame(b"new");
            let from_old = udp(A, OWN, 1, 2).frame(b"old");
            let probe = arp(A, A, NONE, OWN);
            let sent = [("new", from_new), ("old", from_old)];
            assert_eq!(heard(&mut a, &mut b, &probe, &sent), ["old"]);
            manager
                .ensure_adapter(&network, &adapter(1, Some(new)))
                .await
                .unwrap();
            assert_eq!(heard(&mut a, &mut b, &probe, &sent), ["new"]);
        },
    );
}
