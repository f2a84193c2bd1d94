//! The host's interfaces, addresses and routes over route netlink, each
//! request with a bounded wait.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::RouteAttribute;
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};

use crate::error::LinkError;
use crate::names::MacAddress;

// linux/if_link.h, IFLA_TUN_*: the facts of a tun device.
const IFLA_TUN_OWNER: u16 = 1;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_PI: u16 = 4;
const IFLA_TUN_VNET_HDR: u16 = 5;
const IFLA_TUN_PERSIST: u16 = 6;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
/// linux/if_tun.h, IFF_TAP.
const TYPE_TAP: u8 = 2;

/// An interface, as much of it as is asked about here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    /// `bridge`, `tun`, `veth`, …; `None` for a network card.
    pub kind: Option<String>,
    pub ethernet: bool,
    pub loopback: bool,
    pub up: bool,
    /// Index of the bridge or bond it belongs to.
    pub controller: Option<u32>,
    /// Its alias; empty counts as none.
    pub alias: Option<String>,
    pub mtu: u32,
    pub mac: Option<[u8; 6]>,
    /// Only for kind `tun`.
    pub tun: Option<Tun>,
}

/// What a tun device is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tun {
    /// `None`: anybody with CAP_NET_ADMIN.
    pub owner: Option<u32>,
    /// It is a persistent tap without packet information and with the virtio
    /// header, of one queue.
    pub as_ours: bool,
}

impl Link {
    /// What it is, in words for a message.
    pub fn describe(&self) -> String {
        let kind = self.kind.as_deref().unwrap_or("physical interface");
        match &self.alias {
            Some(alias) => format!("a {kind} with the alias {alias:?}"),
            None => format!("a {kind} without an alias"),
        }
    }
}

/// Route netlink with bounded waits.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    handle: Handle,
    limit: Duration,
}

