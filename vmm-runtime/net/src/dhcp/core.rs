//! What a server answers (RFC 2131), as a pure function.
//!
//! Each adapter has one address, assigned elsewhere, so there is no lease to
//! remember: the answer depends on the assignment and the request alone.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::message::{MessageType, Reply, Request};
use crate::names::{Hostname, MacAddress};

/// What one adapter is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The adapter that asks.
    pub mac: MacAddress,
    /// Its address.
    pub ip: Ipv4Addr,
    /// The subnet, for mask and broadcast address.
    pub subnet: Ipv4Net,
    /// The server's identifier, and source of its packets.
    pub server: Ipv4Addr,
    /// Lease time in seconds.
    pub lease_seconds: u32,
    /// The router, if any.
    pub gateway: Option<Ipv4Addr>,
    /// DNS servers, perhaps none.
    pub dns: Vec<Ipv4Addr>,
    /// Host name, if any.
    pub hostname: Option<Hostname>,
    /// MTU in bytes, told when it is not Ethernet's 1500.
    pub mtu: Option<u16>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Reply(Reply),
    /// The guest gave its address back; nothing is sent.
    Released,
    /// The guest found its address in use by another; nothing is sent.
    Declined,
    /// Not for this server, or not from this adapter.
    Silence,
}

/// Answers a request.
///
/// - DISCOVER: an OFFER of the assigned address, whatever was asked for.
/// - REQUEST for the assigned address: an ACK; for another one: a NAK; to
///   another server: silence.
/// - INFORM from the assigned address: an ACK without a lease.
/// - From another MAC address, through a relay, or anything else: silence.
pub fn respond(assignment: &Assignment, request: &Request) -> Answer {
    // A relay would stand between the adapter and its tap: there is none.
    if request.mac != assignment.mac || !request.relay.is_unspecified() {
        return Answer::Silence;
    }
    if request
        .server
        .is_some_and(|server| server != assignment.server)
    {
        return Answer::Silence;
    }
    match request.kind {
        MessageType::Discover => Answer::Reply(Reply::offer(assignment, request)),
        MessageType::Request => match claimed_address(request) {
            None => Answer::Silence,
            Some(ip) if ip == assignment.ip => Answer::Reply(Reply::ack(assignment, request)),
            Some(_) => Answer::Reply(Reply::nak(assignment, request)),
        },
        MessageType::Inform if request.client_ip == assignment.ip => {
            Answer::Reply(Reply::inform_ack(assignment, request))
        }
        MessageType::Release if request.client_ip == assignment.ip => Answer::Released,
        MessageType::Decline if request.requested_ip == Some(assignment.ip) => Answer::Declined,
        _ => Answer::Silence,
    }
}

