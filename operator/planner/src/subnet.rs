//! A VirtualNetwork's addresses, parsed once.

use ipnet::Ipv4Net;
use paddock_crds::network::{DhcpMode, NetworkType, VirtualNetworkSpec};
use std::net::Ipv4Addr;

/// A network whose addresses cannot be used as its spec says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNetwork {
    /// The subnet is missing although it is needed.
    #[error("spec.subnet is required on an Internal network, and when spec.dhcp.mode is Enabled")]
    SubnetMissing,
    /// The subnet holds addresses that no host can have.
    #[error(
        "spec.subnet {0} holds loopback, link-local, multicast or reserved addresses; choose another such as 192.168.50.0/24"
    )]
    NotUnicast(Ipv4Net),
    /// The subnet is no IPv4 network address between /8 and /27.
    #[error("spec.subnet {0:?} is not an IPv4 network between /8 and /27 such as 192.168.50.0/24")]
    Subnet(String),
    /// An address does not lie in the subnet, or is no host's there.
    #[error("{field} {address:?} is not an address of a host in spec.subnet {subnet}")]
    Outside {
        /// The field.
        field: &'static str,
        /// Its value.
        address: String,
        /// The subnet.
        subnet: Ipv4Net,
    },
    /// A text that is no IPv4 address.
    #[error("{field} {address:?} is not an IPv4 address")]
    Address {
        /// The field.
        field: &'static str,
        /// Its value.
        address: String,
    },
    /// No address is left for guests.
    #[error(
        "spec.dhcp: the range {first} to {last} has no address left after the {reserved} held back (spec.dhcp.reservedCount)"
    )]
    RangeEmpty {
        /// First address of the range.
        first: Ipv4Addr,
        /// Last address of the range.
        last: Ipv4Addr,
        /// Addresses held back.
        reserved: u32,
    },
}

/// A network's addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its subnet, if it has one.
    pub subnet: Option<Ipv4Net>,
    /// Internal: the host's address. With DHCP elsewhere: the server's identifier.
    pub host_address: Option<Ipv4Addr>,
    /// The addresses for guests, with DHCP.
    pub pool: Option<AddressPool>,
}

/// Addresses that guests may be given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    first: u32,
    last: u32,
    excluded: Vec<Ipv4Addr>,
}

impl AddressPool {
    /// Whether an address may be given to a guest.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address)) && !self.excluded.contains(&address)
    }

    /// The lowest address that is not `taken`.
    pub fn first_free(&self, mut taken: impl FnMut(Ipv4Addr) -> bool) -> Option<Ipv4Addr> {
        (self.first..=self.last)
            .map(Ipv4Addr::from)
            .find(|a| !self.excluded.contains(a) && !taken(*a))
    }

    /// How many addresses it has.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        let excluded = self
            .excluded
            .iter()
            .filter(|a| (self.first..=self.last).contains(&u32::from(**a)))
            .count();
        (self.last - self.first + 1).saturating_sub(u32::try_from(excluded).unwrap_or(u32::MAX))
    }
}

fn address(field: &'static str, text: &str) -> Result<Ipv4Addr, InvalidNetwork> {
    text.parse().map_err(|_| InvalidNetwork::Address {
        field,
        address: text.chars().take(64).collect(),
    })
}

/// Whether hosts can have the addresses of a subnet of /8 or smaller: what the agents accept.
fn is_unicast(subnet: Ipv4Net) -> bool {
    let link_local = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
    let first = subnet.network().octets()[0];
    !matches!(first, 0 | 127 | 224..)
        && !subnet.contains(&link_local)
        && !link_local.contains(&subnet)
}

