//! Bringing a bridge to its wish, and removing it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::inventory::{is_bridge, is_tap, network_alias};
use super::{NetworkManager, State};
use crate::error::{NetworkError, UplinkError};
use crate::firewall::ruleset::Element;
use crate::link::Link;
use crate::names::{BridgeName, InterfaceName, MacAddress, TapName};
use crate::spec::{NetworkKind, ValidNetwork};
use crate::sysctl::{self, HostPart};

pub(super) async fn ensure(
    manager: &NetworkManager,
    state: &mut State,
    network: &ValidNetwork,
) -> Result<(), NetworkError> {
    let links = &manager.links;
    let found = links.find(network.bridge.as_str()).await?;
    if let Some(link) = &found {
        check_name(network, link)?;
    }
    // Before anything is changed: a wish that cannot be met leaves no trace.
    let uplink = match &network.kind {
        NetworkKind::External { uplink } => {
            Some(check_uplink(manager, network, found.as_ref(), uplink).await?)
        }
        NetworkKind::Internal | NetworkKind::Private => None,
    };
    let fixed_mac = network
        .has_host()
        .then(|| MacAddress::of_network(&network.id));
    if found.is_none() {
        links
            .create_bridge(network.bridge.as_str(), fixed_mac)
            .await?;
    }
    let bridge = links.get(network.bridge.as_str()).await?;
    let alias = network_alias(&network.id);
    if bridge.alias.as_deref() != Some(&alias) {
        links.set_alias(&bridge, &alias).await?;
    }
    if let Some(mac) = fixed_mac.filter(|mac| bridge.mac != Some(mac.bytes())) {
        links.set_mac(&bridge, mac).await?;
    }
    let host = if network.has_host() {
        HostPart::Member
    } else {
        HostPart::Absent
    };
    sysctl::apply(network.bridge.as_str(), &sysctl::bridge_settings(host))?;
    ensure_addresses(manager, network, &bridge).await?;
    ensure_ports(manager, state, network, &bridge, uplink.as_ref()).await?;
    if !bridge.up {
        links.set_up(&bridge).await?;
    }
    Ok(())
}

fn check_name(network: &ValidNetwork, link: &Link) -> Result<(), NetworkError> {
    let alias = network_alias(&network.id);
    // Without an alias its creation was cut short: the name alone tells.
    if is_bridge(link) && link.alias.as_ref().is_none_or(|found| *found == alias) {
        return Ok(());
    }
    Err(NetworkError::NameTaken {
        bridge: network.bridge.clone(),
        found: link.describe(),
        expected: alias,
    })
}

/// The uplink's interface, if it can serve this network.
async fn check_uplink(
    manager: &NetworkManager,
    network: &ValidNetwork,
    bridge: Option<&Link>,
    name: &InterfaceName,
) -> Result<Link, NetworkError> {
    let refuse = |source| NetworkError::Uplink {
        network: network.name.clone(),
        source,
    };
    let links = &manager.links;
    let link = links
        .find(name.as_str())
        .await?
        .ok_or_else(|| refuse(UplinkError::Missing(name.clone())))?;
    if !link.ethernet || link.loopback {
        return Err(refuse(UplinkError::NotEthernet(name.clone())));
    }
    if let Some(controller) = link.controller {
        if bridge.is_some_and(|bridge| bridge.index == controller) {
            // It has served this network before: guests depend on it.
            return Ok(link);
        }
        let all = links.all().await?;
        let controller = all
            .into_iter()
            .find(|other| other.index == controller)
            .map_or_else(
                || format!("interface number {controller}"),
                |other| format!("{} ({})", other.name, other.describe()),
            );
        return Err(refuse(UplinkError::Taken {
            uplink: name.clone(),
            controller,
        }));
    }
    if let Some((address, _)) = links.ipv4_addresses(&link).await?.first() {
        return Err(refuse(UplinkError::HasAddress {
            uplink: name.clone(),
            address: *address,
        }));
    }
    if links.has_default_route(&link).await? {
        return Err(refuse(UplinkError::HasDefaultRoute(name.clone())));
    }
    Ok(link)
}

