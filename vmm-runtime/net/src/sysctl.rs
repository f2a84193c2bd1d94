//! Interface settings under `/proc/sys/net`, which always shows the network
//! namespace of the one who opens it.

use std::io::ErrorKind;
use std::path::PathBuf;

use crate::error::SysctlError;

/// Whether the host takes part in what the interface belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostPart {
    /// It has an address there.
    Member,
    /// It has none, and answers nothing.
    Absent,
}

/// The settings of a bridge of ours, as `(family, name, value)`.
///
/// - No IPv6: Paddock assigns none, and the host must not pick up an address
///   from a LAN or a guest by itself.
/// - ARP: without these the host would answer for the addresses of all its
///   other interfaces. `arp_ignore` 1: only for the bridge's own; 8: never.
/// - No forwarding from a guest through the host: on an Internal network the
///   host is a peer, not a router. (Who writes `net.ipv4.ip_forward` later sets
///   it for all interfaces again; the next ensuring restores it.)
pub(crate) fn bridge_settings(host: HostPart) -> [(&'static str, &'static str, &'static str); 3] {
    let arp_ignore = match host {
        HostPart::Member => "1",
        HostPart::Absent => "8",
    };
    [
        ("ipv6", "disable_ipv6", "1"),
        ("ipv4", "arp_ignore", arp_ignore),
        ("ipv4", "forwarding", "0"),
    ]
}

/// The settings of a tap: the host itself says nothing on it.
pub(crate) fn tap_settings() -> [(&'static str, &'static str, &'static str); 2] {
    [("ipv6", "disable_ipv6", "1"), ("ipv4", "arp_ignore", "8")]
}

/// Writes the settings that differ.
pub(crate) fn apply(
    interface: &str,
    settings: &[(&'static str, &'static str, &'static str)],
) -> Result<(), SysctlError> {
    for (family, name, value) in settings {
        let path = PathBuf::from(format!("/proc/sys/net/{family}/conf/{interface}/{name}"));
        match std::fs::read_to_string(&path) {
            Ok(found) if found.trim() == *value => continue,
            // A kernel without IPv6.
            Err(error) if error.kind() == ErrorKind::NotFound && *family == "ipv6" => continue,
            _ => {}
        }
        std::fs::write(&path, value).map_err(|source| SysctlError {
            path,
            value,
            source,
        })?;
    }
    Ok(())
}

/// Whether br_netfilter hands bridged traffic to the host's iptables.
pub(crate) fn bridged_traffic_meets_iptables() -> bool {
    // Absent without br_netfilter, and then it does not.
    std::fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables")
        .is_ok_and(|text| text.trim() == "1")
}