/// The address that a REQUEST is about (RFC 2131, 4.3.2): option 50 when
/// selecting an offer or after a reboot, `ciaddr` when renewing or rebinding.
fn claimed_address(request: &Request) -> Option<Ipv4Addr> {
    request
        .requested_ip
        .or(Some(request.client_ip).filter(|ip| !ip.is_unspecified()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 20);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 21);
    const SERVER: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 1);

    fn assignment() -> Assignment {
        Assignment {
            mac: "02:00:00:00:00:01".parse().unwrap(),
            ip: OWN,
            subnet: "10.1.2.0/24".parse().unwrap(),
            server: SERVER,
            lease_seconds: 3600,
            gateway: None,
            dns: Vec::new(),
            hostname: None,
            mtu: None,
        }
    }

    fn request(kind: MessageType) -> Request {
        Request {
            kind,
            xid: 7,
            broadcast: false,
            client_ip: Ipv4Addr::UNSPECIFIED,
            relay: Ipv4Addr::UNSPECIFIED,
            mac: assignment().mac,
            requested_ip: None,
            server: None,
            client_id: None,
        }
    }

    /// Type and destination of the reply.
    fn reply(request: &Request) -> Option<(MessageType, Ipv4Addr)> {
        match respond(&assignment(), request) {
            Answer::Reply(reply) => Some((reply.kind, reply.destination)),
            Answer::Silence => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_discover_is_offered_the_assigned_address() {
        let mut ask = request(MessageType::Discover);
        assert_eq!(reply(&ask), Some((MessageType::Offer, OWN)));
        ask.requested_ip = Some(OTHER);
        assert_eq!(reply(&ask), Some((MessageType::Offer, OWN)));
        ask.broadcast = true;
        assert_eq!(reply(&ask), Some((MessageType::Offer, Ipv4Addr::BROADCAST)));
    }

    #[test]
    fn a_request_is_confirmed_or_refused_in_each_state() {
        let base = request(MessageType::Request);
        // Selecting: option 54 and option 50.
        let selecting = Request {
            server: Some(SERVER),
            requested_ip: Some(OWN),
            ..base.clone()
        };
        assert_eq!(reply(&selecting), Some((MessageType::Ack, OWN)));
        let other_server = Request {
            server: Some(OTHER),
            ..selecting.clone()
        };
        assert_eq!(reply(&other_server), None);
        let wrong = Request {
            requested_ip: Some(OTHER),
            ..selecting
        };
        assert_eq!(reply(&wrong), Some((MessageType::Nak, Ipv4Addr::BROADCAST)));
        // After a reboot: option 50 alone.
        let rebooted = Request {
            requested_ip: Some(OWN),
            ..base.clone()
        };
        assert_eq!(reply(&rebooted), Some((MessageType::Ack, OWN)));
        let wrong = Request {
            requested_ip: Some(OTHER),
            ..base.clone()
        };
        assert_eq!(reply(&wrong), Some((MessageType::Nak, Ipv4Addr::BROADCAST)));
        // Renewing or rebinding: ciaddr alone.
        let renewing = Request {
            client_ip: OWN,
            broadcast: true,
            ..base.clone()
        };
        assert_eq!(reply(&renewing), Some((MessageType::Ack, OWN)));
        let wrong = Request {
            client_ip: OTHER,
            ..base.clone()
        };
        assert_eq!(reply(&wrong), Some((MessageType::Nak, Ipv4Addr::BROADCAST)));
        // About no address at all.
        assert_eq!(reply(&base), None);
    }

    #[test]
    fn others_get_no_answer() {
        for kind in [
            MessageType::Discover,
            MessageType::Request,
            MessageType::Inform,
            MessageType::Release,
        ] {
            let fine = Request {
                client_ip: OWN,
                requested_ip: Some(OWN),
                ..request(kind)
            };
            assert_ne!(respond(&assignment(), &fine), Answer::Silence, "{kind:?}");
            let foreign = Request {
                mac: "02:00:00:00:00:02".parse().unwrap(),
                ..fine.clone()
            };
            assert_eq!(
                respond(&assignment(), &foreign),
                Answer::Silence,
                "{kind:?}"
            );
            let relayed = Request {
                relay: OTHER,
                ..fine.clone()
            };
            assert_eq!(
                respond(&assignment(), &relayed),
                Answer::Silence,
                "{kind:?}"
            );
            let elsewhere = Request {
                server: Some(OTHER),
                ..fine
            };
            assert_eq!(
                respond(&assignment(), &elsewhere),
                Answer::Silence,
                "{kind:?}"
            );
        }
        for kind in [MessageType::Offer, MessageType::Ack, MessageType::Nak] {
            let odd = Request {
                client_ip: OWN,
                requested_ip: Some(OWN),
                ..request(kind)
            };
            assert_eq!(respond(&assignment(), &odd), Answer::Silence, "{kind:?}");
        }
    }

    #[test]
    fn inform_release_and_decline_are_about_the_own_address_alone() {
        let with = |kind, client_ip, requested_ip| {
            respond(
                &assignment(),
                &Request {
                    client_ip,
                    requested_ip,
                    ..request(kind)
                },
            )
        };
        let none = Ipv4Addr::UNSPECIFIED;
        let Answer::Reply(ack) = with(MessageType::Inform, OWN, None) else {
            panic!()
        };
        assert_eq!((ack.kind, ack.destination), (MessageType::Ack, OWN));
        assert_eq!(with(MessageType::Inform, OTHER, None), Answer::Silence);
        assert_eq!(with(MessageType::Release, OWN, None), Answer::Released);
        assert_eq!(with(MessageType::Release, OTHER, None), Answer::Silence);
        assert_eq!(
            with(MessageType::Decline, none, Some(OWN)),
            Answer::Declined
        );
        assert_eq!(
            with(MessageType::Decline, none, Some(OTHER)),
            Answer::Silence
        );
        assert_eq!(with(MessageType::Decline, none, None), Answer::Silence);
    }
}