/// The host's address on the bridge, and no other.
async fn ensure_addresses(
    manager: &NetworkManager,
    network: &ValidNetwork,
    bridge: &Link,
) -> Result<(), NetworkError> {
    let wished: Option<(Ipv4Addr, u8)> = network
        .plan
        .filter(|_| network.has_host())
        .map(|plan| (plan.host_address(), plan.subnet().prefix_len()));
    let found = manager.links.ipv4_addresses(bridge).await?;
    for (ip, prefix) in found.iter().filter(|address| Some(**address) != wished) {
        manager.links.remove_ipv4(bridge, *ip, *prefix).await?;
    }
    if let Some((ip, prefix)) = wished.filter(|address| !found.contains(address)) {
        manager.links.add_ipv4(bridge, ip, prefix).await?;
    }
    Ok(())
}

/// The uplink on the bridge, and no other interface but taps.
async fn ensure_ports(
    manager: &NetworkManager,
    state: &mut State,
    network: &ValidNetwork,
    bridge: &Link,
    uplink: Option<&Link>,
) -> Result<(), NetworkError> {
    let links = &manager.links;
    match &network.kind {
        NetworkKind::External { uplink } => {
            // Before it joins: the host must not hear the LAN through it.
            manager
                .nft
                .ensure(
                    &[uplink.as_str()],
                    &BTreeSet::from([Element::uplink(uplink)]),
                )
                .await?;
            state.uplinks.insert(network.bridge.clone(), uplink.clone());
        }
        NetworkKind::Internal | NetworkKind::Private => {
            manager.nft.ensure(&[], &BTreeSet::new()).await?;
            state.uplinks.remove(&network.bridge);
        }
    }
    let others: Vec<Link> = links
        .all()
        .await?
        .into_iter()
        .filter(|link| link.controller == Some(bridge.index) && !is_tap(link))
        .filter(|link| uplink.is_none_or(|uplink| uplink.index != link.index))
        .collect();
    release(manager, &others).await?;
    if let Some(uplink) = uplink {
        if uplink.controller != Some(bridge.index) {
            links.set_controller(uplink, Some(bridge.index)).await?;
        }
        if !uplink.up {
            links.set_up(uplink).await?;
        }
    }
    Ok(())
}

/// Takes interfaces off their bridge and out of the packet filter.
async fn release(manager: &NetworkManager, ports: &[Link]) -> Result<(), NetworkError> {
    for port in ports {
        manager.links.set_controller(port, None).await?;
        manager.nft.forget(&port.name).await?;
    }
    Ok(())
}

pub(super) async fn remove(
    manager: &NetworkManager,
    state: &mut State,
    bridge: &BridgeName,
) -> Result<(), NetworkError> {
    let Some(link) = manager.links.find(bridge.as_str()).await? else {
        state.uplinks.remove(bridge);
        return manager.tidy().await;
    };
    if !is_bridge(&link) {
        return Err(NetworkError::NameTaken {
            bridge: bridge.clone(),
            found: link.describe(),
            expected: "a Paddock network".to_owned(),
        });
    }
    let all = manager.links.all().await?;
    let (taps, others): (Vec<_>, Vec<_>) = all
        .into_iter()
        .filter(|port| port.controller == Some(link.index))
        .partition(is_tap);
    let taps: Vec<_> = taps
        .iter()
        .filter_map(|tap| TapName::new(&tap.name).ok())
        .collect();
    if !taps.is_empty() {
        return Err(NetworkError::InUse {
            bridge: bridge.clone(),
            taps,
        });
    }
    release(manager, &others).await?;
    manager.links.delete(&link).await?;
    state.uplinks.remove(bridge);
    manager.tidy().await
}
