//! Who holds which MAC address and which IP address, and new MAC addresses.

use crate::identity::{ObjectKey, digest};
use k8s_openapi::jiff::Timestamp;
use std::{collections::HashMap, fmt, hash::Hash, net::Ipv4Addr, str::FromStr};

/// A MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

/// A text that is no unicast MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a unicast MAC address such as 02:00:00:00:00:01")]
pub struct InvalidMac(String);

impl FromStr for Mac {
    type Err = InvalidMac;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidMac(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(invalid());
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// How many MAC addresses are tried for one adapter. With 40 bits of hash, a clash of even two in a row among
/// 100,000 adapters has odds below one in 10^10.
pub const MAC_ATTEMPTS: u32 = 8;

/// The MAC address made for an adapter at a given attempt: `02` (unicast, locally administered) and 40 bits
/// of SHA-256 of the machine's UID, the adapter's name and the attempt.
#[must_use]
pub fn derived_mac(machine_uid: &str, adapter: &str, attempt: u32) -> Mac {
    let hash = digest(&["mac", machine_uid, adapter, &attempt.to_string()]);
    Mac([2, hash[0], hash[1], hash[2], hash[3], hash[4]])
}

/// Where a machine's hold on a value comes from; the earlier of two is the stronger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Its instance carries it: a guest may be using it now.
    Instance,
    /// It was just planned, and the API does not show it yet.
    Planned,
    /// The user's spec asks for it.
    Spec,
    /// It was assigned before and is kept.
    Status,
}

/// A machine's hold on a value. The least of two is the stronger: by source, then age, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    source: Source,
    created: Option<Timestamp>,
    machine: ObjectKey,
}

impl Claim {
    /// The hold of a machine whose object was made at `created`.
    ///
    /// Between instances, and between plans, age does not count: the object that tells the machine's age may be
    /// unknown, and two machines have to agree on which of them yields.
    #[must_use]
    pub fn new(source: Source, created: Option<Timestamp>, machine: ObjectKey) -> Self {
        let aged = matches!(source, Source::Spec | Source::Status);
        Self {
            source,
            created: created.filter(|_| aged),
            machine,
        }
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &ObjectKey {
        &self.machine
    }
}

/// Who holds which values, kept up to date as objects change.
#[derive(Clone, Debug)]
pub struct Claims<T: Eq + Hash> {
    holders: HashMap<T, Vec<Claim>>,
}

impl<T: Eq + Hash> Default for Claims<T> {
    fn default() -> Self {
        Self {
            holders: HashMap::new(),
        }
    }
}

/// Who holds which MAC address, over all namespaces.
pub type MacClaims = Claims<Mac>;
/// Who holds which address on which network.
pub type AddressClaims = Claims<(ObjectKey, Ipv4Addr)>;

impl<T: Eq + Hash> Claims<T> {
    /// Replaces all that a machine holds from one source: `old` is what it was last given as `new`.
    pub fn replace(
        &mut self,
        machine: &ObjectKey,
        source: Source,
        created: Option<Timestamp>,
        old: Vec<T>,
        new: Vec<T>,
    ) {
        for value in old {
            if let Some(claims) = self.holders.get_mut(&value) {
                claims.retain(|c| c.machine != *machine || c.source != source);
                if claims.is_empty() {
                    self.holders.remove(&value);
                }
            }
        }
        for value in new {
            let claims = self.holders.entry(value).or_default();
            let claim = Claim::new(source, created, machine.clone());
            if !claims.contains(&claim) {
                claims.reserve_exact(1);
                claims.push(claim);
            }
        }
        let (used, taken) = (self.holders.len(), self.holders.capacity());
        if taken > 64 && used < taken / 8 {
            // What a burst of machines took is given back.
            self.holders.shrink_to(used * 2);
        }
    }

    /// The strongest hold of a machine other than `machine`.
    #[must_use]
    pub fn strongest_other(&self, value: &T, machine: &ObjectKey) -> Option<&Claim> {
        self.holders
            .get(value)?
            .iter()
            .filter(|c| c.machine != *machine)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Option<Timestamp> {
        Some(Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn parses_unicast_addresses_only() {
        let mac: Mac = "02:00:00:Aa:0b:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:00:aa:0b:01");
        for text in [
            "",
            "01:00:00:00:00:01",
            "00:00:00:00:00:00",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "2:0:0:0:0:1",
            "02:00:00:00:00:+1",
            "02-00-00-00-00-01",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text:?} was accepted");
        }
    }

    #[test]
    fn derived_addresses_are_local_and_differ_by_adapter_and_attempt() {
        let mac = derived_mac("u1", "lan", 0);
        assert_eq!(mac.0[0], 2);
        assert_eq!(mac, derived_mac("u1", "lan", 0));
        assert_ne!(mac, derived_mac("u1", "wan", 0));
        assert_ne!(mac, derived_mac("u2", "lan", 0));
        assert_ne!(mac, derived_mac("u1", "lan", 1));
    }

    #[test]
    fn the_strongest_hold_is_by_source_then_age_then_name() {
        let mut claims = Claims::<u8>::default();
        let (a, b, c) = (
            ObjectKey::new("n", "a"),
            ObjectKey::new("n", "b"),
            ObjectKey::new("n", "c"),
        );
        claims.replace(&b, Source::Spec, at(2), vec![], vec![7]);
        claims.replace(&a, Source::Spec, at(2), vec![], vec![7]);
        assert_eq!(claims.strongest_other(&7, &c).unwrap().machine, a);
        claims.replace(&b, Source::Spec, at(1), vec![7], vec![7]);
        assert_eq!(claims.strongest_other(&7, &c).unwrap().machine, b);
        claims.replace(&c, Source::Instance, at(3), vec![], vec![7]);
        assert_eq!(claims.strongest_other(&7, &a).unwrap().machine, c);
        assert_eq!(claims.strongest_other(&7, &c).unwrap().machine, b);
        for key in [&a, &b] {
            claims.replace(key, Source::Spec, None, vec![7], vec![]);
        }
        assert_eq!(claims.strongest_other(&7, &c), None);
        claims.replace(&c, Source::Instance, None, vec![7], vec![]);
        assert!(claims.holders.is_empty());
    }

    #[test]
    fn of_two_instances_with_one_value_one_yields() {
        let (a, b) = (ObjectKey::new("n", "a"), ObjectKey::new("n", "b"));
        let mut claims = Claims::<u8>::default();
        // Each instance was made at another time than its machine.
        claims.replace(&a, Source::Instance, at(9), vec![], vec![7]);
        claims.replace(&b, Source::Instance, at(8), vec![], vec![7]);
        let mine = |key: &ObjectKey, made| Claim::new(Source::Instance, at(made), key.clone());
        assert!(*claims.strongest_other(&7, &a).unwrap() > mine(&a, 2));
        assert!(*claims.strongest_other(&7, &b).unwrap() < mine(&b, 1));
    }
}
