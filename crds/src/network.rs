//! VirtualNetwork: a segment that machines are plugged into.

use crate::reference::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A virtual network.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "paddock.dev",
    version = "v1alpha1",
    kind = "VirtualNetwork",
    plural = "virtualnetworks",
    shortname = "vnet",
    category = "paddock",
    namespaced,
    status = "VirtualNetworkStatus",
    derive = "PartialEq",
    cel,
    doc = "A virtual network that machines are plugged into: External through a host's uplink, Internal between a host and its guests, Private between guests only.",
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "What the network is doing"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether machines can be plugged in"
    ),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(name = "Subnet", type_ = "string", json_path = ".spec.subnet"),
    printcolumn(
        name = "Used",
        type_ = "integer",
        json_path = ".status.assignedAddresses",
        description = "Addresses in use"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "DHCP",
        type_ = "string",
        json_path = ".spec.dhcp.mode",
        priority = 1
    ),
    printcolumn(
        name = "Uplink",
        type_ = "string",
        json_path = ".spec.uplink",
        priority = 1
    ),
    printcolumn(
        name = "Free",
        type_ = "integer",
        json_path = ".status.freeAddresses",
        description = "Addresses left",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.type == 'External') == has(self.uplink)").message("uplink is required for an External network and only allowed there").field_path(".uplink"))]
#[x_kube(validation = Rule::new("!has(self.dhcp) || !has(self.dhcp.mode) || self.dhcp.mode == 'Disabled' || has(self.subnet)").message("subnet is required when dhcp.mode is Enabled").field_path(".subnet"))]
#[x_kube(validation = Rule::new("self.type != 'Internal' || has(self.subnet)").message("subnet is required on an Internal network").field_path(".subnet"))]
#[x_kube(validation = Rule::new("!has(self.dhcp) || !has(self.dhcp.gateway) || !has(self.dhcp.mode) || self.dhcp.mode == 'Disabled' || (has(self.subnet) && isCIDR(self.subnet) && isIP(self.dhcp.gateway) && cidr(self.subnet).containsIP(self.dhcp.gateway))").message("dhcp.gateway must be an address of subnet").field_path(".dhcp.gateway"))]
#[x_kube(validation = Rule::new("!has(self.hostAddress) || (self.type == 'Internal' && has(self.subnet) && isCIDR(self.subnet) && isIP(self.hostAddress) && cidr(self.subnet).containsIP(self.hostAddress))").message("hostAddress must be an address of subnet, on an Internal network").field_path(".hostAddress"))]
#[x_kube(validation = Rule::new("!has(self.dhcp) || !has(self.dhcp.rangeStart) || (has(self.subnet) && isCIDR(self.subnet) && isIP(self.dhcp.rangeStart) && cidr(self.subnet).containsIP(self.dhcp.rangeStart))").message("dhcp.rangeStart must be an address of subnet").field_path(".dhcp.rangeStart"))]
#[x_kube(validation = Rule::new("!has(self.dhcp) || !has(self.dhcp.rangeEnd) || (has(self.subnet) && isCIDR(self.subnet) && isIP(self.dhcp.rangeEnd) && cidr(self.subnet).containsIP(self.dhcp.rangeEnd))").message("dhcp.rangeEnd must be an address of subnet").field_path(".dhcp.rangeEnd"))]
#[x_kube(validation = Rule::new("has(self.subnet) == has(oldSelf.subnet) && (!has(self.subnet) || self.subnet == oldSelf.subnet)").message("subnet cannot be changed; make another network").field_path(".subnet"))]
pub struct VirtualNetworkSpec {
    /// External: bridged to a host's uplink. Internal: the host and its guests. Private: guests only, the host cannot reach them.
    #[serde(rename = "type")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("type cannot be changed; make another network"))]
    pub network_type: NetworkType,
    /// External: the uplink, as named in the Host's `spec.uplinks`; a host without it cannot run machines of this network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub uplink: Option<String>,
    /// Notes for people, at most 1024 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub notes: Option<String>,
    /// IPv4 subnet in CIDR form, /8 to /27, written as its network address (`192.168.50.0/24`), of addresses that hosts can have. Required on an Internal network and with DHCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18))]
    #[x_kube(validation = Rule::new("isCIDR(self) && cidr(self).ip().family() == 4 && cidr(self).prefixLength() >= 8 && cidr(self).prefixLength() <= 27 && cidr(self) == cidr(self).masked()").message("subnet must be an IPv4 network between /8 and /27 (a smaller one leaves no address after the 16 held back), such as 192.168.50.0/24"))]
    #[x_kube(validation = Rule::new("!isCIDR(self) || !(cidr('0.0.0.0/8').containsCIDR(self) || cidr('127.0.0.0/8').containsCIDR(self) || cidr('224.0.0.0/3').containsCIDR(self) || cidr('169.254.0.0/16').containsCIDR(self) || cidr(self).containsCIDR('169.254.0.0/16'))").message("subnet must not hold loopback, link-local, multicast or reserved addresses"))]
    pub subnet: Option<String>,
    /// Internal: the host's own address. Default: the first usable of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub host_address: Option<String>,
    /// Address assignment to guests. Default: Disabled.
    #[serde(default)]
    pub dhcp: Dhcp,
}

