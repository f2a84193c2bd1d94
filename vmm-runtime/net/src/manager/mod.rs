//! [`NetworkManager`]: the one owner of the host's virtual networks.

mod adapter;
mod inventory;
mod network;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};

use crate::dhcp::LeaseEvent;
use crate::dhcp::server::Server;
use crate::error::{AdapterError, FirewallError, InventoryError, NetworkError, SetupError};
use crate::firewall::nft::Nft;
use crate::firewall::ruleset::Element;
use crate::link::Links;
use crate::names::{BridgeName, InterfaceName, NetworkId, TapName};
use crate::spec::{AdapterSpec, NetworkSpec, ValidAdapter, ValidNetwork};
use crate::sysctl;

pub use inventory::{FoundBridge, FoundTap, Inventory};

/// How a [`NetworkManager`] works.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `nft` program; default: found in `PATH`.
    pub nft: PathBuf,
    /// Longest wait for one answer of the kernel or one run of `nft`.
    pub timeout: Duration,
    /// Told of DHCP leases; when it is full, events are dropped with a
    /// warning, never waited for.
    pub lease_events: Option<mpsc::Sender<LeaseEvent>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            nft: "nft".into(),
            timeout: Duration::from_secs(10),
            lease_events: None,
        }
    }
}

/// Owns the host's virtual networks; one per host, shared by reference.
///
/// Calls are taken one after the other. Dropping it ends its DHCP servers and
/// leaves bridges, taps and the packet filter as they are, for the next one
/// to adopt: call [`Self::ensure_network`] and [`Self::ensure_adapter`] again
/// for what should be there, then remove what [`Self::list`] shows besides.
#[derive(Debug)]
pub struct NetworkManager {
    links: Links,
    nft: Nft,
    lease_events: Option<mpsc::Sender<LeaseEvent>>,
    state: Mutex<State>,
}

/// What was ensured since the start.
#[derive(Debug, Default)]
struct State {
    /// The uplink of each External network.
    uplinks: BTreeMap<BridgeName, InterfaceName>,
    /// What the packet filter holds for each tap.
    taps: BTreeMap<TapName, BTreeSet<Element>>,
    /// The DHCP server of each tap that has one.
    servers: BTreeMap<TapName, Server>,
}

impl NetworkManager {
    /// Opens a netlink socket in the current network namespace; changes
    /// nothing. Must be called in a tokio runtime.
    pub async fn new(options: Options) -> Result<Self, SetupError> {
        if sysctl::bridged_traffic_meets_iptables() {
            tracing::warn!(
                "net.bridge.bridge-nf-call-iptables is 1: traffic between guests also passes the host's iptables \
                 FORWARD chain and may be dropped there"
            );
        }
        Ok(Self {
            links: Links::open(options.timeout).map_err(SetupError::Netlink)?,
            nft: Nft {
                program: options.nft,
                limit: options.timeout,
            },
            lease_events: options.lease_events,
            state: Mutex::default(),
        })
    }

    /// Checks that guests can be kept apart here: `nft` runs and the kernel
    /// has its bridge family. Changes nothing.
    pub async fn probe(&self) -> Result<(), FirewallError> {
        self.nft.probe().await
    }

    /// Brings a network's bridge to its wish: creates it, or changes what
    /// differs. After a change, ensure its adapters again: their DHCP and
    /// their part of the packet filter follow from both.
    pub async fn ensure_network(&self, spec: &NetworkSpec) -> Result<BridgeName, NetworkError> {
        let network = ValidNetwork::new(spec)?;
        let mut state = self.state.lock().await;
        network::ensure(self, &mut state, &network).await?;
        Ok(network.bridge)
    }

    /// Brings an adapter's tap to its wish, protected before it can pass a
    /// frame, and starts its DHCP server when the network has DHCP and the
    /// adapter an address. The network must have been ensured.
    pub async fn ensure_adapter(
        &self,
        network: &NetworkSpec,
        spec: &AdapterSpec,
    ) -> Result<TapName, AdapterError> {
        let network = ValidNetwork::new(network)?;
        let adapter = ValidAdapter::new(&network, spec)?;
        let mut state = self.state.lock().await;
        adapter::ensure(self, &mut state, &network, &adapter).await?;
        Ok(adapter.tap)
    }

    /// Removes a tap, its DHCP server and its packet filter entries; fine
    /// when there is none. A process that has the tap open loses it.
    pub async fn remove_adapter(&self, tap: &TapName) -> Result<(), AdapterError> {
        let mut state = self.state.lock().await;
        adapter::remove(self, &mut state, tap).await
    }

    /// Removes a network's bridge and frees its uplink; fine when there is
    /// none, refused while it has taps.
    pub async fn remove_network(&self, id: &NetworkId) -> Result<(), NetworkError> {
        self.remove_bridge(&BridgeName::of(id)).await
    }

    /// As [`Self::remove_network`], for a bridge that [`Self::list`] showed
    /// without a network.
    pub async fn remove_bridge(&self, bridge: &BridgeName) -> Result<(), NetworkError> {
        let mut state = self.state.lock().await;
        network::remove(self, &mut state, bridge).await
    }

    /// What exists under our name prefixes, sorted by name.
    pub async fn list(&self) -> Result<Inventory, InventoryError> {
        Ok(Inventory::of(&self.links.all().await?))
    }

    /// Restores the packet filter for all that was ensured since the start,
    /// should another program have flushed it; writes nothing when it is
    /// whole. Call it now and then: without the table guests are unprotected.
    pub async fn repair(&self) -> Result<(), FirewallError> {
        let state = self.state.lock().await;
        if state.taps.is_empty() && state.uplinks.is_empty() {
            return Ok(());
        }
        let taps = state
            .taps
            .iter()
            .map(|(tap, elements)| (tap.as_str(), elements.clone()));
        let uplinks = state
            .uplinks
            .values()
            .map(|uplink| (uplink.as_str(), BTreeSet::from([Element::uplink(uplink)])));
        let (interfaces, elements): (Vec<_>, Vec<_>) = taps.chain(uplinks).unzip();
        self.nft
            .ensure(&interfaces, &elements.into_iter().flatten().collect())
            .await
    }

    /// Removes the packet filter's table with the last interface of ours.
    async fn tidy<E: From<FirewallError> + From<crate::error::LinkError>>(&self) -> Result<(), E> {
        let links = self.links.all().await?;
        let ours = |link: &_| inventory::is_bridge(link) || inventory::is_tap(link);
        if !links.iter().any(ours) {
            self.nft.remove().await?;
        }
        Ok(())
    }
}