impl Links {
    /// Opens the socket; its task ends when the last clone is dropped.
    pub fn open(limit: Duration) -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, limit })
    }

    async fn bounded<T>(
        &self,
        action: &'static str,
        interface: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<Result<T, rtnetlink::Error>, LinkError> {
        tokio::time::timeout(self.limit, request)
            .await
            .map_err(|_| LinkError::Timeout {
                action,
                interface: interface.to_owned(),
                limit: self.limit,
            })
    }

    async fn run<T>(
        &self,
        action: &'static str,
        interface: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, LinkError> {
        self.bounded(action, interface, request)
            .await?
            .map_err(|error| refused(action, interface, &error))
    }

    /// All interfaces.
    pub async fn all(&self) -> Result<Vec<Link>, LinkError> {
        let stream = self.handle.link().get().execute().try_collect::<Vec<_>>();
        let messages = self.run("list", "the interfaces", stream).await?;
        Ok(messages.into_iter().map(parse).collect())
    }

    /// The interface of this name, if there is one.
    pub async fn find(&self, name: &str) -> Result<Option<Link>, LinkError> {
        let mut stream = Box::pin(self.handle.link().get().match_name(name).execute());
        match self.bounded("look up", name, stream.try_next()).await? {
            Ok(found) => Ok(found.map(parse)),
            Err(error) if code(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(refused("look up", name, &error)),
        }
    }

    /// As [`Self::find`] for one that was there a moment ago.
    pub async fn get(&self, name: &str) -> Result<Link, LinkError> {
        self.find(name).await?.ok_or_else(|| LinkError::Gone {
            interface: name.to_owned(),
        })
    }

    /// Makes a bridge, down, without spanning tree (the kernel's default).
    pub async fn create_bridge(
        &self,
        name: &str,
        mac: Option<MacAddress>,
    ) -> Result<(), LinkError> {
        let mut message = LinkMessageBuilder::<LinkBridge>::new(name).down();
        if let Some(mac) = mac {
            message = message.address(mac.bytes().to_vec());
        }
        self.run(
            "create bridge",
            name,
            self.handle.link().add(message.build()).execute(),
        )
        .await
    }

    async fn set(
        &self,
        action: &'static str,
        link: &Link,
        message: LinkMessage,
    ) -> Result<(), LinkError> {
        self.run(
            action,
            &link.name,
            self.handle.link().set(message).execute(),
        )
        .await
    }

    pub async fn set_alias(&self, link: &Link, alias: &str) -> Result<(), LinkError> {
        self.set("set the alias of", link, unspec(link).alias(alias).build())
            .await
    }

    pub async fn set_mac(&self, link: &Link, mac: MacAddress) -> Result<(), LinkError> {
        self.set(
            "set the MAC address of",
            link,
            unspec(link).address(mac.bytes().to_vec()).build(),
        )
        .await
    }

    pub async fn set_mtu(&self, link: &Link, mtu: u32) -> Result<(), LinkError> {
        self.set("set the MTU of", link, unspec(link).mtu(mtu).build())
            .await
    }

    pub async fn set_up(&self, link: &Link) -> Result<(), LinkError> {
        self.set("start", link, unspec(link).up().build()).await
    }

    pub async fn set_down(&self, link: &Link) -> Result<(), LinkError> {
        self.set("stop", link, unspec(link).down().build()).await
    }

    /// Puts the interface on a bridge, or on none.
    pub async fn set_controller(&self, link: &Link, bridge: Option<u32>) -> Result<(), LinkError> {
        // The kernel takes 0 for "none".
        let message = unspec(link).controller(bridge.unwrap_or(0)).build();
        self.set("change the bridge of", link, message).await
    }

    /// Deletes an interface; fine when it has gone meanwhile.
    pub async fn delete(&self, link: &Link) -> Result<(), LinkError> {
        match self
            .bounded(
                "delete",
                &link.name,
                self.handle.link().del(link.index).execute(),
            )
            .await?
        {
            Ok(()) => Ok(()),
            Err(error) if code(&error) == Some(libc::ENODEV) => Ok(()),
            Err(error) => Err(refused("delete", &link.name, &error)),
        }
    }

    /// The interface's IPv4 addresses with their prefix lengths.
    pub async fn ipv4_addresses(&self, link: &Link) -> Result<Vec<(Ipv4Addr, u8)>, LinkError> {
        let request = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index);
        let messages = self
            .run(
                "list the addresses of",
                &link.name,
                request.execute().try_collect::<Vec<_>>(),
            )
            .await?;
        Ok(messages
            .into_iter()
            // The kernel may ignore the filter.
            .filter(|m| m.header.index == link.index && m.header.family == AddressFamily::Inet)
            .filter_map(|m| {
                let own = |a: &AddressAttribute| match a {
                    AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
                    _ => None,
                };
                m.attributes
                    .iter()
                    .find_map(own)
                    .map(|ip| (ip, m.header.prefix_len))
            })
            .collect())
    }

    pub async fn add_ipv4(&self, link: &Link, ip: Ipv4Addr, prefix: u8) -> Result<(), LinkError> {
        let request = self.handle.address().add(link.index, ip.into(), prefix);
        match self
            .bounded("add an address to", &link.name, request.execute())
            .await?
        {
            Ok(()) => Ok(()),
            Err(error) if code(&error) == Some(libc::EEXIST) => Ok(()),
            Err(error) => Err(refused("add an address to", &link.name, &error)),
        }
    }

    pub async fn remove_ipv4(
        &self,
        link: &Link,
        ip: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), LinkError> {
        let message = rtnetlink::AddressMessageBuilder::<Ipv4Addr>::new()
            .index(link.index)
            .address(ip, prefix)
            .build();
        match self
            .bounded(
                "remove an address from",
                &link.name,
                self.handle.address().del(message).execute(),
            )
            .await?
        {
            Ok(()) => Ok(()),
            Err(error) if code(&error) == Some(libc::EADDRNOTAVAIL) => Ok(()),
            Err(error) => Err(refused("remove an address from", &link.name, &error)),
        }
    }

    /// Whether a default route of the host leaves by this interface.
    pub async fn has_default_route(&self, link: &Link) -> Result<bool, LinkError> {
        let action = "list the routes of";
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for wanted in [v4, v6] {
            let stream = self
                .handle
                .route()
                .get(wanted)
                .execute()
                .try_collect::<Vec<_>>();
            let routes = match self.bounded(action, &link.name, stream).await? {
                Ok(routes) => routes,
                // A kernel without IPv6 has no such routes.
                Err(error)
                    if matches!(code(&error), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) =>
                {
                    continue;
                }
                Err(error) => return Err(refused(action, &link.name, &error)),
            };
            let leaves_here = |a: &RouteAttribute| match a {
                RouteAttribute::Oif(index) => *index == link.index,
                RouteAttribute::MultiPath(hops) => {
                    hops.iter().any(|hop| hop.interface_index == link.index)
                }
                _ => false,
            };
            if routes.iter().any(|r| {
                r.header.destination_prefix_length == 0
                    && r.header.kind == rtnetlink::packet_route::route::RouteType::Unicast
                    && r.attributes.iter().any(leaves_here)
            }) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn unspec(link: &Link) -> LinkMessageBuilder<LinkUnspec> {
    LinkUnspec::new_with_index(link.index)
}

/// The positive errno of a kernel's refusal.
fn code(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(message.raw_code().abs()),
        _ => None,
    }
}

fn refused(action: &'static str, interface: &str, error: &rtnetlink::Error) -> LinkError {
    let message = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    LinkError::Refused {
        action,
        interface: interface.to_owned(),
        message,
    }
}

fn parse(message: LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        kind: None,
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        loopback: flags.contains(LinkFlags::Loopback),
        up: flags.contains(LinkFlags::Up),
        controller: None,
        alias: None,
        mtu: 0,
        mac: None,
        tun: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.controller = Some(index).filter(|i| *i != 0),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias).filter(|a| !a.is_empty()),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().ok(),
            LinkAttribute::LinkInfo(infos) => parse_info(&mut link, infos),
            _ => {}
        }
    }
    link
}

fn parse_info(link: &mut Link, infos: Vec<LinkInfo>) {
    for info in infos {
        match info {
            LinkInfo::Kind(kind) => {
                if kind == InfoKind::Tun {
                    link.tun.get_or_insert_default();
                }
                link.kind = Some(kind.to_string());
            }
            LinkInfo::Data(InfoData::Tun(facts)) => link.tun = Some(parse_tun(&facts)),
            _ => {}
        }
    }
}

fn parse_tun(facts: &[InfoTun]) -> Tun {
    let value = |kind: u16| {
        facts.iter().find(|fact| fact.kind() == kind).map(|fact| {
            let mut bytes = vec![0; fact.value_len()];
            fact.emit_value(&mut bytes);
            bytes
        })
    };
    let is = |kind, wanted: u8| value(kind).as_deref() == Some(&[wanted]);
    Tun {
        owner: value(IFLA_TUN_OWNER)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes),
        as_ours: is(IFLA_TUN_TYPE, TYPE_TAP)
            && is(IFLA_TUN_PI, 0)
            && is(IFLA_TUN_VNET_HDR, 1)
            && is(IFLA_TUN_PERSIST, 1)
            && is(IFLA_TUN_MULTI_QUEUE, 0),
    }
}
