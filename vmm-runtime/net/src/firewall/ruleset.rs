//! What the table should hold, and the way there from what it holds.
//!
//! Chains and rules are the same on every host; what differs is the elements
//! of six sets, all keyed by the interface:
//!
//! | set | key | meaning |
//! |---|---|---|
//! | `macs` | tap, MAC | the adapter's own MAC address |
//! | `addresses` | tap, MAC, IPv4 | the address it was assigned |
//! | `unassigned` | tap | it was assigned none: any address of its own choice |
//! | `served` | tap | its DHCP requests are answered at the tap and go no further |
//! | `hosted` | tap | its network is Internal: the host may be talked to |
//! | `uplinks` | interface | uplink of an External network: not for the host |
//!
//! A tap without elements passes nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use crate::names::{InterfaceName, MacAddress, TapName};

/// Table and sets; adding what exists changes nothing.
const SETS_TEXT: &str = include_str!("structure.nft");

/// Base chains: name and hook. Prerouting comes before everything else that
/// may look at a frame (-300 is nftables' `raw`-like place on bridges).
const BASE_CHAINS: [(&str, &str, i64); 3] = [
    ("prerouting", "prerouting", -300),
    ("to_host", "input", 0),
    ("from_host", "output", 0),
];

/// The rules, by chain; a chain without a hook is jumped to.
const RULES: [(&str, &[&str]); 7] = [
    ("prerouting", &["iifname \"pdt*\" goto from_guest"]),
    (
        "to_host",
        &[
            // Link-local group addresses reach the host without passing
            // prerouting, whoever sends them.
            "iifname \"pdt*\" ether daddr 01:80:c2:00:00:00-01:80:c2:00:00:0f drop",
            "iifname @hosted accept",
            "iifname \"pdt*\" drop",
            "iifname @uplinks drop",
        ],
    ),
    (
        "from_host",
        &[
            "oifname @hosted accept",
            "oifname \"pdt*\" drop",
            "oifname @uplinks drop",
        ],
    ),
    (
        "from_guest",
        &[
            "iifname . ether saddr != @macs drop",
            "ether type ip goto guest_ipv4",
            "ether type arp goto guest_arp",
            "ether type ip6 iifname @unassigned goto guest_ipv6",
            "drop",
        ],
    ),
    (
        "guest_ipv4",
        &[
            "udp sport 67 drop",
            "iifname @served udp dport 67 drop",
            "iifname @unassigned accept",
            "iifname . ether saddr . ip saddr @addresses accept",
            "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
            "drop",
        ],
    ),
    (
        // Accepting rules read the sender's fields, so a frame too short to
        // have them matches none of them.
        "guest_arp",
        &[
            "arp htype != 1 drop",
            "arp ptype != ip drop",
            "arp hlen != 6 drop",
            "arp plen != 4 drop",
            "iifname @unassigned iifname . arp saddr ether @macs accept",
            "iifname . arp saddr ether . arp saddr ip @addresses accept",
            "iifname . arp saddr ether @macs arp saddr ip 0.0.0.0 arp operation request accept",
            "drop",
        ],
    ),
    (
        "guest_ipv6",
        &[
            "icmpv6 type { nd-router-advert, nd-redirect } drop",
            "udp sport 547 drop",
            "accept",
        ],
    ),
];

/// A set of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the module's table says what each is")]
pub enum Set {
    Macs,
    Addresses,
    Unassigned,
    Served,
    Hosted,
    Uplinks,
}

impl Set {
    const ALL: [Set; 6] = [
        Set::Macs,
        Set::Addresses,
        Set::Unassigned,
        Set::Served,
        Set::Hosted,
        Set::Uplinks,
    ];

    fn name(self) -> &'static str {
        match self {
            Set::Macs => "macs",
            Set::Addresses => "addresses",
            Set::Unassigned => "unassigned",
            Set::Served => "served",
            Set::Hosted => "hosted",
            Set::Uplinks => "uplinks",
        }
    }

    fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name)
    }
}

/// An element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    set: Set,
    interface: String,
    /// MAC and IPv4 address, as far as the set's key has them.
    rest: Vec<String>,
}

