//! What can go wrong, one enum per step.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use crate::names::{BridgeName, InterfaceName, TapName};
use crate::spec::{InvalidAdapter, InvalidNetwork};

/// [`crate::NetworkManager::new`] failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No netlink socket.
    #[error("cannot open a route netlink socket: {0}")]
    Netlink(#[source] io::Error),
}

/// A network could not be brought to its wished state, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The wish itself cannot be met; retrying is useless until it changes.
    #[error(transparent)]
    Invalid(#[from] InvalidNetwork),
    /// The uplink cannot be used; somebody has to change the host or the wish.
    #[error("network {network}: {source}")]
    Uplink {
        /// The network's name.
        network: String,
        /// Why.
        source: UplinkError,
    },
    /// The bridge's name is taken.
    #[error(
        "interface {bridge} exists but is {found}, not the bridge of {expected}: rename or delete it"
    )]
    NameTaken {
        /// The bridge.
        bridge: BridgeName,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// Adapters are still there.
    #[error("bridge {bridge} still has {} tap(s), {} among them: remove them first", .taps.len(), .taps[0])]
    InUse {
        /// The bridge.
        bridge: BridgeName,
        /// Its taps, one at least.
        taps: Vec<TapName>,
    },
    /// The packet filter failed.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// Netlink failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An interface setting failed.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
}

/// Why an interface cannot be an uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// It does not exist.
    #[error("uplink {0} does not exist on this host: name one that does")]
    Missing(InterfaceName),
    /// It is no Ethernet interface.
    #[error("uplink {0} is not an Ethernet interface: name one that is")]
    NotEthernet(InterfaceName),
    /// It belongs to another bridge, bond or the like.
    #[error("uplink {uplink} already belongs to {controller}: an uplink serves one network")]
    Taken {
        /// The uplink.
        uplink: InterfaceName,
        /// The other one.
        controller: String,
    },
    /// The host is reached through it.
    #[error(
        "uplink {uplink} carries the host's address {address}; on a bridge the host would lose it: \
         move the address to another interface or name another uplink"
    )]
    HasAddress {
        /// The uplink.
        uplink: InterfaceName,
        /// The first such address.
        address: Ipv4Addr,
    },
    /// The host reaches the world through it.
    #[error(
        "uplink {0} carries the host's default route; on a bridge the host would lose it: \
         move the route to another interface or name another uplink"
    )]
    HasDefaultRoute(InterfaceName),
}

/// An adapter could not be brought to its wished state, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The network's wish cannot be met.
    #[error(transparent)]
    InvalidNetwork(#[from] InvalidNetwork),
    /// The adapter's wish cannot be met.
    #[error(transparent)]
    Invalid(#[from] InvalidAdapter),
    /// The network was not ensured before.
    #[error("bridge {bridge} of network {network} does not exist: ensure the network first")]
    NoBridge {
        /// The network's name.
        network: String,
        /// Its bridge.
        bridge: BridgeName,
    },
    /// The tap's name is taken.
    #[error(
        "interface {tap} exists but is {found}, not the tap of {expected}: rename or delete it"
    )]
    NameTaken {
        /// The tap.
        tap: TapName,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The tap device failed.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The packet filter failed.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// Netlink failed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// An interface setting failed.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The DHCP server could not listen.
    #[error(transparent)]
    Dhcp(#[from] DhcpSocketError),
}

/// [`crate::NetworkManager::list`] failed.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// Netlink failed.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// The packet filter could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FirewallError {
    /// No `nft` program.
    #[error("cannot start {program}: {source}; install nftables 1.0.6 or newer")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel has no nftables bridge family.
    #[error(
        "the kernel has no nftables bridge family (CONFIG_NF_TABLES_BRIDGE): guests cannot be kept apart; nft said: {0}"
    )]
    NoBridgeFamily(String),
    /// The caller may not change the packet filter.
    #[error("no permission to change nftables (CAP_NET_ADMIN is needed); nft said: {0}")]
    Permission(String),
    /// The kernel or `nft` refused.
    #[error("nft refused to {action}: {message}")]
    Refused {
        /// What was being done.
        action: &'static str,
        /// What it wrote.
        message: String,
    },
    /// It took too long and was killed.
    #[error("nft took longer than {limit:?} to {action} and was stopped")]
    Timeout {
        /// What was being done.
        action: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// Its output is not what it should be.
    #[error("cannot read nft's listing of table bridge paddock: {0}")]
    Listing(String),
    /// Talking to it failed.
    #[error("cannot talk to nft: {0}")]
    Io(#[source] io::Error),
}

/// A netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel refused.
    #[error("cannot {action} {interface}: {message}")]
    Refused {
        /// What was being done.
        action: &'static str,
        /// To which interface.
        interface: String,
        /// The kernel's error.
        message: String,
    },
    /// No answer came.
    #[error("cannot {action} {interface}: the kernel did not answer within {limit:?}")]
    Timeout {
        /// What was being done.
        action: &'static str,
        /// To which interface.
        interface: String,
        /// The limit.
        limit: Duration,
    },
    /// The interface went away meanwhile.
    #[error("interface {interface} disappeared while it was being set up: retry")]
    Gone {
        /// Which.
        interface: String,
    },
}

/// An interface setting under `/proc/sys/net` could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {value:?} to {}: {source}; /proc/sys must be writable for the agent", .path.display())]
pub struct SysctlError {
    /// The file.
    pub path: PathBuf,
    /// The value.
    pub value: &'static str,
    /// Why.
    pub source: io::Error,
}

/// A tap device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No tun driver.
    #[error(
        "cannot open /dev/net/tun: {0}; load the kernel module tun and let the agent see the device"
    )]
    NoDriver(#[source] io::Error),
    /// Somebody has it open, so it cannot be changed.
    #[error(
        "tap {tap} is open in another process and belongs to uid {found}, not {expected}: stop that process first"
    )]
    Busy {
        /// The tap.
        tap: TapName,
        /// Its owner now.
        found: String,
        /// Its owner as wished.
        expected: u32,
    },
    /// The kernel refused.
    #[error("cannot {action} tap {tap}: {source}")]
    Refused {
        /// The tap.
        tap: TapName,
        /// What was being done.
        action: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
}

/// The DHCP server's socket on a tap failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the DHCP server's packet socket on {interface}: {source}")]
pub struct DhcpSocketError {
    /// What was being done.
    pub action: &'static str,
    /// The tap.
    pub interface: String,
    /// The kernel's error.
    pub source: io::Error,
}
