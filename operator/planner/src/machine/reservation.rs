//! What a plan takes before the API shows it.

use super::instance_memory;
use crate::{
    address::Mac,
    placement::{HostView, Need},
    resolve::Resolved,
};
use paddock_crds::VirtualMachineInstance;
use std::net::Ipv4Addr;

/// What a plan takes before the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The host.
    pub host: String,
    /// Bytes of its memory.
    pub memory: u64,
    /// Names of the machine's disks.
    pub disks: Vec<String>,
    /// MAC addresses.
    pub macs: Vec<Mac>,
    /// Addresses with the names of their networks.
    pub addresses: Vec<(String, Ipv4Addr)>,
}

impl Reservation {
    /// Whether its end leaves something to others: what neither `next` nor the machine's instance takes.
    #[must_use]
    pub fn frees(&self, next: Option<&Self>, instance: Option<&VirtualMachineInstance>) -> bool {
        let planned = next.filter(|n| n.host == self.host).map(|n| n.memory);
        let placed = instance.filter(|i| i.spec.host == self.host);
        let memory = planned.max(placed.map(instance_memory)).unwrap_or(0);
        let disks = instance.iter().flat_map(|i| &i.spec.config.disks);
        let disk = |disk: &String| {
            next.is_some_and(|n| n.disks.contains(disk))
                || disks.clone().any(|d| d.virtual_hard_disk == *disk)
        };
        let adapters = instance
            .iter()
            .flat_map(|i| &i.spec.config.network_adapters);
        let mac = |mac: &Mac| {
            next.is_some_and(|n| n.macs.contains(mac))
                || adapters.clone().any(|a| a.mac_address.parse() == Ok(*mac))
        };
        let address = |address: &(String, Ipv4Addr)| {
            next.is_some_and(|n| n.addresses.contains(address))
                || adapters.clone().any(|a| {
                    // The instance names a network as namespace/name.
                    let network = a.network.as_ref().and_then(|n| n.name.split_once('/'));
                    let given: Option<Ipv4Addr> =
                        a.ip_address.as_deref().and_then(|text| text.parse().ok());
                    network.map(|(_, name)| name) == Some(address.0.as_str())
                        && given == Some(address.1)
                })
        };
        self.memory > memory
            || !self.disks.iter().all(disk)
            || !self.macs.iter().all(mac)
            || !self.addresses.iter().all(address)
    }
}

/// What a machine takes on a host.
pub(super) fn reserve(view: &HostView, need: &Need, resolved: &Resolved) -> Reservation {
    Reservation {
        host: view.name().to_owned(),
        memory: need.memory,
        disks: need.disks.iter().map(|d| d.name.clone()).collect(),
        macs: resolved
            .assigned
            .iter()
            .filter_map(|a| a.mac_address.parse().ok())
            .collect(),
        addresses: resolved
            .assigned
            .iter()
            .filter_map(|a| {
                Some((
                    a.virtual_network.clone()?,
                    a.ip_address.as_deref()?.parse().ok()?,
                ))
            })
            .collect(),
    }
}
