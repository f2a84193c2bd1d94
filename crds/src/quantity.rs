//! Sizes in bytes as Kubernetes quantities.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use std::{borrow::Cow, fmt, str::FromStr};

/// A whole number of bytes written as a Kubernetes quantity (`192Mi`, `1Gi`, `1500M`, `1073741824`).
///
/// The text is kept as the user wrote it; [`ByteQuantity::bytes`] is the value.
#[derive(Clone, Debug)]
pub struct ByteQuantity {
    text: String,
    bytes: u64,
}

/// A text that is no whole, non-negative number of bytes below 2^63.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidQuantity(pub String);

impl fmt::Display for InvalidQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is not a whole number of bytes: expected a quantity such as 512Mi, 10Gi or 1073741824",
            self.0
        )
    }
}

impl std::error::Error for InvalidQuantity {}

impl ByteQuantity {
    /// The size in bytes, below 2^63.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A quantity of exactly `bytes`, written with the largest binary suffix that divides it.
    #[must_use]
    pub fn from_bytes(bytes: u64) -> Self {
        Self {
            text: format_bytes(bytes),
            bytes,
        }
    }
}

/// Writes bytes with the largest binary suffix that divides them (`1Gi`, `1536Mi`, `513`).
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const SUFFIXES: [(&str, u32); 5] = [("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
    SUFFIXES
        .iter()
        .find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift))
        .map_or_else(
            || bytes.to_string(),
            |(suffix, shift)| format!("{}{suffix}", bytes >> shift),
        )
}

impl FromStr for ByteQuantity {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidQuantity(text.chars().take(64).collect());
        if text.len() > 32 {
            return Err(invalid());
        }
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(split);
        let multiplier: u128 = match suffix {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "P" => 1_000_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            "Pi" => 1 << 50,
            _ => return Err(invalid()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 9 || whole.len() > 19 {
            return Err(invalid());
        }
        let digits: u128 = format!("{whole}{fraction}")
            .parse()
            .map_err(|_| invalid())?;
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| invalid())?);
        let product = digits.checked_mul(multiplier).ok_or_else(invalid)?;
        if !product.is_multiple_of(scale) || product / scale >= 1 << 63 {
            return Err(invalid());
        }
        let bytes = u64::try_from(product / scale).map_err(|_| invalid())?;
        Ok(Self {
            text: text.to_owned(),
            bytes,
        })
    }
}

impl PartialEq for ByteQuantity {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for ByteQuantity {}

impl fmt::Display for ByteQuantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for ByteQuantity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ByteQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(u64),
            Text(String),
        }
        let text = match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(n) => n.to_string(),
            IntOrString::Text(s) => s,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ByteQuantity {
    fn schema_name() -> Cow<'static, str> {
        "ByteQuantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 32,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_kubernetes_writes() {
        for (text, bytes) in [
            ("192Mi", 192 << 20),
            ("1Gi", 1 << 30),
            ("1.5Gi", 3 << 29),
            ("1500M", 1_500_000_000),
            ("1073741824", 1 << 30),
            ("0", 0),
            ("2040Gi", 2040 << 30),
        ] {
            assert_eq!(
                text.parse::<ByteQuantity>().map(|q| q.bytes()),
                Ok(bytes),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_size() {
        for text in [
            "",
            "-1",
            "1m",
            "0.5",
            "1 Gi",
            "1gb",
            "1Gib",
            "9223372036854775808",
            "1e3",
            ".",
            "1.0000000001Ki",
        ] {
            assert!(
                text.parse::<ByteQuantity>().is_err(),
                "{text:?} was accepted"
            );
        }
    }

    #[test]
    fn writes_the_largest_suffix_that_divides() {
        assert_eq!(format_bytes(1 << 30), "1Gi");
        assert_eq!(format_bytes((1 << 30) + (1 << 29)), "1536Mi");
        assert_eq!(format_bytes(513), "513");
        assert_eq!(format_bytes(0), "0");
    }
}
