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
