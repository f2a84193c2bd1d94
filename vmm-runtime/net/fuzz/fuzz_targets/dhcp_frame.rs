//! A guest's bytes, as a frame and as a DHCP message: nothing panics, and
//! every answer is well formed and about the assigned address alone.

#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use paddock_net::dhcp::core::{Answer, Assignment, respond};
use paddock_net::dhcp::frame::{Addresses, build, parse};
use paddock_net::dhcp::message::{MAXIMUM_REPLY_BYTES, Request};

fuzz_target!(|bytes: &[u8]| {
    if let Some(datagram) = parse(bytes) {
        assert!(datagram.payload.len() < bytes.len());
        answer(datagram.payload);
    }
    answer(bytes);
});

fn answer(payload: &[u8]) {
    let Ok(request) = Request::parse(payload) else {
        return;
    };
    let assignment = Assignment {
        mac: request.mac,
        ip: Ipv4Addr::new(10, 1, 2, 20),
        subnet: ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 1, 2, 0), 24),
        server: Ipv4Addr::new(10, 1, 2, 1),
        lease_seconds: 3600,
        gateway: Some(Ipv4Addr::new(10, 1, 2, 254)),
        dns: vec![Ipv4Addr::new(192, 0, 2, 53); 8],
        hostname: "vm-1.example".parse().ok(),
        mtu: Some(9000),
    };
    let Answer::Reply(reply) = respond(&assignment, &request) else {
        return;
    };
    assert!((300..=MAXIMUM_REPLY_BYTES).contains(&reply.payload.len()));
    assert_eq!(reply.payload[4..8], request.xid.to_be_bytes());
    let given = &reply.payload[16..20];
    assert!(given == [0; 4] || given == assignment.ip.octets());
    let addresses = Addresses {
        source_mac: request.mac,
        client_mac: request.mac,
        source: assignment.server,
        destination: reply.destination,
    };
    let frame = build(&addresses, &reply.payload).expect("a reply fits a frame");
    assert_eq!(frame.len(), 42 + reply.payload.len());
}
