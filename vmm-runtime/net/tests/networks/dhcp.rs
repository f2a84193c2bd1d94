//! The DHCP server, asked through the tap; messages are written and read by
//! an independent library.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use paddock_net::{LeaseEvent, LeaseEventKind, NetworkKind, NetworkManager, Options};
use tokio::sync::mpsc;

use super::frames::{BROADCAST, Mac, Udp, arp, udp_payload};
use super::guest::{Guest, Wire};
use super::namespace::{cable, isolated, run, skipped};
use super::wishes::{adapter, external, manager, network};

/// A client's message in a frame from its MAC address.
fn request(mac: Mac, xid: u32, kind: MessageType, options: &[DhcpOption]) -> Vec<u8> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(xid, zero, zero, zero, zero, &mac);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    client(mac).frame(&message.to_vec().unwrap())
}

fn client(mac: Mac) -> Udp {
    Udp {
        from: mac,
        to: BROADCAST,
        source: Ipv4Addr::UNSPECIFIED,
        destination: Ipv4Addr::BROADCAST,
        source_port: 68,
        destination_port: 67,
    }
}

fn decode(frame: &[u8]) -> Option<Message> {
    Message::decode(&mut Decoder::new(udp_payload(frame, 68)?)).ok()
}

/// The next DHCP answer.
fn answer(guest: &mut Guest) -> Message {
    let frames = guest.until("a DHCP answer", |frame| decode(frame).is_some());
    decode(frames.last().unwrap()).unwrap()
}

async fn handshake(kind: NetworkKind, server: Ipv4Addr) {
    let (sender, mut events) = mpsc::channel(8);
    let options = Options {
        lease_events: Some(sender),
        ..Options::default()
    };
    let manager = NetworkManager::new(options).await.unwrap();
    let network = network(7, kind);
    manager.ensure_network(&network).await.unwrap();
    let ip = Ipv4Addr::new(10, 7, 0, 20);
    let spec = adapter(1, Some(ip));
    let mac = spec.mac.bytes();
    let tap = manager.ensure_adapter(&network, &spec).await.unwrap();
    let mut guest = Guest::open(&tap);

    // A foreign MAC address is not answered: the first answer is the second
    // request's.
    guest.send(&request([2, 0, 0, 0, 0, 99], 1, MessageType::Discover, &[]));
    guest.send(&request(mac, 2, MessageType::Discover, &[]));
    let offer = answer(&mut guest);
    assert_eq!(offer.xid(), 2);
    assert_eq!(offer.yiaddr(), ip);
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    assert_eq!(
        offer.opts().get(OptionCode::ServerIdentifier),
        Some(&DhcpOption::ServerIdentifier(server))
    );

    let wanted = [
        DhcpOption::RequestedIpAddress(ip),
        DhcpOption::ServerIdentifier(server),
    ];
    guest.send(&request(mac, 3, MessageType::Request, &wanted));
    let ack = answer(&mut guest);
    assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack));
    assert_eq!((ack.xid(), ack.yiaddr()), (3, ip));
    let told = |code| ack.opts().get(code).cloned();
    let address = |host| Ipv4Addr::new(10, 7, 0, host);
    assert_eq!(
        told(OptionCode::AddressLeaseTime),
        Some(DhcpOption::AddressLeaseTime(3600))
    );
    assert_eq!(
        told(OptionCode::Router),
        Some(DhcpOption::Router(vec![address(254)]))
    );
    assert_eq!(
        told(OptionCode::BroadcastAddr),
        Some(DhcpOption::BroadcastAddr(address(255)))
    );
    assert_eq!(
        told(OptionCode::Hostname),
        Some(DhcpOption::Hostname("vm-1".to_owned()))
    );
    let event = tokio::time::timeout(std::time::Duration::from_secs(20), events.recv()).await;
    let expected = LeaseEvent {
        network: network.id.clone(),
        tap,
        mac: spec.mac,
        ip,
        kind: LeaseEventKind::Leased,
    };
    assert_eq!(event.unwrap(), Some(expected));

    // Another address is refused, another server's offer left alone.
    let other = [DhcpOption::RequestedIpAddress(address(21))];
    guest.send(&request(mac, 4, MessageType::Request, &other));
    let nak = answer(&mut guest);
    assert_eq!(
        (nak.xid(), nak.opts().msg_type()),
        (4, Some(MessageType::Nak))
    );
    let elsewhere = [
        DhcpOption::RequestedIpAddress(ip),
        DhcpOption::ServerIdentifier(address(9)),
    ];
    guest.send(&request(mac, 5, MessageType::Request, &elsewhere));
    guest.send(&request(mac, 6, MessageType::Discover, &[]));
    assert_eq!(answer(&mut guest).xid(), 6);
}

#[test]
fn an_internal_network_serves_from_the_hosts_address() {
    isolated(
        "dhcp::an_internal_network_serves_from_the_hosts_address",
        || async {
            let mut kind = network(7, NetworkKind::Internal);
            kind.host_address = Some(Ipv4Addr::new(10, 7, 0, 1));
            handshake(kind.kind, Ipv4Addr::new(10, 7, 0, 1)).await;
            assert!(run("ip", &["-4", "-o", "address"]).contains("10.7.0.1/24"));
        },
    );
}

#[test]
fn a_private_network_serves_without_an_address_of_the_host() {
    isolated(
        "dhcp::a_private_network_serves_without_an_address_of_the_host",
        || async {
            handshake(NetworkKind::Private, Ipv4Addr::new(10, 7, 0, 1)).await;
            assert!(!run("ip", &["-4", "-o", "address"]).contains("10.7."));
        },
    );
}

