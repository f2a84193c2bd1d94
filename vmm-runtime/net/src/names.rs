//! Names on the host and the types behind them, all pure.
//!
//! Interface names are at most 15 bytes on Linux, so they carry a shortened
//! SHA-256 of the object's identity: `pdk` + 10 hex digits for a bridge,
//! `pdt` + 11 for a tap. The full identity lies in the interface's alias,
//! where [`crate::NetworkManager::list`] finds it again and where two
//! identities with the same short name are told apart.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// First letters of every bridge of ours.
pub const BRIDGE_PREFIX: &str = "pdk";
/// First letters of every tap of ours.
pub const TAP_PREFIX: &str = "pdt";
const BRIDGE_DIGITS: usize = 10;
const TAP_DIGITS: usize = 11;
/// Linux `IFNAMSIZ` less the terminating zero, in bytes.
const INTERFACE_NAME_BYTES: usize = 15;
/// Longest identity, in bytes; two of them and their words fit the 255 bytes
/// of an interface alias.
const IDENTITY_BYTES: usize = 100;

/// A name or address that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?} is not valid: expected {expected}")]
pub struct InvalidName {
    /// What was parsed.
    pub what: &'static str,
    /// The text that was given.
    pub found: String,
    /// The rule it breaks.
    pub expected: &'static str,
}

fn identity(what: &'static str, text: &str) -> Result<String, InvalidName> {
    let fine = (1..=IDENTITY_BYTES).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if fine {
        Ok(text.to_owned())
    } else {
        Err(InvalidName {
            what,
            found: text.chars().take(2 * IDENTITY_BYTES).collect(),
            expected: "1 to 100 letters, digits, '-', '.' or '_'",
        })
    }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses the text; fails when it breaks the type's rule.
            pub fn new(text: &str) -> Result<Self, InvalidName> {
                let parse: fn(&str) -> Result<String, InvalidName> = $parse;
                parse(text).map(Self)
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
    };
}

text_type!(
    /// What tells one network from all others: its uid.
    NetworkId,
    |text| identity("network id", text)
);
text_type!(
    /// Whose adapter it is: the uid of the instance.
    OwnerId,
    |text| identity("owner uid", text)
);
text_type!(
    /// An adapter's name, unique within its owner.
    AdapterName,
    |text| identity("adapter name", text)
);
text_type!(
    /// A network interface of the host, such as an uplink.
    InterfaceName,
    |text| {
        let fine = (1..=INTERFACE_NAME_BYTES).contains(&text.len())
            && text != "."
            && text != ".."
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'@'));
        if fine {
            Ok(text.to_owned())
        } else {
            Err(InvalidName {
                what: "interface",
                found: text.chars().take(64).collect(),
                expected: "1 to 15 letters, digits, '-', '.', '_' or '@'",
            })
        }
    }
);
text_type!(
    /// A bridge of ours: `pdk` and 10 hex digits.
    BridgeName,
    |text| own_name("bridge", text, BRIDGE_PREFIX, BRIDGE_DIGITS, "pdk and 10 hex digits")
);
text_type!(
    /// A tap of ours: `pdt` and 11 hex digits.
    TapName,
    |text| own_name("tap", text, TAP_PREFIX, TAP_DIGITS, "pdt and 11 hex digits")
);
text_type!(
    /// A host name for DHCP option 12: RFC 1123 labels joined by dots, at most
    /// 253 bytes.
    Hostname,
    |text| {
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        if text.len() <= 253 && text.split('.').all(label) {
            Ok(text.to_owned())
        } else {
            Err(InvalidName {
                what: "host name",
                found: text.chars().take(256).collect(),
                expected: "RFC 1123 labels joined by dots, at most 253 bytes",
            })
        }
    }
);