impl Element {
    fn new(set: Set, interface: &str, rest: Vec<String>) -> Self {
        Self {
            set,
            interface: interface.to_owned(),
            rest,
        }
    }

    /// The element that keeps the host off an uplink.
    pub fn uplink(interface: &InterfaceName) -> Self {
        Self::new(Set::Uplinks, interface.as_str(), Vec::new())
    }

    fn key(&self) -> String {
        let mut key = format!("\"{}\"", self.interface);
        for part in &self.rest {
            key.push_str(" . ");
            key.push_str(part);
        }
        key
    }
}

/// What a tap lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapRules {
    /// Its guest's MAC address.
    pub mac: MacAddress,
    /// Its guest's address; `None`: any.
    pub ip: Option<Ipv4Addr>,
    /// Its DHCP requests are answered at the tap.
    pub served: bool,
    /// The host may be talked to.
    pub hosted: bool,
}

impl TapRules {
    /// The elements that say so.
    pub fn elements(&self, tap: &TapName) -> BTreeSet<Element> {
        let tap = tap.as_str();
        let mac = self.mac.to_string();
        let address = match self.ip {
            Some(ip) => Element::new(Set::Addresses, tap, vec![mac.clone(), ip.to_string()]),
            None => Element::new(Set::Unassigned, tap, Vec::new()),
        };
        let mut elements = BTreeSet::from([Element::new(Set::Macs, tap, vec![mac]), address]);
        if self.served {
            elements.insert(Element::new(Set::Served, tap, Vec::new()));
        }
        if self.hosted {
            elements.insert(Element::new(Set::Hosted, tap, Vec::new()));
        }
        elements
    }
}

/// The table as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether its sets, chains and rules are the ones of this version.
    pub structure: bool,
    /// Its elements.
    pub elements: BTreeSet<Element>,
}

/// The transaction that leaves exactly `wished` of all elements of the
/// `interfaces`, and the structure in place; `None` when nothing differs.
///
/// Elements of other interfaces stay: after a restart they protect guests
/// that the caller has not come to yet.
pub fn transaction(
    found: &Found,
    interfaces: &[&str],
    wished: &BTreeSet<Element>,
) -> Option<String> {
    let mut text = String::new();
    if !found.structure {
        text.push_str(&structure());
    }
    let stale = found
        .elements
        .difference(wished)
        .filter(|element| interfaces.contains(&element.interface.as_str()));
    for element in stale {
        write_element(&mut text, "delete", element);
    }
    for element in wished.difference(&found.elements) {
        write_element(&mut text, "add", element);
    }
    Some(text).filter(|text| !text.is_empty())
}

fn write_element(text: &mut String, verb: &str, element: &Element) {
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{verb} element bridge paddock {} {{ {} }}",
        element.set.name(),
        element.key()
    );
}

/// The transaction that removes everything.
pub const REMOVAL: &str = "delete table bridge paddock\n";

/// Sets, chains and rules: leaves elements as they are and replaces the rules
/// as a whole.
pub fn structure() -> String {
    let mut text = SETS_TEXT.to_owned();
    // Writing to a String cannot fail.
    for (chain, _) in RULES {
        let _ = match BASE_CHAINS.iter().find(|(name, ..)| *name == chain) {
            Some((_, hook, priority)) => writeln!(
                text,
                "add chain bridge paddock {chain} {{ type filter hook {hook} priority {priority}; policy accept; }}"
            ),
            None => writeln!(text, "add chain bridge paddock {chain}"),
        };
    }
    for (chain, _) in RULES {
        let _ = writeln!(text, "flush chain bridge paddock {chain}");
    }
    let mark = mark();
    for (chain, rules) in RULES {
        for (number, rule) in rules.iter().enumerate() {
            let _ = writeln!(
                text,
                "add rule bridge paddock {chain} {rule} comment \"{mark} {number}\""
            );
        }
    }
    text
}

/// What this version's rules carry as a comment, so that a listing shows
/// whether they are all there: it depends on every rule and set.
fn mark() -> String {
    let mut hash = Sha256::new();
    hash.update(SETS_TEXT);
    for (chain, rules) in RULES {
        hash.update(format!("{chain}\0{}\0", rules.join("\n")));
    }
    let digest: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, ..] = digest;
    format!("paddock {a:02x}{b:02x}{c:02x}{d:02x}")
}

