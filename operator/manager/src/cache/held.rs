//! The MAC and IP addresses that an object says are its machine's.

use paddock_crds::{VirtualMachine, VirtualMachineInstance};
use paddock_planner::{ObjectKey, address::Mac};
use std::net::Ipv4Addr;

fn macs<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Mac> {
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// Those that a machine's spec asks for.
pub(super) fn spec_macs(vm: &VirtualMachine) -> Vec<Mac> {
    let adapters = vm.spec.network_adapters.iter();
    macs(adapters.filter_map(|a| a.mac_address.as_deref()))
}

/// Those that a machine's status was given.
pub(super) fn status_macs(vm: &VirtualMachine) -> Vec<Mac> {
    let adapters = vm.status.iter().flat_map(|s| &s.network_adapters);
    macs(adapters.map(|a| a.mac_address.as_str()))
}

/// Those that a machine's status was given, with their networks.
pub(super) fn status_addresses(vm: &VirtualMachine) -> Vec<(ObjectKey, Ipv4Addr)> {
    let namespace = vm.metadata.namespace.as_deref().unwrap_or_default();
    let adapters = vm.status.iter().flat_map(|s| &s.network_adapters);
    adapters
        .filter_map(|a| {
            let network = ObjectKey::new(namespace, a.virtual_network.as_deref()?);
            Some((network, a.ip_address.as_deref()?.parse().ok()?))
        })
        .collect()
}

/// Those that an instance's guest may be using.
pub(super) fn instance_macs(instance: &VirtualMachineInstance) -> Vec<Mac> {
    let adapters = &instance.spec.config.network_adapters;
    macs(adapters.iter().map(|a| a.mac_address.as_str()))
}

/// Those that an instance's guest may be using, with their networks.
pub(super) fn instance_addresses(instance: &VirtualMachineInstance) -> Vec<(ObjectKey, Ipv4Addr)> {
    let adapters = instance.spec.config.network_adapters.iter();
    adapters
        .filter_map(|a| {
            // The instance names a network as namespace/name.
            let (namespace, name) = a.network.as_ref()?.name.split_once('/')?;
            let network = ObjectKey::new(namespace, name);
            Some((network, a.ip_address.as_deref()?.parse().ok()?))
        })
        .collect()
}
