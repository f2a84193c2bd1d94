//! The management subnet: a /24 of private addresses that nothing else on the machine uses.

use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Hosts that one lab can hold: their addresses are .10 to .249.
pub const MAX_HOSTS: u8 = 240;

/// The /24 between the hosts, the control plane and the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagementSubnet(Ipv4Net);

impl ManagementSubnet {
    fn address(self, last: u8) -> Ipv4Addr {
        let [a, b, c, _] = self.0.network().octets();
        Ipv4Addr::new(a, b, c, last)
    }

    /// The lab's own address, on the bridge.
    pub fn lab(self) -> Ipv4Addr {
        self.address(1)
    }

    /// The API server (or the forwarder to somebody else's).
    pub fn api(self) -> Ipv4Addr {
        self.address(2)
    }

    /// The operator.
    pub fn operator(self) -> Ipv4Addr {
        self.address(3)
    }

    /// All hollow hosts together.
    pub fn hollow(self) -> Ipv4Addr {
        self.address(4)
    }

    /// The host with this index, 0 to [`MAX_HOSTS`] - 1.
    pub fn host(self, index: u8) -> Ipv4Addr {
        self.address(10 + index.min(MAX_HOSTS - 1))
    }

    /// The machine that the lab runs on, seen from inside.
    pub fn machine(self) -> Ipv4Addr {
        self.address(254)
    }

    /// `address/24`, as `ip address add` wants it.
    pub fn with_prefix(self, address: Ipv4Addr) -> String {
        format!("{address}/{}", self.0.prefix_len())
    }
}

impl std::fmt::Display for ManagementSubnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The first of 10.213.0.0/24, 10.213.1.0/24 … 10.214.255.0/24 that overlaps none of `used`.
pub fn choose(used: &[Ipv4Net]) -> Option<ManagementSubnet> {
    (213..=214u8)
        .flat_map(|b| (0..=255u8).map(move |c| (b, c)))
        .filter_map(|(b, c)| Ipv4Net::new(Ipv4Addr::new(10, b, c, 0), 24).ok())
        .find(|net| !used.iter().any(|u| u.contains(net) || net.contains(u)))
        .map(ManagementSubnet)
}

/// The destinations in the output of `ip -j -4 route show table all`, the default route left out.
pub fn parse_routes(json: &[u8]) -> Result<Vec<Ipv4Net>> {
    #[derive(Deserialize)]
    struct Route {
        dst: String,
    }
    let routes: Vec<Route> =
        serde_json::from_slice(json).context("output of `ip -j route` is not the expected JSON")?;
    routes
        .iter()
        .filter(|route| route.dst != "default")
        .map(|route| {
            route
                .dst
                .parse::<Ipv4Net>()
                .or_else(|_| route.dst.parse::<Ipv4Addr>().map(Ipv4Net::from))
                .with_context(|| {
                    format!(
                        "route to {:?}: expected an IPv4 address or network",
                        route.dst
                    )
                })
        })
        .collect()
}

/// Held from the choice of a subnet until its address is on an interface, so that two labs never choose the same one.
///
/// An abstract socket: it belongs to the network namespace, as routes do, and vanishes with its holder.
pub struct SubnetLock(#[allow(dead_code)] UnixListener);

impl SubnetLock {
    /// Waits for the lock, at most 30 s.
    pub fn take() -> Result<Self> {
        let name =
            SocketAddr::from_abstract_name("paddock-lab/subnet").context("abstract socket name")?;
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match UnixListener::bind_addr(&name) {
                Ok(listener) => return Ok(Self(listener)),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    if Instant::now() > deadline {
                        bail!(
                            "another paddock-lab has been choosing its subnet for 30 s; end it and try again"
                        );
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => return Err(error).context("lock for choosing a subnet"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|n| n.parse().unwrap()).collect()
    }

    #[test]
    fn takes_the_first_free_subnet() {
        assert_eq!(choose(&[]).unwrap().to_string(), "10.213.0.0/24");
        assert_eq!(
            choose(&nets(&["10.213.0.0/24", "10.213.1.7/32"]))
                .unwrap()
                .to_string(),
            "10.213.2.0/24"
        );
        assert_eq!(
            choose(&nets(&["10.213.0.0/16"])).unwrap().to_string(),
            "10.214.0.0/24"
        );
    }

    #[test]
    fn finds_none_when_a_wide_route_covers_all() {
        assert_eq!(choose(&nets(&["10.0.0.0/8"])), None);
    }

    #[test]
    fn reads_routes() {
        let json = br#"[{"dst":"default","gateway":"192.0.2.1"},{"dst":"192.0.2.0/24"},{"type":"local","dst":"127.0.0.1"}]"#;
        assert_eq!(
            parse_routes(json).unwrap(),
            nets(&["192.0.2.0/24", "127.0.0.1/32"])
        );
        assert!(parse_routes(br#"[{"dst":"fe80::/64"}]"#).is_err());
        assert!(parse_routes(b"junk").is_err());
    }

    #[test]
    fn addresses_do_not_collide() {
        let subnet = choose(&[]).unwrap();
        let mut all: Vec<_> = (0..MAX_HOSTS).map(|i| subnet.host(i)).collect();
        all.extend([
            subnet.lab(),
            subnet.api(),
            subnet.operator(),
            subnet.hollow(),
            subnet.machine(),
        ]);
        assert_eq!(all[0], Ipv4Addr::new(10, 213, 0, 10));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!((all.len(), count), (245, 245));
        assert_eq!(subnet.with_prefix(subnet.api()), "10.213.0.2/24");
    }
}
