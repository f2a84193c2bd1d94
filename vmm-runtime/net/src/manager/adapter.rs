//! Bringing a tap to its wish, and removing it.

use super::inventory::{adapter_alias, is_tap};
use super::{NetworkManager, State};
use crate::dhcp::core::Assignment;
use crate::dhcp::server::{Server, Service};
use crate::error::AdapterError;
use crate::firewall::ruleset::TapRules;
use crate::link::Link;
use crate::names::{MacAddress, TapName};
use crate::spec::{NetworkKind, ValidAdapter, ValidNetwork};
use crate::{sysctl, tap};

/// Ethernet's MTU in bytes.
const ETHERNET_MTU: u32 = 1500;

pub(super) async fn ensure(
    manager: &NetworkManager,
    state: &mut State,
    network: &ValidNetwork,
    adapter: &ValidAdapter,
) -> Result<(), AdapterError> {
    let links = &manager.links;
    let no_bridge = || AdapterError::NoBridge {
        network: network.name.clone(),
        bridge: network.bridge.clone(),
    };
    let bridge = links
        .find(network.bridge.as_str())
        .await?
        .ok_or_else(no_bridge)?;
    let alias = adapter_alias(&adapter.spec.owner, &adapter.spec.name);
    let found = links.find(adapter.tap.as_str()).await?;
    if let Some(link) = &found {
        check_name(&adapter.tap, link, &alias)?;
    }
    tap::ensure(
        &adapter.tap,
        adapter.spec.tap_owner_uid,
        found.as_ref().and_then(|link| link.tun.as_ref()),
    )?;
    let mut link = links.get(adapter.tap.as_str()).await?;
    if link.alias.as_deref() != Some(&alias) {
        links.set_alias(&link, &alias).await?;
    }
    sysctl::apply(adapter.tap.as_str(), &sysctl::tap_settings())?;
    // Off another network before the rules of this one hold; down, because a
    // tap on no bridge talks to the host itself.
    if link.controller != Some(bridge.index) && link.up {
        links.set_down(&link).await?;
        links.set_controller(&link, None).await?;
        link = links.get(adapter.tap.as_str()).await?;
    }
    let mtu = wished_mtu(manager, network).await?;
    let service = service(network, adapter, mtu);
    protect(manager, state, network, adapter, service.is_some()).await?;
    if link.mtu != mtu {
        links.set_mtu(&link, mtu).await?;
    }
    if link.controller != Some(bridge.index) {
        links.set_controller(&link, Some(bridge.index)).await?;
    }
    if !link.up {
        links.set_up(&link).await?;
    }
    ensure_server(manager, state, adapter, &link, service)
}

fn check_name(tap: &TapName, link: &Link, alias: &str) -> Result<(), AdapterError> {
    // Without an alias its creation was cut short: the name alone tells.
    if is_tap(link) && link.alias.as_ref().is_none_or(|found| found == alias) {
        return Ok(());
    }
    Err(AdapterError::NameTaken {
        tap: tap.clone(),
        found: link.describe(),
        expected: alias.to_owned(),
    })
}

/// The uplink's MTU on an External network, else Ethernet's.
async fn wished_mtu(manager: &NetworkManager, network: &ValidNetwork) -> Result<u32, AdapterError> {
    match &network.kind {
        NetworkKind::External { uplink } => Ok(manager
            .links
            .find(uplink.as_str())
            .await?
            .map_or(ETHERNET_MTU, |link| link.mtu)),
        NetworkKind::Internal | NetworkKind::Private => Ok(ETHERNET_MTU),
    }
}

async fn protect(
    manager: &NetworkManager,
    state: &mut State,
    network: &ValidNetwork,
    adapter: &ValidAdapter,
    served: bool,
) -> Result<(), AdapterError> {
    let rules = TapRules {
        mac: adapter.spec.mac,
        ip: adapter.spec.ip,
        served,
        hosted: network.has_host(),
    };
    let elements = rules.elements(&adapter.tap);
    manager
        .nft
        .ensure(&[adapter.tap.as_str()], &elements)
        .await?;
    state.taps.insert(adapter.tap.clone(), elements);
    Ok(())
}

/// What the tap's DHCP server works by; `None`: it needs none.
fn service(network: &ValidNetwork, adapter: &ValidAdapter, mtu: u32) -> Option<Service> {
    let dhcp = network.dhcp.as_ref()?;
    let assignment = Assignment {
        mac: adapter.spec.mac,
        ip: adapter.spec.ip?,
        subnet: dhcp.subnet,
        server: dhcp.server,
        lease_seconds: dhcp.lease_seconds,
        gateway: dhcp.gateway,
        dns: dhcp.dns.clone(),
        hostname: adapter.spec.hostname.clone(),
        mtu: u16::try_from(mtu).ok().filter(|_| mtu != ETHERNET_MTU),
    };
    Some(Service {
        network: network.id.clone(),
        tap: adapter.tap.clone(),
        mac: MacAddress::of_network(&network.id),
        assignment,
    })
}

fn ensure_server(
    manager: &NetworkManager,
    state: &mut State,
    adapter: &ValidAdapter,
    link: &Link,
    service: Option<Service>,
) -> Result<(), AdapterError> {
    let Some(service) = service else {
        state.servers.remove(&adapter.tap);
        return Ok(());
    };
    match state
        .servers
        .get(&adapter.tap)
        .filter(|server| server.serves(link.index))
    {
        Some(server) => server.update(service),
        None => {
            let server = Server::start(link.index, service, manager.lease_events.clone())?;
            state.servers.insert(adapter.tap.clone(), server);
        }
    }
    Ok(())
}

pub(super) async fn remove(
    manager: &NetworkManager,
    state: &mut State,
    tap: &TapName,
) -> Result<(), AdapterError> {
    if let Some(link) = manager.links.find(tap.as_str()).await? {
        if !is_tap(&link) {
            return Err(AdapterError::NameTaken {
                tap: tap.clone(),
                found: link.describe(),
                expected: "a Paddock adapter".to_owned(),
            });
        }
        manager.links.delete(&link).await?;
    }
    state.servers.remove(tap);
    state.taps.remove(tap);
    manager.nft.forget(tap.as_str()).await?;
    manager.tidy().await
}
