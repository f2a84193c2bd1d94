//! From an instance's adapters to bridges and taps, and back to nothing.

use super::run_folder::{Plug, RunFolder};
use crate::{backend::StartOrder, host, instance::core::Failure};
use ipnet::Ipv4Net;
use paddock_crds::{
    HostSpec,
    network::NetworkType,
    virtual_machine_instance::{InstanceAdapter, InstanceConfig, InstanceNetwork},
};
use paddock_net::{
    AdapterName, AdapterSpec, DhcpSpec, Hostname, InterfaceName, MacAddress, NetworkError,
    NetworkId, NetworkKind, NetworkManager, NetworkSpec, OwnerId,
};
use std::{collections::HashSet, fmt::Display, net::Ipv4Addr, str::FromStr};
use tokio::sync::Mutex;
use tracing::warn;

/// The networks of this host.
pub struct Networks {
    manager: NetworkManager,
    /// A bridge that has just been made for a tap that is not there yet must not be swept away.
    changing: Mutex<()>,
}

impl Networks {
    /// With this manager.
    #[must_use]
    pub fn new(manager: NetworkManager) -> Self {
        Self {
            manager,
            changing: Mutex::new(()),
        }
    }

    /// Makes or keeps the networks and taps.
    ///
    /// # Errors
    /// What cannot be had, and why.
    pub async fn ensure(&self, plugs: &[Plug]) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        self.make(plugs).await
    }

    /// Makes or keeps the networks and taps that a machine was started with, as its run folder says; none once it has
    /// ended.
    ///
    /// # Errors
    /// What cannot be had, and why.
    pub async fn restore(&self, folder: &RunFolder) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        // Read in here: what is written into it meanwhile is newer.
        let record = folder.record();
        self.make(&record.map(|r| r.adapters).unwrap_or_default())
            .await
    }

    /// Lets the DHCP servers of a machine answer as `wish` says, and notes it in its run folder. Of a machine that was
    /// taken over without a record, taps and packet filter are brought back too.
    ///
    /// # Errors
    /// What cannot be had, and why.
    pub async fn serve_dhcp(&self, folder: &RunFolder, wish: Wish) -> Result<(), Failure> {
        let _changing = self.changing.lock().await;
        let Some(mut record) = folder.record() else {
            // With its process went what tells of it.
            let running = wish.unrecorded().filter(|_| folder.has_process());
            return self.make(running.unwrap_or_default()).await;
        };
        let adapters = with_dhcp_of(&record.adapters, &wish.plugs);
        if adapters != record.adapters {
            self.make(&adapters).await?;
        }
        record.adapters = adapters;
        record.dhcp = wish.dhcp;
        folder
            .note(&record)
            .map_err(|error| Failure::new("HypervisorFailed", format!("the run folder: {error}")))
    }

    async fn make(&self, plugs: &[Plug]) -> Result<(), Failure> {
        for plug in plugs {
            self.manager
                .ensure_network(&plug.network)
                .await
                .map_err(|error| {
                    let reason = match error {
                        NetworkError::Uplink { .. } => "UplinkUnavailable",
                        _ => "NetworkUnavailable",
                    };
                    Failure::new(reason, error.to_string())
                })?;
            self.manager
                .ensure_adapter(&plug.network, &plug.adapter)
                .await
                .map_err(|error| {
                    let name = &plug.adapter.name;
                    Failure::new("NetworkUnavailable", format!("adapter {name}: {error}"))
                })?;
        }
        Ok(())
    }

    /// Removes every tap of owners that `is_left` does not know, and the bridges without a tap. It is asked while no tap
    /// is being made: what it knows before a tap is made, it knows here.
    ///
    /// # Errors
    /// The first thing that could not be removed; the others were.
    pub async fn remove(&self, is_left: impl Fn(&str) -> bool) -> Result<(), String> {
        let _changing = self.changing.lock().await;
        let inventory = self.manager.list().await.map_err(text)?;
        let mut failed = None;
        let mut used = HashSet::new();
        for tap in &inventory.taps {
            let owned = tap
                .adapter
                .as_ref()
                .is_some_and(|(owner, _)| is_left(owner.as_str()));
            let kept = if owned {
                true
            } else {
                match self.manager.remove_adapter(&tap.name).await {
                    Ok(()) => false,
                    Err(error) => {
                        failed.get_or_insert(text(error));
                        true
                    }
                }
            };
            if kept && let Some(bridge) = &tap.bridge {
                used.insert(bridge.clone());
            }
        }
        for bridge in &inventory.bridges {
            if !used.contains(&bridge.name)
                && let Err(error) = self.manager.remove_bridge(&bridge.name).await
            {
                failed.get_or_insert(text(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Restores the packet filter should another program have flushed it.
    pub async fn repair(&self) {
        if let Err(error) = self.manager.repair().await {
            warn!(%error, "the packet filter could not be repaired");
        }
    }
}

/// What an instance asks for of its networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// Its networks and adapters.
    pub plugs: Vec<Plug>,
    /// What its DHCP servers answer, as a text to compare.
    pub dhcp: String,
    /// Whether the machine that runs was started from this configuration.
    pub is_started: bool,
}

impl Wish {
    /// What a machine runs with of which no record tells: what is asked for, unless that has changed since it was
    /// started. Then its adapters are left alone until it is started anew.
    fn unrecorded(&self) -> Option<&[Plug]> {
        self.is_started.then_some(&*self.plugs)
    }
}

fn text(error: impl Display) -> String {
    error.to_string()
}

/// The plugs that a machine runs with, answered by DHCP as those `wanted`. An adapter or a network that changed
/// otherwise is left alone until the machine is started anew.
fn with_dhcp_of(running: &[Plug], wanted: &[Plug]) -> Vec<Plug> {
    let without = |network: &NetworkSpec| NetworkSpec {
        dhcp: None,
        ..network.clone()
    };
    let answered = |plug: &Plug| {
        let mut plug = plug.clone();
        let same = wanted.iter().find(|w| {
            w.adapter.name == plug.adapter.name && without(&w.network) == without(&plug.network)
        });
        if let Some(wanted) = same {
            plug.network.dhcp.clone_from(&wanted.network.dhcp);
        }
        plug
    };
    running.iter().map(answered).collect()
}

/// The networks and adapters of an instance.
///
/// # Errors
/// When the host has no such uplink, or a text in the instance is not what it should be.
pub fn plugs(order: &StartOrder, host: &HostSpec, user: u32) -> Result<Vec<Plug>, Failure> {
    let config = &order.instance.spec.config;
    config
        .network_adapters
        .iter()
        .map(|adapter| plug(&order.key.uid, config, adapter, host, user))
        .collect()
}

fn plug(
    uid: &str,
    config: &InstanceConfig,
    adapter: &InstanceAdapter,
    host: &HostSpec,
    user: u32,
) -> Result<Plug, Failure> {
    let network = match &adapter.network {
        Some(network) => network_spec(network, host)?,
        None => unplugged(uid, &adapter.name)?,
    };
    let spec = AdapterSpec {
        owner: OwnerId::new(uid).map_err(invalid(&adapter.name))?,
        name: AdapterName::new(&adapter.name).map_err(invalid(&adapter.name))?,
        mac: parse::<MacAddress>(&adapter.mac_address, &adapter.name)?,
        ip: adapter
            .ip_address
            .as_deref()
            .filter(|_| adapter.network.is_some())
            .map(|ip| parse::<Ipv4Addr>(ip, &adapter.name))
            .transpose()?,
        // A name that DHCP cannot carry is left out.
        hostname: Hostname::new(&config.hostname).ok(),
        tap_owner_uid: user,
    };
    Ok(Plug {
        network,
        adapter: spec,
    })
}

/// A cable that leads nowhere: a private network of its own.
fn unplugged(uid: &str, adapter: &str) -> Result<NetworkSpec, Failure> {
    Ok(NetworkSpec {
        id: NetworkId::new(&format!("{uid}.{adapter}")).map_err(invalid(adapter))?,
        name: "(unplugged)".to_owned(),
        kind: NetworkKind::Private,
        subnet: None,
        host_address: None,
        dhcp: None,
    })
}

fn network_spec(network: &InstanceNetwork, host: &HostSpec) -> Result<NetworkSpec, Failure> {
    let name = &network.name;
    let host_address = network
        .host_address
        .as_deref()
        .map(|text| parse::<Ipv4Addr>(text, name))
        .transpose()?;
    let kind = match network.network_type {
        NetworkType::Internal => NetworkKind::Internal,
        NetworkType::Private => NetworkKind::Private,
        NetworkType::External => {
            let uplink = network.uplink.as_deref().ok_or_else(|| {
                Failure::new(
                    "UplinkUnavailable",
                    format!("network {name} is External and names no uplink"),
                )
            })?;
            let interface = host::uplink_interface(host, uplink)?;
            NetworkKind::External {
                uplink: InterfaceName::new(&interface).map_err(invalid(name))?,
            }
        }
    };
    let dhcp = match &network.dhcp {
        None => None,
        Some(dhcp) => Some(DhcpSpec {
            lease_seconds: u32::try_from(dhcp.lease_seconds).unwrap_or_default(),
            gateway: dhcp
                .gateway
                .as_deref()
                .map(|text| parse(text, name))
                .transpose()?,
            dns: dhcp
                .dns
                .iter()
                .map(|text| parse(text, name))
                .collect::<Result<_, _>>()?,
            server_address: host_address,
            ..DhcpSpec::default()
        }),
    };
    Ok(NetworkSpec {
        id: NetworkId::new(&network.uid).map_err(invalid(name))?,
        name: name.clone(),
        host_address: host_address.filter(|_| kind == NetworkKind::Internal),
        kind,
        subnet: network
            .subnet
            .as_deref()
            .map(|text| parse::<Ipv4Net>(text, name))
            .transpose()?,
        dhcp,
    })
}

fn parse<T: FromStr>(text: &str, of: &str) -> Result<T, Failure>
where
    T::Err: Display,
{
    text.parse()
        .map_err(|error| Failure::new("NetworkUnavailable", format!("{of}: {text:?}: {error}")))
}

fn invalid<E: Display>(of: &str) -> impl Fn(E) -> Failure {
    let of = of.to_owned();
    move |error| Failure::new("NetworkUnavailable", format!("{of}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plug(adapter: &str, network: &str, lease_seconds: Option<u32>) -> Plug {
        Plug {
            network: NetworkSpec {
                id: NetworkId::new(network).unwrap(),
                name: format!("t/{network}"),
                kind: NetworkKind::Internal,
                subnet: Some("10.0.0.0/24".parse().unwrap()),
                host_address: None,
                dhcp: lease_seconds.map(|lease_seconds| DhcpSpec {
                    lease_seconds,
                    ..DhcpSpec::default()
                }),
            },
            adapter: AdapterSpec {
                owner: OwnerId::new("u-1").unwrap(),
                name: AdapterName::new(adapter).unwrap(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                ip: Some(Ipv4Addr::new(10, 0, 0, 17)),
                hostname: None,
                tap_owner_uid: 0,
            },
        }
    }

    #[test]
    fn only_what_dhcp_answers_reaches_a_running_guest() {
        let running = [
            plug("a", "n1", Some(60)),
            plug("b", "n1", Some(60)),
            plug("c", "n2", Some(60)),
        ];
        let mut wanted = vec![
            plug("new", "n1", Some(90)),
            plug("c", "n3", Some(90)),
            plug("b", "n1", None),
            plug("a", "n1", Some(90)),
        ];
        wanted[3].adapter.ip = Some(Ipv4Addr::new(10, 0, 0, 18));
        assert_eq!(
            with_dhcp_of(&running, &wanted),
            [
                plug("a", "n1", Some(90)),
                plug("b", "n1", None),
                plug("c", "n2", Some(60)),
            ]
        );
    }

    #[test]
    fn without_a_record_the_configuration_that_was_started_tells() {
        let plugs = vec![plug("a", "n1", Some(60))];
        let wish = |is_started| Wish {
            plugs: plugs.clone(),
            dhcp: "[]".to_owned(),
            is_started,
        };
        assert_eq!(wish(true).unrecorded(), Some(&*plugs));
        assert_eq!(wish(false).unrecorded(), None);
    }
}
