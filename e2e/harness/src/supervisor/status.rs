//! What runs.

use crate::network::links::{lan_port, management_port};
use crate::protocol::{HostState, HostStatus, LabStatus, ServiceState};

use super::faults::OPERATOR_PORT_NAME;
use super::{Supervisor, lock};

impl Supervisor {
    /// What the lab is doing.
    pub fn status(&self) -> LabStatus {
        let access = self.access.get();
        let api_ready =
            access.is_some_and(|access| self.runtime.block_on(access.cluster.is_ready()));
        let held = match access {
            Some(access) if api_ready => self.runtime.block_on(access.cluster.held_leases()).ok(),
            _ => None,
        };
        let cuts = lock(&self.cuts).clone();
        let mut services: Vec<_> = lock(&self.services)
            .values()
            .map(|service| service.status())
            .collect();
        for service in &mut services {
            if service.name == OPERATOR_PORT_NAME {
                service.cut = cuts.get(OPERATOR_PORT_NAME).copied();
            }
        }
        let mut hosts = Vec::new();
        for (name, host) in lock(&self.hosts).iter() {
            let (state, boots, boot_id) = host.status();
            hosts.push(HostStatus {
                name: name.clone(),
                address: self.config.subnet.host(host.index),
                state,
                boots,
                boot_id,
                agent: host.agent_status(),
                cut: cuts.get(&management_port(host.index)).copied(),
                lan_cut: cuts.contains_key(&lan_port(host.index)),
                hollow: false,
                lease_held: held.as_ref().map(|held| held.contains(name)),
            });
        }
        for (name, service) in lock(&self.hollow).iter() {
            let agent = service.status();
            hosts.push(HostStatus {
                name: name.clone(),
                address: self.config.subnet.hollow(),
                state: if agent.state == ServiceState::Stopped {
                    HostState::Down
                } else {
                    HostState::Running
                },
                boots: agent.restarts + 1,
                boot_id: None,
                agent,
                cut: None,
                lan_cut: false,
                hollow: true,
                lease_held: held.as_ref().map(|held| held.contains(name)),
            });
        }
        LabStatus {
            id: self.config.id.clone(),
            directory: self.folder.path().to_owned(),
            kubeconfig: self.folder.kubeconfig(),
            subnet: self.config.subnet.to_string(),
            api_ready,
            services,
            hosts,
        }
    }
}
