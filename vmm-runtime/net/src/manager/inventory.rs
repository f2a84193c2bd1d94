//! What exists on the host under our names.

use crate::link::Link;
use crate::names::{AdapterName, BridgeName, NetworkId, OwnerId, TapName};

/// What exists on the host under our name prefixes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Bridges, by name.
    pub bridges: Vec<FoundBridge>,
    /// Taps, by name.
    pub taps: Vec<FoundTap>,
}

/// A bridge of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundBridge {
    /// Its name.
    pub name: BridgeName,
    /// Its network; `None` when its creation was cut short.
    pub network: Option<NetworkId>,
}

/// A tap of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTap {
    /// Its name.
    pub name: TapName,
    /// The bridge it is on; `None` when its creation was cut short.
    pub bridge: Option<BridgeName>,
    /// Whose it is; `None` when its creation was cut short.
    pub adapter: Option<(OwnerId, AdapterName)>,
}

/// The alias that says whose bridge it is.
pub(super) fn network_alias(network: &NetworkId) -> String {
    format!("paddock network {network}")
}

/// The alias that says whose tap it is.
pub(super) fn adapter_alias(owner: &OwnerId, adapter: &AdapterName) -> String {
    format!("paddock adapter {owner} {adapter}")
}

fn network_of(alias: &str) -> Option<NetworkId> {
    NetworkId::new(alias.strip_prefix("paddock network ")?).ok()
}

fn adapter_of(alias: &str) -> Option<(OwnerId, AdapterName)> {
    let (owner, adapter) = alias.strip_prefix("paddock adapter ")?.split_once(' ')?;
    Some((OwnerId::new(owner).ok()?, AdapterName::new(adapter).ok()?))
}

/// Whether it is a bridge of ours.
pub(super) fn is_bridge(link: &Link) -> bool {
    link.kind.as_deref() == Some("bridge") && BridgeName::new(&link.name).is_ok()
}

/// Whether it is a tap of ours.
pub(super) fn is_tap(link: &Link) -> bool {
    link.kind.as_deref() == Some("tun") && TapName::new(&link.name).is_ok()
}

impl Inventory {
    pub(super) fn of(links: &[Link]) -> Self {
        let alias = |link: &Link| link.alias.clone().unwrap_or_default();
        let mut bridges: Vec<_> = links
            .iter()
            .filter(|link| is_bridge(link))
            .filter_map(|link| {
                Some(FoundBridge {
                    name: BridgeName::new(&link.name).ok()?,
                    network: network_of(&alias(link)),
                })
            })
            .collect();
        let bridge_of = |link: &Link| {
            let controller = links
                .iter()
                .find(|other| Some(other.index) == link.controller)?;
            BridgeName::new(&controller.name).ok()
        };
        let mut taps: Vec<_> = links
            .iter()
            .filter(|link| is_tap(link))
            .filter_map(|link| {
                Some(FoundTap {
                    name: TapName::new(&link.name).ok()?,
                    bridge: bridge_of(link),
                    adapter: adapter_of(&alias(link)),
                })
            })
            .collect();
        bridges.sort_by(|a, b| a.name.cmp(&b.name));
        taps.sort_by(|a, b| a.name.cmp(&b.name));
        Self { bridges, taps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(
        index: u32,
        name: &str,
        kind: Option<&str>,
        controller: Option<u32>,
        alias: Option<&str>,
    ) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            ethernet: true,
            loopback: false,
            up: true,
            controller,
            alias: alias.map(str::to_owned),
            mtu: 1500,
            mac: None,
            tun: None,
        }
    }

    #[test]
    fn aliases_say_whose_an_interface_is() {
        let id = NetworkId::new("net-1").unwrap();
        assert_eq!(network_of(&network_alias(&id)), Some(id));
        let (owner, adapter) = (
            OwnerId::new("vm-1").unwrap(),
            AdapterName::new("lan").unwrap(),
        );
        assert_eq!(
            adapter_of(&adapter_alias(&owner, &adapter)),
            Some((owner, adapter))
        );
        assert_eq!(network_of("my bridge"), None);
        assert_eq!(adapter_of("paddock adapter x"), None);
    }

    #[test]
    fn only_our_own_interfaces_are_listed() {
        let links = [
            link(1, "lo", None, None, None),
            link(2, "eth0", None, Some(4), None),
            link(
                7,
                "pdtfffffffffff",
                Some("tun"),
                Some(4),
                Some("paddock adapter vm-1 lan"),
            ),
            link(6, "pdt0000000000a", Some("tun"), None, None),
            link(
                4,
                "pdk0123456789",
                Some("bridge"),
                None,
                Some("paddock network net-1"),
            ),
            link(5, "pdk9876543210", Some("dummy"), None, None),
            link(8, "br0", Some("bridge"), None, None),
        ];
        let bridge = BridgeName::new("pdk0123456789").unwrap();
        let expected = Inventory {
            bridges: vec![FoundBridge {
                name: bridge.clone(),
                network: Some(NetworkId::new("net-1").unwrap()),
            }],
            taps: vec![
                FoundTap {
                    name: TapName::new("pdt0000000000a").unwrap(),
                    bridge: None,
                    adapter: None,
                },
                FoundTap {
                    name: TapName::new("pdtfffffffffff").unwrap(),
                    bridge: Some(bridge),
                    adapter: Some((
                        OwnerId::new("vm-1").unwrap(),
                        AdapterName::new("lan").unwrap(),
                    )),
                },
            ],
        };
        assert_eq!(Inventory::of(&links), expected);
    }
}
