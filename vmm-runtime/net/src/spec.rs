//! What the caller wants: networks and adapters, and their check.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::address_plan::{AddressPlan, AddressWishes, InvalidPlan, RESERVED_COUNT};
use crate::names::{
    AdapterName, BridgeName, Hostname, InterfaceName, MacAddress, NetworkId, OwnerId, TapName,
};

/// Shortest lease, in seconds. A shorter one would have guests renew more
/// often than a wire loses packets.
pub const MINIMUM_LEASE_SECONDS: u32 = 60;
/// Longest lease, in seconds: ten years. 0xffffffff means "for ever" in DHCP.
pub const MAXIMUM_LEASE_SECONDS: u32 = 315_360_000;
/// Most DNS servers of a network.
pub const MAXIMUM_DNS: usize = 8;

/// A virtual network as this host should have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// Its uid: the bridge's name follows from it.
    pub id: NetworkId,
    /// Its name, for messages alone.
    pub name: String,
    /// What the bridge is connected to.
    pub kind: NetworkKind,
    /// Its addresses; required for Internal and for DHCP.
    pub subnet: Option<Ipv4Net>,
    /// The host's own address on an Internal network; default: the first
    /// usable one. Ignored on the other kinds, where the host has none.
    pub host_address: Option<Ipv4Addr>,
    /// DHCP for the adapters that have an address; `None`: no server.
    pub dhcp: Option<DhcpSpec>,
}

/// What a network is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkKind {
    /// The LAN behind an interface of the host, which must carry no address
    /// of the host and no default route.
    External {
        /// The interface.
        uplink: InterfaceName,
    },
    /// The host and its guests.
    Internal,
    /// Guests alone: the host has no address there and hears nothing.
    Private,
}

/// How addresses are handed out. Each adapter gets the one it was assigned;
/// nobody else gets an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DhcpSpec {
    /// First address of the range; default: the first usable one.
    pub range_start: Option<Ipv4Addr>,
    /// Last address of the range; default: the last usable one.
    pub range_end: Option<Ipv4Addr>,
    /// How many addresses at the start of the range are held back.
    pub reserved_count: u32,
    /// Lease time in seconds, [`MINIMUM_LEASE_SECONDS`] to
    /// [`MAXIMUM_LEASE_SECONDS`].
    pub lease_seconds: u32,
    /// The router told to guests.
    pub gateway: Option<Ipv4Addr>,
    /// The DNS servers told to guests, at most [`MAXIMUM_DNS`].
    pub dns: Vec<Ipv4Addr>,
    /// The server's identifier on External and Private networks, where the
    /// host has no address; default: the first usable address. Nobody answers
    /// ARP for it; a client whose unicast renewal goes unheard broadcasts it
    /// later. On Internal networks it is the host's address.
    pub server_address: Option<Ipv4Addr>,
}

impl Default for DhcpSpec {
    /// The whole subnet less 16 addresses, leases of a day.
    fn default() -> Self {
        Self {
            range_start: None,
            range_end: None,
            reserved_count: RESERVED_COUNT,
            lease_seconds: 86_400,
            gateway: None,
            dns: Vec::new(),
            server_address: None,
        }
    }
}

/// A guest's adapter as this host should have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterSpec {
    /// The uid of the instance it belongs to.
    pub owner: OwnerId,
    /// Its name within the instance.
    pub name: AdapterName,
    /// The one source MAC address that is let through.
    pub mac: MacAddress,
    /// The one source IPv4 address that is let through, given by DHCP where
    /// the network has it. `None`: any IPv4 or IPv6 address, none by DHCP.
    pub ip: Option<Ipv4Addr>,
    /// Told to the guest by DHCP.
    pub hostname: Option<Hostname>,
    /// The user that may open the tap (numeric uid).
    pub tap_owner_uid: u32,
}

/// A network that cannot be built as wished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// The kind or DHCP needs a subnet.
    #[error("network {network}: {why} needs a subnet: set one")]
    NoSubnet {
        /// The network's name.
        network: String,
        /// What needs it.
        why: &'static str,
    },
    /// The addresses do not fit together.
    #[error("network {network}: {source}")]
    Plan {
        /// The network's name.
        network: String,
        /// What is wrong.
        source: InvalidPlan,
    },
    /// The lease is too short or too long.
    #[error(
        "network {network}: a lease of {found} seconds: expected {MINIMUM_LEASE_SECONDS} to {MAXIMUM_LEASE_SECONDS}"
    )]
    Lease {
        /// The network's name.
        network: String,
        /// As given.
        found: u32,
    },
    /// Too many DNS servers.
    #[error("network {network}: {found} DNS servers: at most {MAXIMUM_DNS} fit")]
    Dns {
        /// The network's name.
        network: String,
        /// How many were given.
        found: usize,
    },
    /// The uplink is an interface of ours.
    #[error(
        "network {network}: uplink {uplink} is an interface of Paddock itself: name the host's network card"
    )]
    UplinkIsOurs {
        /// The network's name.
        network: String,
        /// As given.
        uplink: InterfaceName,
    },
}