/// The kind of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NetworkType {
    /// Bridged to a host's uplink.
    External,
    /// The host and its guests.
    Internal,
    /// Guests only.
    Private,
}

/// Address assignment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dhcp {
    /// Enabled: each adapter is given an address, and a DHCP server on its host tells it. Default: Disabled.
    #[serde(default)]
    pub mode: DhcpMode,
    /// First address of the range. Default: the first usable of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4").message("rangeStart must be an IPv4 address"))]
    pub range_start: Option<String>,
    /// Last address of the range. Default: the last usable of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4").message("rangeEnd must be an IPv4 address"))]
    pub range_end: Option<String>,
    /// Addresses at the start of the range that are never given to a guest, 0 to 1024. Default: 16.
    #[serde(default = "default_reserved")]
    #[schemars(range(min = 0, max = 1024))]
    pub reserved_count: i32,
    /// Seconds for which an address is given, 60 to 31536000. Default: 3600.
    #[serde(default = "default_lease")]
    #[schemars(range(min = 60, max = 31536000))]
    pub lease_seconds: i32,
    /// The router that guests are told, an address of the subnet. Omitted: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4").message("gateway must be an IPv4 address"))]
    pub gateway: Option<String>,
    /// The DNS servers that guests are told, at most 3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3), inner(length(max = 15)))]
    #[x_kube(validation = Rule::new("self.all(a, isIP(a) && ip(a).family() == 4)").message("dns must hold IPv4 addresses"))]
    pub dns: Vec<String>,
}

impl Default for Dhcp {
    fn default() -> Self {
        Self {
            mode: DhcpMode::Disabled,
            range_start: None,
            range_end: None,
            reserved_count: default_reserved(),
            lease_seconds: default_lease(),
            gateway: None,
            dns: Vec::new(),
        }
    }
}

fn default_reserved() -> i32 {
    16
}

fn default_lease() -> i32 {
    3600
}

/// Whether addresses are assigned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum DhcpMode {
    /// Each adapter is given an address.
    Enabled,
    /// Guests see to their own addresses.
    #[default]
    Disabled,
}

/// What a network is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum NetworkState {
    /// Not seen yet.
    #[default]
    Unknown,
    /// Machines can be plugged in.
    Ready,
    /// It cannot be used; the conditions say why.
    Failed,
    /// It is being deleted.
    Terminating,
}

/// What the operator knows of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VirtualNetworkStatus {
    /// The generation of the spec that this status answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What the network is doing, in a word.
    #[serde(default)]
    pub state: NetworkState,
    /// Addresses given to adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_addresses: Option<i32>,
    /// Addresses of the range that are left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_addresses: Option<i32>,
    /// Ready, SpansHosts, Deleting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