/// Parses a network's addresses.
///
/// The range runs from the first to the last usable address of the subnet unless the spec narrows it; its first
/// `reservedCount` addresses, the host's own, the gateway and the DNS servers are never given to a guest.
pub fn parse(spec: &VirtualNetworkSpec) -> Result<Segment, InvalidNetwork> {
    let dhcp = spec.dhcp.mode == DhcpMode::Enabled;
    let Some(text) = &spec.subnet else {
        return if dhcp || spec.network_type == NetworkType::Internal {
            Err(InvalidNetwork::SubnetMissing)
        } else {
            Ok(Segment {
                subnet: None,
                host_address: None,
                pool: None,
            })
        };
    };
    let bad = || InvalidNetwork::Subnet(text.chars().take(64).collect());
    let subnet: Ipv4Net = text.parse().map_err(|_| bad())?;
    if !(8..=27).contains(&subnet.prefix_len()) || subnet.trunc() != subnet {
        return Err(bad());
    }
    if !is_unicast(subnet) {
        return Err(InvalidNetwork::NotUnicast(subnet));
    }
    // A prefix of 27 or less leaves at least 30 usable addresses, so that neither sum nor difference wraps.
    let usable_first = u32::from(subnet.network()) + 1;
    let usable_last = u32::from(subnet.broadcast()) - 1;
    let inside = |field: &'static str, text: &str| {
        let found = address(field, text)?;
        if (usable_first..=usable_last).contains(&u32::from(found)) {
            Ok(found)
        } else {
            Err(InvalidNetwork::Outside {
                field,
                address: text.to_owned(),
                subnet,
            })
        }
    };
    let gateway = spec
        .dhcp
        .gateway
        .as_deref()
        // Without DHCP nobody is told of it.
        .filter(|_| dhcp)
        .map(|t| inside("spec.dhcp.gateway", t))
        .transpose()?;
    let mut excluded: Vec<Ipv4Addr> = gateway.into_iter().collect();
    for text in &spec.dhcp.dns {
        excluded.push(address("spec.dhcp.dns", text)?);
    }
    let host_address = match &spec.host_address {
        Some(text) => Some(inside("spec.hostAddress", text)?),
        None if spec.network_type == NetworkType::Internal => Some(Ipv4Addr::from(usable_first)),
        // The DHCP server has no address of its own on the wire; it must not borrow one that somebody answers for.
        None if dhcp => (usable_first..=usable_last)
            .map(Ipv4Addr::from)
            .find(|a| !excluded.contains(a)),
        None => None,
    };
    excluded.extend(host_address);
    if !dhcp {
        return Ok(Segment {
            subnet: Some(subnet),
            host_address,
            pool: None,
        });
    }
    let first = match &spec.dhcp.range_start {
        Some(text) => u32::from(inside("spec.dhcp.rangeStart", text)?),
        None => usable_first,
    };
    let last = match &spec.dhcp.range_end {
        Some(text) => u32::from(inside("spec.dhcp.rangeEnd", text)?),
        None => usable_last,
    };
    let reserved = u32::try_from(spec.dhcp.reserved_count).unwrap_or(0);
    let pool = AddressPool {
        first: first.saturating_add(reserved),
        last,
        excluded,
    };
    if pool.first > pool.last || pool.capacity() == 0 {
        return Err(InvalidNetwork::RangeEmpty {
            first: Ipv4Addr::from(first),
            last: Ipv4Addr::from(last),
            reserved,
        });
    }
    Ok(Segment {
        subnet: Some(subnet),
        host_address,
        pool: Some(pool),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::network::Dhcp;

    fn internal(subnet: &str) -> VirtualNetworkSpec {
        VirtualNetworkSpec {
            network_type: NetworkType::Internal,
            uplink: None,
            notes: None,
            subnet: Some(subnet.to_owned()),
            host_address: None,
            dhcp: Dhcp {
                mode: DhcpMode::Enabled,
                ..Dhcp::default()
            },
        }
    }

    #[test]
    fn holds_the_first_sixteen_back() {
        let segment = parse(&internal("192.168.50.0/24")).unwrap();
        assert_eq!(segment.host_address, Some(Ipv4Addr::new(192, 168, 50, 1)));
        let pool = segment.pool.unwrap();
        assert_eq!(
            pool.first_free(|_| false),
            Some(Ipv4Addr::new(192, 168, 50, 17))
        );
        assert_eq!(pool.capacity(), 254 - 16);
        assert!(!pool.contains(Ipv4Addr::new(192, 168, 50, 16)));
        assert!(pool.contains(Ipv4Addr::new(192, 168, 50, 254)));
        assert!(!pool.contains(Ipv4Addr::new(192, 168, 50, 255)));
    }

    #[test]
    fn keeps_host_gateway_and_dns_from_guests() {
        let mut spec = internal("10.0.0.0/27");
        spec.host_address = Some("10.0.0.20".to_owned());
        spec.dhcp.gateway = Some("10.0.0.17".to_owned());
        spec.dhcp.dns = vec!["10.0.0.18".to_owned(), "9.9.9.9".to_owned()];
        let pool = parse(&spec).unwrap().pool.unwrap();
        assert_eq!(pool.capacity(), 30 - 16 - 3);
        assert_eq!(
            pool.first_free(|_| false),
            Some(Ipv4Addr::new(10, 0, 0, 19))
        );
    }

    #[test]
    fn the_server_of_an_external_network_borrows_nobodys_address() {
        let mut spec = internal("10.0.0.0/24");
        spec.network_type = NetworkType::External;
        spec.dhcp.gateway = Some("10.0.0.1".to_owned());
        assert_eq!(
            parse(&spec).unwrap().host_address,
            Some(Ipv4Addr::new(10, 0, 0, 2))
        );
    }

    #[test]
    fn refuses_what_no_host_accepts() {
        let mut bare = internal("10.0.0.0/24");
        bare.subnet = None;
        bare.dhcp.mode = DhcpMode::Disabled;
        assert_eq!(parse(&bare), Err(InvalidNetwork::SubnetMissing));
        bare.network_type = NetworkType::Private;
        assert!(parse(&bare).is_ok());
        for subnet in [
            "0.0.0.0/8",
            "127.0.0.0/8",
            "127.1.2.0/24",
            "169.254.7.0/24",
            "169.0.0.0/8",
            "224.0.0.0/24",
            "240.0.0.0/8",
        ] {
            let expected = InvalidNetwork::NotUnicast(subnet.parse().unwrap());
            assert_eq!(parse(&internal(subnet)), Err(expected));
        }
        for subnet in ["126.0.0.0/8", "169.253.0.0/16", "223.255.255.0/24"] {
            assert!(parse(&internal(subnet)).is_ok(), "{subnet}");
        }
        let mut spec = internal("10.0.0.0/24");
        for gateway in ["10.0.1.1", "10.0.0.0", "10.0.0.255"] {
            spec.dhcp.gateway = Some(gateway.to_owned());
            assert_eq!(
                parse(&spec),
                Err(InvalidNetwork::Outside {
                    field: "spec.dhcp.gateway",
                    address: gateway.to_owned(),
                    subnet: "10.0.0.0/24".parse().unwrap(),
                })
            );
        }
        spec.dhcp.mode = DhcpMode::Disabled;
        assert!(parse(&spec).is_ok());
    }

    #[test]
    fn refuses_what_leaves_no_address() {
        for subnet in ["10.0.0.0/28", "10.0.0.1/24", "10.0.0.0/7", "x", "::/64"] {
            assert_eq!(
                parse(&internal(subnet)),
                Err(InvalidNetwork::Subnet(subnet.to_owned()))
            );
        }
        let mut spec = internal("10.0.0.0/24");
        spec.dhcp.range_start = Some("10.0.0.100".to_owned());
        spec.dhcp.range_end = Some("10.0.0.115".to_owned());
        assert!(matches!(
            parse(&spec),
            Err(InvalidNetwork::RangeEmpty { reserved: 16, .. })
        ));
        spec.dhcp.range_end = Some("10.0.0.116".to_owned());
        assert_eq!(parse(&spec).unwrap().pool.unwrap().capacity(), 1);
        spec.dhcp.range_end = Some("10.0.1.116".to_owned());
        assert!(matches!(parse(&spec), Err(InvalidNetwork::Outside { .. })));
        spec.subnet = None;
        assert_eq!(parse(&spec), Err(InvalidNetwork::SubnetMissing));
    }
}
