//! Virtual networks on a host: bridges, protected taps and DHCP.
//!
//! [`NetworkManager`] brings the host to the [`NetworkSpec`]s and
//! [`AdapterSpec`]s it is told: one bridge per network (External with an
//! uplink, Internal with the host's address, Private with neither), one
//! persistent tap per adapter that lets through the guest's own MAC and IPv4
//! addresses alone, and a DHCP server that gives each adapter exactly the
//! address it was assigned. Every call is idempotent and adopts what exists,
//! so guests never notice that the caller was restarted.
//!
//! # What a guest can send
//! - Frames from its own MAC address: IPv4, ARP, and IPv6 as below. Anything
//!   else is dropped where it enters the bridge: other Ethernet types, VLAN
//!   tags, spanning tree, 802.3.
//! - With an assigned address: IPv4 from that address (and a DHCP client's
//!   from 0.0.0.0), ARP that claims that address or none. No IPv6: Paddock
//!   assigns no IPv6 addresses, so any would be one nobody gave it.
//! - Without an assigned address: any IPv4 and IPv6 address, but no router
//!   advertisements, no redirects and no DHCPv6 answers.
//! - Never a DHCP answer. Where the network has DHCP, the requests of adapters
//!   with an address end at their tap and reach no other server.
//!
//! A tap that the packet filter knows nothing of passes nothing.
//!
//! # What this crate must not know
//! Kubernetes, virtual machines, who assigns addresses and why.

pub mod address_plan;
pub mod dhcp;
mod error;
pub mod firewall;
mod link;
mod manager;
mod names;
mod spec;
mod sysctl;
mod tap;

pub use dhcp::{LeaseEvent, LeaseEventKind};
pub use error::{
    AdapterError, DhcpSocketError, FirewallError, InventoryError, LinkError, NetworkError,
    SetupError, SysctlError, TapError, UplinkError,
};
pub use manager::{FoundBridge, FoundTap, Inventory, NetworkManager, Options};
pub use names::{
    AdapterName, BRIDGE_PREFIX, BridgeName, Hostname, InterfaceName, InvalidName, MacAddress,
    NetworkId, OwnerId, TAP_PREFIX, TapName,
};
pub use spec::{
    AdapterSpec, DhcpSpec, InvalidAdapter, InvalidNetwork, MAXIMUM_DNS, MAXIMUM_LEASE_SECONDS,
    MINIMUM_LEASE_SECONDS, NetworkKind, NetworkSpec,
};
