//! A machine's network adapters: their networks, MAC addresses and IP addresses.

use super::{References, Resolved, created};
use crate::{
    address::{Claim, MAC_ATTEMPTS, Mac, Source, derived_mac},
    identity::{ObjectKey, name, uid},
    refusal::{Refusal, reason},
    subnet::{self, Segment},
};
use paddock_crds::{
    VirtualMachine, VirtualNetwork,
    network::{DhcpMode, NetworkType},
    virtual_machine::{AdapterModel, AssignedAdapter},
    virtual_machine_instance::{InstanceAdapter, InstanceDhcp, InstanceNetwork},
};
use std::{collections::BTreeSet, net::Ipv4Addr, sync::Arc};

pub(super) fn resolve(vm: &VirtualMachine, references: &References<'_>, resolved: &mut Resolved) {
    let mut macs = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    for adapter in &vm.spec.network_adapters {
        let mac = match mac(
            vm,
            adapter.name.as_str(),
            adapter.mac_address.as_deref(),
            references,
            &macs,
        ) {
            Ok(mac) => mac,
            Err(refusal) => {
                resolved.refusals.push(refusal);
                continue;
            }
        };
        macs.insert(mac);
        let network = match &adapter.virtual_network_ref {
            None => None,
            Some(reference) => match network(vm, &adapter.name, &reference.name, references) {
                Ok(found) => Some(found),
                Err(refusal) => {
                    resolved.refusals.push(refusal);
                    continue;
                }
            },
        };
        let address = match network
            .as_ref()
            .map(|(found, segment)| ip(vm, &adapter.name, found, segment, references, &addresses))
        {
            None => None,
            Some(Ok(address)) => address,
            Some(Err(refusal)) => {
                resolved.refusals.push(refusal);
                continue;
            }
        };
        if let (Some((found, _)), Some(address)) = (&network, address) {
            addresses.insert((name(&found.metadata).to_owned(), address));
        }
        resolved.assigned.push(AssignedAdapter {
            name: adapter.name.clone(),
            mac_address: mac.to_string(),
            virtual_network: network.as_ref().map(|(n, _)| name(&n.metadata).to_owned()),
            ip_address: address.map(|a| a.to_string()),
        });
        if let Some((found, _)) = &network
            && let Some(uplink) = &found.spec.uplink
        {
            resolved.uplinks.push(uplink.clone());
        }
        resolved.adapters.push(InstanceAdapter {
            name: adapter.name.clone(),
            model: match adapter.model {
                AdapterModel::Auto => AdapterModel::Virtio,
                named => named,
            },
            mac_address: mac.to_string(),
            ip_address: address.map(|a| a.to_string()),
            network: network.map(|(found, segment)| instance_network(&found, &segment)),
        });
    }
}

fn mac(
    vm: &VirtualMachine,
    adapter: &str,
    wanted: Option<&str>,
    references: &References<'_>,
    own: &BTreeSet<Mac>,
) -> Result<Mac, Refusal> {
    let key = ObjectKey::of(&vm.metadata);
    if let Some(text) = wanted {
        let mac: Mac = text.parse().map_err(|error| {
            Refusal::wrong(
                reason::INVALID_SPEC,
                format!("adapter \"{adapter}\": macAddress {error}"),
            )
        })?;
        let carried = references
            .current
            .iter()
            .any(|a| a.name == adapter && a.mac_address.parse() == Ok(mac));
        let source = if carried {
            Source::Instance
        } else {
            Source::Spec
        };
        let mine = Claim::new(source, created(vm), key.clone());
        return match references.macs.strongest_other(&mac, &key) {
            Some(other) if *other < mine => Err(Refusal::wrong(
                reason::MAC_ADDRESS_IN_USE,
                format!(
                    "adapter \"{adapter}\": macAddress {mac} is used by VirtualMachine \"{}\"; give this one another",
                    other.machine()
                ),
            )),
            _ => Ok(mac),
        };
    }
    let attempts: Vec<Mac> = (0..MAC_ATTEMPTS)
        .map(|attempt| derived_mac(uid(&vm.metadata), adapter, attempt))
        .collect();
    let kept = references
        .current
        .iter()
        .find(|a| a.name == adapter)
        .map(|a| (Source::Instance, a.mac_address.as_str()))
        .into_iter()
        .chain(
            vm.status
                .iter()
                .flat_map(|s| &s.network_adapters)
                .find(|a| a.name == adapter)
                .map(|a| (Source::Status, a.mac_address.as_str())),
        )
        .filter_map(|(source, text)| Some((source, text.parse::<Mac>().ok()?)))
        .find(|(source, mac)| {
            attempts.contains(mac)
                && !own.contains(mac)
                && references
                    .macs
                    .strongest_other(mac, &key)
                    .is_none_or(|o| *o > Claim::new(*source, created(vm), key.clone()))
        });
    if let Some((_, mac)) = kept {
        return Ok(mac);
    }
    attempts
        .into_iter()
        .find(|mac| !own.contains(mac) && references.macs.strongest_other(mac, &key).is_none())
        .ok_or_else(|| {
            Refusal::wrong(
                reason::MAC_ADDRESS_IN_USE,
                format!(
                    "adapter \"{adapter}\": {MAC_ATTEMPTS} made MAC addresses are all in use; set its macAddress"
                ),
            )
        })
}

