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

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(kind: NetworkKind) -> NetworkSpec {
        NetworkSpec {
            id: NetworkId::new("net-1").unwrap(),
            name: "default/lan".to_owned(),
            kind,
            subnet: Some("10.1.2.0/24".parse().unwrap()),
            host_address: None,
            dhcp: Some(DhcpSpec::default()),
        }
    }

    fn adapter(ip: Option<[u8; 4]>) -> AdapterSpec {
        AdapterSpec {
            owner: OwnerId::new("vm-1").unwrap(),
            name: AdapterName::new("lan").unwrap(),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            ip: ip.map(Ipv4Addr::from),
            hostname: None,
            tap_owner_uid: 1,
        }
    }

    #[test]
    fn the_server_is_the_host_where_there_is_one() {
        let mut wish = spec(NetworkKind::Internal);
        wish.host_address = Some(Ipv4Addr::new(10, 1, 2, 9));
        wish.dhcp = Some(DhcpSpec {
            server_address: Some(Ipv4Addr::new(10, 1, 2, 5)),
            ..DhcpSpec::default()
        });
        let server = |wish: &NetworkSpec| ValidNetwork::new(wish).unwrap().dhcp.unwrap().server;
        assert_eq!(server(&wish), Ipv4Addr::new(10, 1, 2, 9));
        wish.kind = NetworkKind::Private;
        assert_eq!(server(&wish), Ipv4Addr::new(10, 1, 2, 5));
        wish.dhcp = Some(DhcpSpec::default());
        assert_eq!(server(&wish), Ipv4Addr::new(10, 1, 2, 1));
    }

    #[test]
    fn wishes_that_cannot_be_met_name_the_network() {
        let refusal = |wish: &NetworkSpec| ValidNetwork::new(wish).unwrap_err().to_string();
        let mut wish = spec(NetworkKind::Internal);
        wish.subnet = None;
        assert_eq!(
            refusal(&wish),
            "network default/lan: an Internal network needs a subnet: set one"
        );
        wish.kind = NetworkKind::Private;
        assert_eq!(
            refusal(&wish),
            "network default/lan: DHCP needs a subnet: set one"
        );
        wish.dhcp = None;
        assert!(ValidNetwork::new(&wish).is_ok());

        let mut wish = spec(NetworkKind::Private);
        wish.subnet = Some("10.1.2.0/30".parse().unwrap());
        assert_eq!(
            refusal(&wish),
            "network default/lan: subnet 10.1.2.0/30: the prefix must be /8 to /27"
        );
        for (lease_seconds, fine) in [
            (59, false),
            (60, true),
            (315_360_000, true),
            (315_360_001, false),
        ] {
            let mut wish = spec(NetworkKind::Private);
            wish.dhcp = Some(DhcpSpec {
                lease_seconds,
                ..DhcpSpec::default()
            });
            assert_eq!(ValidNetwork::new(&wish).is_ok(), fine, "{lease_seconds}");
        }
        let mut wish = spec(NetworkKind::Private);
        wish.dhcp = Some(DhcpSpec {
            dns: vec![Ipv4Addr::LOCALHOST; 9],
            ..DhcpSpec::default()
        });
        assert_eq!(
            refusal(&wish),
            "network default/lan: 9 DNS servers: at most 8 fit"
        );
        for uplink in ["pdk0123456789", "pdt0123456789a"] {
            let wish = spec(NetworkKind::External {
                uplink: InterfaceName::new(uplink).unwrap(),
            });
            assert!(
                refusal(&wish).contains("is an interface of Paddock itself"),
                "{uplink}"
            );
        }
    }

    #[test]
    fn an_adapters_address_must_fit_its_network() {
        let network = ValidNetwork::new(&spec(NetworkKind::Private)).unwrap();
        assert!(ValidAdapter::new(&network, &adapter(None)).is_ok());
        assert!(ValidAdapter::new(&network, &adapter(Some([10, 1, 2, 20]))).is_ok());
        let error = ValidAdapter::new(&network, &adapter(Some([10, 1, 3, 20])))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "adapter lan of vm-1 on network default/lan: guest address 10.1.3.20 is not a usable address of \
             10.1.2.0/24 (10.1.2.1 to 10.1.2.254)"
        );
        let mut bare = spec(NetworkKind::Private);
        (bare.subnet, bare.dhcp) = (None, None);
        let network = ValidNetwork::new(&bare).unwrap();
        let error = ValidAdapter::new(&network, &adapter(Some([10, 1, 2, 20]))).unwrap_err();
        assert!(matches!(error, InvalidAdapter::NoSubnet { .. }), "{error}");
    }

    #[test]
    fn specs_survive_json() {
        let wish = spec(NetworkKind::External {
            uplink: InterfaceName::new("lan0").unwrap(),
        });
        let text = serde_json::to_string(&wish).unwrap();
        assert_eq!(serde_json::from_str::<NetworkSpec>(&text).unwrap(), wish);
        assert!(serde_json::from_str::<NetworkSpec>(&text.replace("lan0", "lan 0")).is_err());
    }
}
