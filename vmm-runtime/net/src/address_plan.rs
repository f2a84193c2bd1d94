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
