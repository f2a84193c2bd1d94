//! What the caller is told of leases.

use std::net::Ipv4Addr;

use crate::names::{MacAddress, NetworkId, TapName};

/// What happened to an adapter's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEvent {
    /// The network.
    pub network: NetworkId,
    /// The adapter's tap.
    pub tap: TapName,
    /// The adapter's MAC address.
    pub mac: MacAddress,
    /// The address it was assigned.
    pub ip: Ipv4Addr,
    /// What the guest did.
    pub kind: LeaseEventKind,
}

/// What a guest did with its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEventKind {
    /// Took or renewed it (the server sent an ACK).
    Leased,
    /// Gave it back.
    Released,
    /// Found that somebody else uses it.
    Declined,
}
