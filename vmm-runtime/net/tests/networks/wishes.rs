//! Networks and adapters that the tests wish for.

use std::net::Ipv4Addr;

use paddock_net::{
    AdapterName, AdapterSpec, DhcpSpec, InterfaceName, NetworkId, NetworkKind, NetworkManager,
    NetworkSpec, Options, OwnerId,
};

/// The uid that may open the tests' taps.
pub const TAP_OWNER: u32 = 4242;

pub async fn manager() -> NetworkManager {
    NetworkManager::new(Options::default()).await.unwrap()
}

pub fn external(uplink: &str) -> NetworkKind {
    NetworkKind::External {
        uplink: InterfaceName::new(uplink).unwrap(),
    }
}

/// A network `10.<number>.0.0/24` with DHCP.
pub fn network(number: u8, kind: NetworkKind) -> NetworkSpec {
    NetworkSpec {
        id: NetworkId::new(&format!("net-{number}")).unwrap(),
        name: format!("default/net-{number}"),
        kind,
        subnet: Some(format!("10.{number}.0.0/24").parse().unwrap()),
        host_address: None,
        dhcp: Some(DhcpSpec {
            gateway: Some(Ipv4Addr::new(10, number, 0, 254)),
            dns: vec![Ipv4Addr::new(192, 0, 2, 53)],
            lease_seconds: 3600,
            ..DhcpSpec::default()
        }),
    }
}

/// Adapter `number` with MAC `02:00:00:00:00:<number>` and an address.
pub fn adapter(number: u8, ip: Option<Ipv4Addr>) -> AdapterSpec {
    AdapterSpec {
        owner: OwnerId::new(&format!("vm-{number}")).unwrap(),
        name: AdapterName::new("lan").unwrap(),
        mac: format!("02:00:00:00:00:{number:02x}").parse().unwrap(),
        ip,
        hostname: Some(format!("vm-{number}").parse().unwrap()),
        tap_owner_uid: TAP_OWNER,
    }
}