/// Reads `nft -j list table bridge paddock`. What it does not know it
/// ignores, except rules, sets and chains that are not ours: then the
/// structure is to be written anew.
pub fn parse_listing(json: &str) -> Result<Found, String> {
    let listing: serde_json::Value =
        serde_json::from_str(json).map_err(|e| format!("not JSON: {e}"))?;
    let objects = listing
        .get("nftables")
        .and_then(|v| v.as_array())
        .ok_or("no array \"nftables\"")?;
    let mut elements = BTreeSet::new();
    let mut sets = BTreeSet::new();
    let mut chains = BTreeSet::new();
    let mut rules = Vec::new();
    for object in objects {
        if let Some(set) = object.get("set") {
            let name = text(set, "name").ok_or("a set without a name")?;
            let Some(known) = Set::of_name(name) else {
                continue;
            };
            sets.insert(known);
            for element in set
                .get("elem")
                .and_then(|v| v.as_array())
                .into_iter()
                .flatten()
            {
                elements.insert(
                    parse_element(known, element)
                        .ok_or_else(|| format!("set {name}: element {element}"))?,
                );
            }
        } else if let Some(chain) = object.get("chain") {
            chains.insert((
                text(chain, "name").unwrap_or_default().to_owned(),
                text(chain, "hook").unwrap_or_default().to_owned(),
                chain.get("prio").and_then(serde_json::Value::as_i64),
                text(chain, "policy").unwrap_or_default().to_owned(),
            ));
        } else if let Some(rule) = object.get("rule") {
            rules.push((
                text(rule, "chain").unwrap_or_default().to_owned(),
                text(rule, "comment").unwrap_or_default().to_owned(),
            ));
        }
    }
    // The listing may order chains as it likes; rules of one chain keep theirs.
    rules.sort_by(|a, b| a.0.cmp(&b.0));
    let structure =
        sets.len() == Set::ALL.len() && chains == expected_chains() && rules == expected_rules();
    Ok(Found {
        structure,
        elements,
    })
}

fn text<'a>(object: &'a serde_json::Value, key: &str) -> Option<&'a str> {
    object.get(key).and_then(|v| v.as_str())
}

