//! The core of VirtualNetworks: whether machines can be plugged in, and how many addresses are left.

use crate::{
    conditions::{Answer, Writer},
    identity::deleting,
    subnet,
};
use paddock_crds::{
    VirtualNetwork, VirtualNetworkStatus,
    names::condition::{DELETING, READY, SPANS_HOSTS},
    network::{NetworkState, NetworkType},
    reference::Time,
};

/// The status that a network should have. `assigned` is the number of its addresses given to adapters.
#[must_use]
pub fn decide(network: &VirtualNetwork, assigned: usize, now: &Time) -> VirtualNetworkStatus {
    let mut status = network.status.clone().unwrap_or_default();
    let generation = network.metadata.generation;
    status.observed_generation = generation;
    let mut conditions = Writer {
        conditions: &mut status.conditions,
        generation,
        now,
    };
    match network.spec.network_type {
        NetworkType::External => conditions.set(
            SPANS_HOSTS,
            Answer::True,
            "Uplink",
            "machines on every host with this uplink share one segment",
        ),
        NetworkType::Internal | NetworkType::Private => conditions.set(
            SPANS_HOSTS,
            Answer::False,
            "PerHost",
            "each host has a segment of its own with the same subnet: machines on different hosts do not reach each other",
        ),
    }
    match subnet::parse(&network.spec) {
        Ok(segment) => {
            let assigned = i32::try_from(assigned).unwrap_or(i32::MAX);
            let free = segment
                .pool
                .map(|pool| i32::try_from(pool.capacity()).unwrap_or(i32::MAX))
                .map(|capacity| capacity.saturating_sub(assigned).max(0));
            status.assigned_addresses = free.map(|_| assigned);
            status.free_addresses = free;
            status.state = NetworkState::Ready;
            conditions.set(READY, Answer::True, "Ready", "machines can be plugged in");
        }
        Err(error) => {
            status.assigned_addresses = None;
            status.free_addresses = None;
            status.state = NetworkState::Failed;
            conditions.set(READY, Answer::False, "InvalidAddresses", error.to_string());
        }
    }
    if deleting(&network.metadata) {
        status.state = NetworkState::Terminating;
        conditions.set(
            DELETING,
            Answer::True,
            "Waiting",
            "waits for the finalizers that others put on it",
        );
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use paddock_crds::{
        VirtualNetworkSpec,
        network::{Dhcp, DhcpMode},
        reference::condition,
    };

    fn network(subnet: Option<&str>) -> VirtualNetwork {
        let mut network = VirtualNetwork::new(
            "lab",
            VirtualNetworkSpec {
                network_type: NetworkType::Internal,
                uplink: None,
                notes: None,
                subnet: subnet.map(str::to_owned),
                host_address: None,
                dhcp: Dhcp {
                    mode: DhcpMode::Enabled,
                    ..Dhcp::default()
                },
            },
        );
        network.metadata.generation = Some(3);
        network
    }

    #[test]
    fn counts_addresses_and_says_that_it_is_per_host() {
        let mut network = network(Some("192.168.50.0/24"));
        let now = Time(Timestamp::from_second(1).unwrap());
        let status = decide(&network, 2, &now);
        assert_eq!(status.state, NetworkState::Ready);
        assert_eq!(status.observed_generation, Some(3));
        assert_eq!(status.assigned_addresses, Some(2));
        assert_eq!(status.free_addresses, Some(236));
        let spans = condition(&status.conditions, SPANS_HOSTS).unwrap();
        assert_eq!((&*spans.status, &*spans.reason), ("False", "PerHost"));
        network.status = Some(status.clone());
        let later = Time(Timestamp::from_second(9).unwrap());
        assert_eq!(decide(&network, 2, &later), status);
    }

    #[test]
    fn a_network_without_subnet_says_what_it_lacks() {
        let now = Time(Timestamp::from_second(1).unwrap());
        let status = decide(&network(None), 0, &now);
        assert_eq!(status.state, NetworkState::Failed);
        let ready = condition(&status.conditions, READY).unwrap();
        assert_eq!(
            (&*ready.status, &*ready.reason),
            ("False", "InvalidAddresses")
        );
        assert!(ready.message.contains("spec.subnet"));
    }
}