fn own_name(
    what: &'static str,
    text: &str,
    prefix: &str,
    digits: usize,
    expected: &'static str,
) -> Result<String, InvalidName> {
    let fine = text.strip_prefix(prefix).is_some_and(|rest| {
        rest.len() == digits && rest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    if fine {
        Ok(text.to_owned())
    } else {
        Err(InvalidName {
            what,
            found: text.chars().take(64).collect(),
            expected,
        })
    }
}

impl BridgeName {
    /// The bridge of this network: the same on every host.
    pub fn of(network: &NetworkId) -> Self {
        Self(format!(
            "{BRIDGE_PREFIX}{}",
            short_hash(&["network", network.as_str()], BRIDGE_DIGITS)
        ))
    }
}

impl TapName {
    /// The tap of this owner's adapter: the same on every host.
    pub fn of(owner: &OwnerId, adapter: &AdapterName) -> Self {
        let parts = ["adapter", owner.as_str(), adapter.as_str()];
        Self(format!("{TAP_PREFIX}{}", short_hash(&parts, TAP_DIGITS)))
    }
}

/// The first `digits` hex digits of the SHA-256 of the parts, each followed
/// by a zero byte so that no two lists of parts read alike.
fn short_hash(parts: &[&str], digits: usize) -> String {
    digest(parts)
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|nibble| char::from_digit(u32::from(nibble), 16))
        .take(digits)
        .collect()
}

fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    hash.finalize().into()
}

/// A unicast Ethernet address, written `52:54:00:12:34:56`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// Takes six bytes; refuses group addresses and all zeroes, which no
    /// adapter can send from.
    pub fn new(bytes: [u8; 6]) -> Result<Self, InvalidName> {
        if bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(InvalidName {
                what: "MAC address",
                found: write_mac(&bytes),
                expected: "a unicast address that is not all zeroes",
            });
        }
        Ok(Self(bytes))
    }

    /// The six bytes in the order they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// A locally administered address that depends on the network alone:
    /// source of its DHCP answers, and the host's own on an Internal network.
    pub fn of_network(network: &NetworkId) -> Self {
        let hash = digest(&["mac", network.as_str()]);
        Self([0x02, hash[0], hash[1], hash[2], hash[3], hash[4]])
    }
}

fn write_mac(b: &[u8; 6]) -> String {
    format!(
        "{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}",
        b[0], b[1], b[2], b[3], b[4], b[5]
    )
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&write_mac(&self.0))
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName {
            what: "MAC address",
            found: text.chars().take(64).collect(),
            expected: "six pairs of hex digits joined by ':'",
        };
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|p| p.len() == 2).ok_or_else(invalid)?;
            // from_str_radix would take a sign.
            if !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        if pairs.next().is_some() {
            return Err(invalid());
        }
        Self::new(bytes)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_the_identity_alone() {
        let network = NetworkId::new("8d4c2f9e-5c3c-4c0e-9a52-0d6a4a6f0001").unwrap();
        assert_eq!(BridgeName::of(&network).as_str(), "pdk58e65ca2c2");
        let owner = OwnerId::new("0a0b").unwrap();
        let tap = TapName::of(&owner, &AdapterName::new("lan").unwrap());
        assert_eq!(tap.as_str(), "pdtde0a025533b");
        assert_eq!(
            BridgeName::new(BridgeName::of(&network).as_str()).unwrap(),
            BridgeName::of(&network)
        );
        assert_eq!(TapName::new(tap.as_str()).unwrap(), tap);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(short_hash(&["ab", "c"], 11), short_hash(&["a", "bc"], 11));
    }

    #[test]
    fn names_of_others_are_refused() {
        for text in [
            "pdk",
            "pdk012345678",
            "pdk01234567890",
            "pdk012345678g",
            "pdk012345678A",
            "br0",
        ] {
            assert!(BridgeName::new(text).is_err(), "{text}");
        }
        assert!(TapName::new("pdt0123456789").is_err());
        assert!(TapName::new("pdk0123456789a").is_err());
        for text in ["", "a b", "eth0\n", "0123456789abcdef", "..", "a/b", "a\"b"] {
            assert!(InterfaceName::new(text).is_err(), "{text}");
        }
        assert!(NetworkId::new(&"x".repeat(101)).is_err());
        assert!(NetworkId::new("").is_err());
    }

    #[test]
    fn mac_addresses_parse_and_print() {
        let mac: MacAddress = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
        for text in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:0f:11",
            "52:54:00:ab:cd:+f",
            "53:54:00:ab:cd:0f",
            "00:00:00:00:00:00",
            "5254:00:ab:cd:0f",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn host_names_follow_rfc_1123() {
        assert_eq!(
            Hostname::new("vm-1.example").unwrap().as_str(),
            "vm-1.example"
        );
        for text in ["", "-a", "a-", "a..b", "a_b", "a b", &"x".repeat(64)] {
            assert!(Hostname::new(text).is_err(), "{text}");
        }
    }
}