fn parse_element(set: Set, element: &serde_json::Value) -> Option<Element> {
    let mut parts = match element.get("concat") {
        Some(parts) => parts
            .as_array()?
            .iter()
            .map(|p| p.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()?,
        None => vec![element.as_str()?.to_owned()],
    };
    if parts.is_empty() {
        return None;
    }
    let interface = parts.remove(0);
    Some(Element {
        set,
        interface,
        rest: parts,
    })
}

fn expected_chains() -> BTreeSet<(String, String, Option<i64>, String)> {
    RULES
        .iter()
        .map(
            |(chain, _)| match BASE_CHAINS.iter().find(|(name, ..)| name == chain) {
                Some((_, hook, priority)) => (
                    (*chain).to_owned(),
                    (*hook).to_owned(),
                    Some(*priority),
                    "accept".to_owned(),
                ),
                None => ((*chain).to_owned(), String::new(), None, String::new()),
            },
        )
        .collect()
}

fn expected_rules() -> Vec<(String, String)> {
    let mark = mark();
    let mut rules: Vec<_> = RULES
        .iter()
        .flat_map(|(chain, rules)| {
            (0..rules.len()).map(|n| ((*chain).to_owned(), format!("{mark} {n}")))
        })
        .collect();
    rules.sort_by(|a, b| a.0.cmp(&b.0));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(last: char) -> TapName {
        TapName::new(&format!("pdt0123456789{last}")).unwrap()
    }

    fn rules(ip: Option<[u8; 4]>, served: bool, hosted: bool) -> TapRules {
        TapRules {
            mac: "02:00:00:00:00:01".parse().unwrap(),
            ip: ip.map(Ipv4Addr::from),
            served,
            hosted,
        }
    }

    #[test]
    fn the_structure_is_as_written_down() {
        assert_eq!(structure(), include_str!("expected/structure.nft"));
    }

    #[test]
    fn elements_are_added_removed_or_left_alone() {
        let tap_a = tap('a');
        let wished = rules(Some([10, 0, 0, 5]), true, true).elements(&tap_a);
        let from_nothing = transaction(&Found::default(), &[tap_a.as_str()], &wished).unwrap();
        let added = "\
add element bridge paddock macs { \"pdt0123456789a\" . 02:00:00:00:00:01 }
add element bridge paddock addresses { \"pdt0123456789a\" . 02:00:00:00:00:01 . 10.0.0.5 }
add element bridge paddock served { \"pdt0123456789a\" }
add element bridge paddock hosted { \"pdt0123456789a\" }
";
        assert_eq!(from_nothing, format!("{}{added}", structure()));

        let mut found = Found {
            structure: true,
            elements: wished.clone(),
        };
        found
            .elements
            .extend(rules(None, false, false).elements(&tap('b')));
        assert_eq!(transaction(&found, &[tap_a.as_str()], &wished), None);
        let changed = rules(None, false, true).elements(&tap_a);
        assert_eq!(
            transaction(&found, &[tap_a.as_str()], &changed).unwrap(),
            "\
delete element bridge paddock addresses { \"pdt0123456789a\" . 02:00:00:00:00:01 . 10.0.0.5 }
delete element bridge paddock served { \"pdt0123456789a\" }
add element bridge paddock unassigned { \"pdt0123456789a\" }
"
        );
        // Removal touches no other tap.
        let text = transaction(&found, &[tap_a.as_str()], &BTreeSet::new()).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(
            text.lines()
                .all(|line| line.starts_with("delete") && line.contains("pdt0123456789a"))
        );
    }

    #[test]
    fn a_missing_structure_is_written_even_without_elements() {
        assert_eq!(
            transaction(&Found::default(), &[], &BTreeSet::new()),
            Some(structure())
        );
        let whole = Found {
            structure: true,
            ..Found::default()
        };
        assert_eq!(transaction(&whole, &[], &BTreeSet::new()), None);
    }

    /// A real listing of the structure with the elements of one tap and one
    /// uplink.
    const LISTING: &str = include_str!("expected/listing.json");

    #[test]
    fn a_listing_is_read_back() {
        let mut elements = rules(Some([10, 0, 0, 5]), true, false).elements(&tap('a'));
        elements.insert(Element::uplink(&InterfaceName::new("lan0").unwrap()));
        assert_eq!(
            parse_listing(LISTING),
            Ok(Found {
                structure: true,
                elements
            })
        );
    }

    #[test]
    fn a_changed_structure_is_noticed() {
        let structure_of = |text: &str| parse_listing(text).unwrap().structure;
        let listing: serde_json::Value = serde_json::from_str(LISTING).unwrap();
        let objects = listing["nftables"].as_array().unwrap();
        let mut dropped = 0;
        for index in 0..objects.len() {
            let kinds = ["rule", "chain", "set"];
            if !kinds.iter().any(|kind| objects[index].get(kind).is_some()) {
                continue;
            }
            let mut fewer = objects.clone();
            fewer.remove(index);
            assert!(
                !structure_of(&serde_json::json!({ "nftables": fewer }).to_string()),
                "{}",
                objects[index]
            );
            dropped += 1;
        }
        assert_eq!(
            dropped,
            RULES
                .iter()
                .map(|(_, rules)| rules.len() + 1)
                .sum::<usize>()
                + Set::ALL.len()
        );
        assert!(!structure_of(
            &LISTING.replace("\"prio\": -300", "\"prio\": 300")
        ));
        assert!(!structure_of(&LISTING.replace(&mark(), "paddock 00000000")));
        assert!(!structure_of("{\"nftables\": []}"));
    }

    #[test]
    fn a_listing_that_is_none_is_refused() {
        for text in ["", "[]", "{}", "{\"nftables\": [{\"set\": {}}]}"] {
            assert!(parse_listing(text).is_err(), "{text}");
        }
        let odd = "{\"nftables\": [{\"set\": {\"name\": \"macs\", \"elem\": [7]}}]}";
        assert_eq!(parse_listing(odd), Err("set macs: element 7".to_owned()));
    }
}