/// An adapter that cannot be built as wished.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAdapter {
    /// An address without a subnet.
    #[error(
        "adapter {adapter} of {owner}: address {ip} on network {network}, which has no subnet: set one"
    )]
    NoSubnet {
        /// The adapter.
        adapter: AdapterName,
        /// Its owner.
        owner: OwnerId,
        /// The address.
        ip: Ipv4Addr,
        /// The network's name.
        network: String,
    },
    /// The address does not fit the subnet.
    #[error("adapter {adapter} of {owner} on network {network}: {source}")]
    Address {
        /// The adapter.
        adapter: AdapterName,
        /// Its owner.
        owner: OwnerId,
        /// The network's name.
        network: String,
        /// What is wrong.
        source: InvalidPlan,
    },
}

/// A checked network: what the code behind works with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValidNetwork {
    pub id: NetworkId,
    pub name: String,
    pub bridge: BridgeName,
    pub kind: NetworkKind,
    pub plan: Option<AddressPlan>,
    pub dhcp: Option<ValidDhcp>,
}

/// A checked DHCP configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValidDhcp {
    pub subnet: Ipv4Net,
    pub server: Ipv4Addr,
    pub lease_seconds: u32,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
}

impl ValidNetwork {
    pub fn new(spec: &NetworkSpec) -> Result<Self, InvalidNetwork> {
        let network = || spec.name.clone();
        if let NetworkKind::External { uplink } = &spec.kind
            && (BridgeName::new(uplink.as_str()).is_ok() || TapName::new(uplink.as_str()).is_ok())
        {
            return Err(InvalidNetwork::UplinkIsOurs {
                network: network(),
                uplink: uplink.clone(),
            });
        }
        let plan = match spec.subnet {
            None if spec.kind == NetworkKind::Internal => {
                return Err(InvalidNetwork::NoSubnet {
                    network: network(),
                    why: "an Internal network",
                });
            }
            None if spec.dhcp.is_some() => {
                return Err(InvalidNetwork::NoSubnet {
                    network: network(),
                    why: "DHCP",
                });
            }
            None => None,
            Some(subnet) => Some(AddressPlan::new(&wishes(spec, subnet)).map_err(|source| {
                InvalidNetwork::Plan {
                    network: network(),
                    source,
                }
            })?),
        };
        let dhcp = match (&spec.dhcp, plan) {
            (Some(dhcp), Some(plan)) => Some(valid_dhcp(spec, dhcp, plan)?),
            _ => None,
        };
        Ok(Self {
            id: spec.id.clone(),
            name: spec.name.clone(),
            bridge: BridgeName::of(&spec.id),
            kind: spec.kind.clone(),
            plan,
            dhcp,
        })
    }

    /// Whether the host takes part in the network.
    pub fn has_host(&self) -> bool {
        self.kind == NetworkKind::Internal
    }
}

fn wishes(spec: &NetworkSpec, subnet: Ipv4Net) -> AddressWishes {
    let dhcp = spec.dhcp.clone().unwrap_or_default();
    AddressWishes {
        subnet,
        host_address: match spec.kind {
            NetworkKind::Internal => spec.host_address,
            _ => dhcp.server_address,
        },
        range_start: dhcp.range_start,
        range_end: dhcp.range_end,
        reserved_count: dhcp.reserved_count,
        gateway: dhcp.gateway,
    }
}

fn valid_dhcp(
    spec: &NetworkSpec,
    dhcp: &DhcpSpec,
    plan: AddressPlan,
) -> Result<ValidDhcp, InvalidNetwork> {
    if !(MINIMUM_LEASE_SECONDS..=MAXIMUM_LEASE_SECONDS).contains(&dhcp.lease_seconds) {
        return Err(InvalidNetwork::Lease {
            network: spec.name.clone(),
            found: dhcp.lease_seconds,
        });
    }
    if dhcp.dns.len() > MAXIMUM_DNS {
        return Err(InvalidNetwork::Dns {
            network: spec.name.clone(),
            found: dhcp.dns.len(),
        });
    }
    Ok(ValidDhcp {
        subnet: plan.subnet(),
        server: plan.host_address(),
        lease_seconds: dhcp.lease_seconds,
        gateway: dhcp.gateway,
        dns: dhcp.dns.clone(),
    })
}

/// A checked adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ValidAdapter {
    pub tap: TapName,
    pub spec: AdapterSpec,
}

impl ValidAdapter {
    pub fn new(network: &ValidNetwork, spec: &AdapterSpec) -> Result<Self, InvalidAdapter> {
        if let Some(ip) = spec.ip {
            let plan = network.plan.ok_or_else(|| InvalidAdapter::NoSubnet {
                adapter: spec.name.clone(),
                owner: spec.owner.clone(),
                ip,
                network: network.name.clone(),
            })?;
            plan.check_guest(ip)
                .map_err(|source| InvalidAdapter::Address {
                    adapter: spec.name.clone(),
                    owner: spec.owner.clone(),
                    network: network.name.clone(),
                    source,
                })?;
        }
        Ok(Self {
            tap: TapName::of(&spec.owner, &spec.name),
            spec: spec.clone(),
        })
    }
}
