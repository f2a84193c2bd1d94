//! Which addresses of a network's subnet are for whom: pure range maths.
//!
//! Virtual Server held back the first 16 addresses of a network's DHCP range,
//! the host's own among them; so does this plan.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Shortest and longest prefix of a subnet. Longer ones leave nothing after
/// the addresses that are held back.
pub const PREFIXES: std::ops::RangeInclusive<u8> = 8..=27;
/// How many addresses at the start of the range are held back unless said
/// otherwise.
pub const RESERVED_COUNT: u32 = 16;

/// What a user may say about a network's addresses; what is `None` takes its
/// default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressWishes {
    /// The subnet, without host bits.
    pub subnet: Ipv4Net,
    /// The host's own address (the DHCP server's where the host has none);
    /// default: the first usable address of the subnet.
    pub host_address: Option<Ipv4Addr>,
    /// First address of the range; default: the first usable one.
    pub range_start: Option<Ipv4Addr>,
    /// Last address of the range, included; default: the last usable one.
    pub range_end: Option<Ipv4Addr>,
    /// How many addresses at the start of the range are not given to guests.
    pub reserved_count: u32,
    /// The router, if any: never given to a guest.
    pub gateway: Option<Ipv4Addr>,
}

impl AddressWishes {
    /// Everything by default in this subnet.
    pub fn new(subnet: Ipv4Net) -> Self {
        Self {
            subnet,
            host_address: None,
            range_start: None,
            range_end: None,
            reserved_count: RESERVED_COUNT,
            gateway: None,
        }
    }
}

/// Wishes that cannot be met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlan {
    /// The subnet is too small or too large.
    #[error("subnet {0}: the prefix must be /8 to /27")]
    Prefix(Ipv4Net),
    /// The subnet has host bits set.
    #[error("subnet {found} has host bits set: write {expected}")]
    HostBits {
        /// As given.
        found: Ipv4Net,
        /// As it should be.
        expected: Ipv4Net,
    },
    /// The subnet holds addresses that no host can have.
    #[error(
        "subnet {0} holds loopback, multicast, link-local or reserved addresses: choose another"
    )]
    NotUnicast(Ipv4Net),
    /// An address is outside the subnet, or its first or last one.
    #[error("{what} {address} is not a usable address of {subnet} ({first} to {last})")]
    NotUsable {
        /// Which address.
        what: &'static str,
        /// As given.
        address: Ipv4Addr,
        /// The subnet.
        subnet: Ipv4Net,
        /// First usable address.
        first: Ipv4Addr,
        /// Last usable address.
        last: Ipv4Addr,
    },
    /// The range ends before it starts.
    #[error("the range {start} to {end} ends before it starts")]
    RangeOrder {
        /// First address.
        start: Ipv4Addr,
        /// Last address.
        end: Ipv4Addr,
    },
    /// Nothing is left for guests.
    #[error(
        "the range {start} to {end} has no address left for guests after the first {reserved}, the host's and the gateway's"
    )]
    NothingLeft {
        /// First address.
        start: Ipv4Addr,
        /// Last address.
        end: Ipv4Addr,
        /// Held back at the start.
        reserved: u32,
    },
}

/// A plan that holds: every address in it is usable in the subnet, and at
/// least one is left for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressPlan {
    subnet: Ipv4Net,
    host_address: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
    /// Inclusive bounds of what may be given to guests, as numbers.
    first: u32,
    last: u32,
}

impl AddressPlan {
    /// Checks the wishes and fills in the defaults.
    pub fn new(wishes: &AddressWishes) -> Result<Self, InvalidPlan> {
        let subnet = wishes.subnet;
        check_subnet(subnet)?;
        let (lowest, highest) = usable(subnet);
        let check = |what, address| check_usable(subnet, what, address);
        let host_address = wishes.host_address.unwrap_or(Ipv4Addr::from(lowest));
        check("host address", host_address)?;
        if let Some(gateway) = wishes.gateway {
            check("gateway", gateway)?;
        }
        let start = wishes.range_start.unwrap_or(Ipv4Addr::from(lowest));
        let end = wishes.range_end.unwrap_or(Ipv4Addr::from(highest));
        check("range start", start)?;
        check("range end", end)?;
        if end < start {
            return Err(InvalidPlan::RangeOrder { start, end });
        }
        let nothing = InvalidPlan::NothingLeft {
            start,
            end,
            reserved: wishes.reserved_count,
        };
        let last = u32::from(end);
        let first = u32::from(start)
            .checked_add(wishes.reserved_count)
            .filter(|first| *first <= last)
            .ok_or(nothing)?;
        let plan = Self {
            subnet,
            host_address,
            gateway: wishes.gateway,
            first,
            last,
        };
        if plan.assignable().next().is_none() {
            return Err(nothing);
        }
        Ok(plan)
    }

    /// The subnet.
    pub fn subnet(&self) -> Ipv4Net {
        self.subnet
    }