fn network(
    vm: &VirtualMachine,
    adapter: &str,
    target: &str,
    references: &References<'_>,
) -> Result<(Arc<VirtualNetwork>, Segment), Refusal> {
    let Some(found) = references.networks.get(target) else {
        return Err(Refusal::waits(
            reason::VIRTUAL_NETWORK_NOT_FOUND,
            format!(
                "adapter \"{adapter}\": there is no VirtualNetwork \"{target}\" in namespace \"{}\"",
                vm.metadata.namespace.as_deref().unwrap_or_default()
            ),
        ));
    };
    match subnet::parse(&found.spec) {
        Ok(segment) => Ok((found.clone(), segment)),
        Err(error) => Err(Refusal::waits(
            reason::VIRTUAL_NETWORK_NOT_READY,
            format!("adapter \"{adapter}\": VirtualNetwork \"{target}\": {error}"),
        )),
    }
}

fn ip(
    vm: &VirtualMachine,
    adapter: &str,
    network: &VirtualNetwork,
    segment: &Segment,
    references: &References<'_>,
    own: &BTreeSet<(String, Ipv4Addr)>,
) -> Result<Option<Ipv4Addr>, Refusal> {
    let Some(pool) = &segment.pool else {
        return Ok(None);
    };
    let key = ObjectKey::of(&vm.metadata);
    let target = name(&network.metadata);
    // One for all that are asked for: a large network has many.
    let mut asked = (
        ObjectKey::new(&key.namespace, target),
        Ipv4Addr::UNSPECIFIED,
    );
    let mut by_other = |address: Ipv4Addr| {
        asked.1 = address;
        references.addresses.strongest_other(&asked, &key)
    };
    let network_uid = uid(&network.metadata);
    let kept = references
        .current
        .iter()
        .filter(|a| a.name == adapter && a.network.as_ref().is_some_and(|n| n.uid == network_uid))
        .map(|a| (Source::Instance, a.ip_address.as_deref()))
        .chain(
            vm.status
                .iter()
                .flat_map(|s| &s.network_adapters)
                .filter(|a| a.name == adapter && a.virtual_network.as_deref() == Some(target))
                .map(|a| (Source::Status, a.ip_address.as_deref())),
        )
        .filter_map(|(source, text)| Some((source, text?.parse::<Ipv4Addr>().ok()?)))
        .find(|(source, address)| {
            pool.contains(*address)
                && !own.contains(&(target.to_owned(), *address))
                && by_other(*address)
                    .is_none_or(|o| *o > Claim::new(*source, created(vm), key.clone()))
        });
    if let Some((_, address)) = kept {
        return Ok(Some(address));
    }
    pool.first_free(|address| {
        own.contains(&(target.to_owned(), address)) || by_other(address).is_some()
    })
    .map(Some)
    .ok_or_else(|| {
        Refusal::waits(
            reason::ADDRESSES_EXHAUSTED,
            format!(
                "adapter \"{adapter}\": all {} addresses of VirtualNetwork \"{target}\" are taken; delete machines or use a larger network",
                pool.capacity()
            ),
        )
    })
}

fn instance_network(network: &VirtualNetwork, segment: &Segment) -> InstanceNetwork {
    let dhcp = &network.spec.dhcp;
    InstanceNetwork {
        uid: uid(&network.metadata).to_owned(),
        name: ObjectKey::of(&network.metadata).to_string(),
        network_type: network.spec.network_type,
        uplink: network
            .spec
            .uplink
            .clone()
            .filter(|_| network.spec.network_type == NetworkType::External),
        subnet: segment.subnet.map(|s| s.to_string()),
        host_address: segment.host_address.map(|a| a.to_string()),
        dhcp: (dhcp.mode == DhcpMode::Enabled).then(|| InstanceDhcp {
            lease_seconds: dhcp.lease_seconds,
            gateway: dhcp.gateway.clone(),
            dns: dhcp.dns.clone(),
        }),
    }
}