#[test]
fn an_external_network_serves_its_own_guests_alone() {
    isolated(
        "dhcp::an_external_network_serves_its_own_guests_alone",
        || async {
            cable(1500);
            handshake(external("lan0"), Ipv4Addr::new(10, 7, 0, 1)).await;

            let manager = manager().await;
            let network = network(7, external("lan0"));
            let spec = adapter(1, Some(Ipv4Addr::new(10, 7, 0, 20)));
            manager.ensure_network(&network).await.unwrap();
            let tap = manager.ensure_adapter(&network, &spec).await.unwrap();
            let mut guest = Guest::open(&tap);
            let mut far = Wire::open("far0");
            let mac = spec.mac.bytes();
            // The guest's request stays off the LAN; the marker behind it shows
            // that what is let through arrives.
            guest.send(&request(mac, 1, MessageType::Discover, &[]));
            assert_eq!(answer(&mut guest).xid(), 1);
            let marker = arp(
                mac,
                mac,
                Ipv4Addr::new(10, 7, 0, 20),
                Ipv4Addr::new(10, 7, 0, 254),
            );
            guest.send(&marker);
            let heard = far.until("the marker", |frame| frame == marker);
            assert!(
                heard.iter().all(|frame| udp_payload(frame, 67).is_none()),
                "{heard:02x?}"
            );
            // A request from the LAN, even with the adapter's MAC address, reaches
            // the guest (it is a broadcast) and is answered by nobody.
            far.send(&request(mac, 2, MessageType::Discover, &[]));
            guest.until("the LAN's request", |frame| {
                udp_payload(frame, 67).is_some()
            });
            guest.send(&request(mac, 3, MessageType::Discover, &[]));
            assert_eq!(answer(&mut guest).xid(), 3);
            guest.send(&marker);
            let heard = far.until("the marker", |frame| frame == marker);
            assert!(
                heard.iter().all(|frame| udp_payload(frame, 68).is_none()),
                "{heard:02x?}"
            );
        },
    );
}

#[test]
fn an_adapter_without_an_address_is_not_served() {
    isolated(
        "dhcp::an_adapter_without_an_address_is_not_served",
        || async {
            let manager = manager().await;
            let network = network(7, NetworkKind::Private);
            manager.ensure_network(&network).await.unwrap();
            let spec = adapter(1, None);
            let mac = spec.mac.bytes();
            let mut guest = Guest::open(&manager.ensure_adapter(&network, &spec).await.unwrap());
            let other = adapter(2, None);
            let mut peer = Guest::open(&manager.ensure_adapter(&network, &other).await.unwrap());
            let discover = request(mac, 1, MessageType::Discover, &[]);
            guest.send(&discover);
            // Its request goes to the network instead.
            peer.until("the request", |frame| frame == discover);
            peer.send(&arp(
                other.mac.bytes(),
                other.mac.bytes(),
                Ipv4Addr::new(1, 1, 1, 1),
                Ipv4Addr::new(2, 2, 2, 2),
            ));
            let heard = guest.until("the marker", |frame| frame[12..14] == [8, 6]);
            assert_eq!(heard.len(), 1, "{heard:02x?}");
        },
    );
}

#[test]
fn busybox_takes_the_address() {
    isolated("dhcp::busybox_takes_the_address", || async {
        if std::process::Command::new("busybox")
            .arg("udhcpc")
            .arg("--help")
            .output()
            .is_err()
        {
            skipped("no program busybox");
            return;
        }
        let manager = manager().await;
        let network = network(7, NetworkKind::Private);
        manager.ensure_network(&network).await.unwrap();
        let spec = adapter(1, Some(Ipv4Addr::new(10, 7, 0, 20)));
        let tap = manager.ensure_adapter(&network, &spec).await.unwrap();
        // The guest's side of the cable: a tap of its own with the adapter's
        // MAC address, its frames carried between both by hand.
        let inner = Guest::open_interface("guest0");
        run(
            "ip",
            &[
                "link",
                "set",
                "guest0",
                "address",
                &spec.mac.to_string(),
                "up",
            ],
        );
        carry(Guest::open(&tap), inner);

        let script =
            std::env::temp_dir().join(format!("paddock-net-udhcpc-{}", std::process::id()));
        std::fs::write(
            &script,
            "#!/bin/sh\necho \"$1 $ip $mask $router $dns $hostname $lease $serverid\"\n",
        )
        .unwrap();
        run("chmod", &["+x", script.to_str().unwrap()]);
        let path = script.to_str().unwrap().to_owned();
        let said = tokio::task::spawn_blocking(move || {
            run(
                "busybox",
                &[
                    "udhcpc", "-i", "guest0", "-f", "-n", "-q", "-t", "10", "-T", "1", "-s", &path,
                ],
            )
        })
        .await
        .unwrap();
        std::fs::remove_file(&script).unwrap();
        assert!(
            said.contains("bound 10.7.0.20 24 10.7.0.254 192.0.2.53 vm-1 3600 10.7.0.1"),
            "{said}"
        );
    });
}

fn carry(a: Guest, b: Guest) {
    for (from, to) in [(&a, &b), (&b, &a)] {
        let mut from = from.as_file().try_clone().unwrap();
        let mut to = to.as_file().try_clone().unwrap();
        std::thread::spawn(move || {
            use std::io::{Read, Write};
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer) {
                    Ok(length) => drop(to.write(&buffer[..length])),
                    Err(_) => {
                        let mut fds = [rustix::event::PollFd::new(
                            &from,
                            rustix::event::PollFlags::IN,
                        )];
                        rustix::event::poll(&mut fds, None).unwrap();
                    }
                }
            }
        });
    }
}