    /// The host's own address, or the DHCP server's where the host has none.
    pub fn host_address(&self) -> Ipv4Addr {
        self.host_address
    }

    /// The addresses for guests, ascending.
    pub fn assignable(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let plan = *self;
        (self.first..=self.last)
            .map(Ipv4Addr::from)
            .filter(move |a| plan.is_assignable(*a))
    }

    /// Whether a guest may be given this address.
    pub fn is_assignable(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&u32::from(address))
            && address != self.host_address
            && Some(address) != self.gateway
    }

    /// Checks that a guest could hold this address: usable in the subnet and
    /// not the host's or the gateway's. The range is not asked: an address
    /// that was assigned stays good when the range is narrowed later.
    pub fn check_guest(&self, address: Ipv4Addr) -> Result<(), InvalidPlan> {
        check_usable(self.subnet, "guest address", address)?;
        if address == self.host_address || Some(address) == self.gateway {
            let (first, last) = usable(self.subnet);
            return Err(InvalidPlan::NotUsable {
                what: "guest address (it is the host's or the gateway's)",
                address,
                subnet: self.subnet,
                first: first.into(),
                last: last.into(),
            });
        }
        Ok(())
    }
}

fn check_subnet(subnet: Ipv4Net) -> Result<(), InvalidPlan> {
    if !PREFIXES.contains(&subnet.prefix_len()) {
        return Err(InvalidPlan::Prefix(subnet));
    }
    if subnet.trunc() != subnet {
        return Err(InvalidPlan::HostBits {
            found: subnet,
            expected: subnet.trunc(),
        });
    }
    // Prefixes of 8 and more never straddle these blocks unless they hold
    // them whole, so the ends of the subnet and the /16 are enough.
    let link_local = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);
    let ends = [subnet.network(), subnet.broadcast()];
    let odd = |a: &Ipv4Addr| a.octets()[0] == 0 || a.is_loopback() || a.octets()[0] >= 224;
    if ends.iter().any(odd) || subnet.contains(&link_local) || link_local.contains(&subnet) {
        return Err(InvalidPlan::NotUnicast(subnet));
    }
    Ok(())
}

/// First and last usable address. The prefix is at most 27, so there are 30
/// at least.
fn usable(subnet: Ipv4Net) -> (u32, u32) {
    (
        u32::from(subnet.network()) + 1,
        u32::from(subnet.broadcast()) - 1,
    )
}

fn check_usable(subnet: Ipv4Net, what: &'static str, address: Ipv4Addr) -> Result<(), InvalidPlan> {
    let (first, last) = usable(subnet);
    if (first..=last).contains(&u32::from(address)) {
        return Ok(());
    }
    Err(InvalidPlan::NotUsable {
        what,
        address,
        subnet,
        first: first.into(),
        last: last.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn wishes(subnet: &str) -> AddressWishes {
        AddressWishes::new(net(subnet))
    }

    #[test]
    fn the_first_sixteen_addresses_are_held_back() {
        let plan = AddressPlan::new(&wishes("10.1.2.0/24")).unwrap();
        assert_eq!(plan.host_address(), ip("10.1.2.1"));
        assert_eq!(plan.assignable().next(), Some(ip("10.1.2.17")));
        assert_eq!(plan.assignable().last(), Some(ip("10.1.2.254")));
        assert_eq!(plan.assignable().count(), 238);
        let smallest = AddressPlan::new(&wishes("10.1.2.32/27")).unwrap();
        assert_eq!(smallest.assignable().next(), Some(ip("10.1.2.49")));
        assert_eq!(smallest.assignable().count(), 14);
    }

    #[test]
    fn wishes_replace_the_defaults() {
        let plan = AddressPlan::new(&AddressWishes {
            host_address: Some(ip("10.1.2.254")),
            range_start: Some(ip("10.1.2.100")),
            range_end: Some(ip("10.1.2.110")),
            reserved_count: 4,
            gateway: Some(ip("10.1.2.108")),
            ..wishes("10.1.2.0/24")
        })
        .unwrap();
        assert_eq!(plan.host_address(), ip("10.1.2.254"));
        let expected: Vec<_> = [104, 105, 106, 107, 109, 110]
            .map(|n| Ipv4Addr::new(10, 1, 2, n))
            .into();
        assert_eq!(plan.assignable().collect::<Vec<_>>(), expected);
        assert!(!plan.is_assignable(ip("10.1.2.108")) && !plan.is_assignable(ip("10.1.2.111")));
    }

    #[test]
    fn a_guest_may_keep_an_address_outside_the_range() {
        let plan = AddressPlan::new(&AddressWishes {
            gateway: Some(ip("10.1.2.254")),
            ..wishes("10.1.2.0/24")
        })
        .unwrap();
        assert_eq!(plan.check_guest(ip("10.1.2.2")), Ok(()));
        for wrong in [
            "10.1.2.0",
            "10.1.2.255",
            "10.1.3.1",
            "10.1.2.1",
            "10.1.2.254",
        ] {
            assert!(plan.check_guest(ip(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn subnets_that_cannot_be_are_refused() {
        for (subnet, expected) in [
            ("10.0.0.0/7", InvalidPlan::Prefix(net("10.0.0.0/7"))),
            ("10.1.2.0/28", InvalidPlan::Prefix(net("10.1.2.0/28"))),
            (
                "10.1.2.1/24",
                InvalidPlan::HostBits {
                    found: net("10.1.2.1/24"),
                    expected: net("10.1.2.0/24"),
                },
            ),
            ("127.0.0.0/8", InvalidPlan::NotUnicast(net("127.0.0.0/8"))),
            ("0.0.0.0/8", InvalidPlan::NotUnicast(net("0.0.0.0/8"))),
            ("224.0.0.0/24", InvalidPlan::NotUnicast(net("224.0.0.0/24"))),
            (
                "255.255.255.0/24",
                InvalidPlan::NotUnicast(net("255.255.255.0/24")),
            ),
            (
                "169.254.7.0/24",
                InvalidPlan::NotUnicast(net("169.254.7.0/24")),
            ),
            ("169.0.0.0/8", InvalidPlan::NotUnicast(net("169.0.0.0/8"))),
        ] {
            assert_eq!(AddressPlan::new(&wishes(subnet)), Err(expected), "{subnet}");
        }
        for subnet in ["10.0.0.0/8", "192.168.7.224/27", "172.16.0.0/12"] {
            assert!(AddressPlan::new(&wishes(subnet)).is_ok(), "{subnet}");
        }
    }

    #[test]
    fn addresses_that_do_not_fit_are_named() {
        let subnet = net("10.1.2.0/24");
        let (first, last) = (ip("10.1.2.1"), ip("10.1.2.254"));
        let not_usable = |what, address| {
            Err(InvalidPlan::NotUsable {
                what,
                address,
                subnet,
                first,
                last,
            })
        };
        let base = AddressWishes::new(subnet);
        let outside = Some(ip("10.1.3.1"));
        let broadcast = Some(ip("10.1.2.255"));
        assert_eq!(
            AddressPlan::new(&AddressWishes {
                host_address: outside,
                ..base
            }),
            not_usable("host address", ip("10.1.3.1"))
        );
        assert_eq!(
            AddressPlan::new(&AddressWishes {
                range_end: broadcast,
                ..base
            }),
            not_usable("range end", ip("10.1.2.255"))
        );
        assert_eq!(
            AddressPlan::new(&AddressWishes {
                range_start: Some(ip("10.1.2.0")),
                ..base
            }),
            not_usable("range start", ip("10.1.2.0"))
        );
        assert_eq!(
            AddressPlan::new(&AddressWishes {
                gateway: outside,
                ..base
            }),
            not_usable("gateway", ip("10.1.3.1"))
        );
        let (start, end) = (ip("10.1.2.20"), ip("10.1.2.10"));
        assert_eq!(
            AddressPlan::new(&AddressWishes {
                range_start: Some(start),
                range_end: Some(end),
                ..base
            }),
            Err(InvalidPlan::RangeOrder { start, end })
        );
        let (start, end) = (ip("10.1.2.100"), ip("10.1.2.116"));
        let narrow = AddressWishes {
            range_start: Some(start),
            range_end: Some(end),
            ..base
        };
        assert_eq!(AddressPlan::new(&narrow).unwrap().assignable().count(), 1);
        assert_eq!(
            AddressPlan::new(&AddressWishes {
                gateway: Some(end),
                ..narrow
            }),
            Err(InvalidPlan::NothingLeft {
                start,
                end,
                reserved: 16
            })
        );
        assert!(matches!(
            AddressPlan::new(&AddressWishes {
                reserved_count: u32::MAX,
                ..base
            }),
            Err(InvalidPlan::NothingLeft {
                reserved: u32::MAX,
                ..
            })
        ));
    }

    proptest! {
        #[test]
        fn whatever_is_assignable_is_a_guests(
            bits: u32, prefix in 20u8..=27, host in 0u32..64, start in 0u32..64, length in 0u32..64, reserved in 0u32..40,
        ) {
            let subnet = Ipv4Net::new(bits.into(), prefix).unwrap().trunc();
            let at = |offset: u32| Ipv4Addr::from(u32::from(subnet.network()).wrapping_add(offset));
            let wishes = AddressWishes {
                host_address: Some(at(host)),
                range_start: Some(at(start)),
                range_end: Some(at(start + length)),
                reserved_count: reserved,
                ..AddressWishes::new(subnet)
            };
            if let Ok(plan) = AddressPlan::new(&wishes) {
                let given: Vec<_> = plan.assignable().collect();
                prop_assert!(!given.is_empty());
                for address in given {
                    prop_assert!(plan.check_guest(address).is_ok());
                    prop_assert!(address >= at(start + reserved) && address <= at(start + length));
                }
            }
        }
    }
}
