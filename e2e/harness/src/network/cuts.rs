//! Cut cables: silent drops on the lab's bridges, written as one nftables ruleset that replaces the one before.
//!
//! A dropped frame leaves no trace at the sender, as with a pulled switch: connections stall instead of ending.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

/// Which way a management link is cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Frames from the host are lost; it still hears the API server.
    ToApi,
    /// Frames to the host are lost; the API server still hears it.
    FromApi,
    /// Nothing passes.
    #[default]
    Both,
}

impl Direction {
    /// Both cuts at once.
    pub fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Both }
    }

    fn loses_sent(self) -> bool {
        self != Self::FromApi
    }

    fn loses_received(self) -> bool {
        self != Self::ToApi
    }
}

/// The links that are cut, by the name of their bridge port.
pub type Cuts = BTreeMap<String, Direction>;

/// The nftables ruleset that drops exactly the frames of `cuts`.
///
/// The hooks are those that see traffic of the bridge itself too, so a cut LAN link is cut from the lab's own address as well.
pub fn ruleset(cuts: &Cuts) -> String {
    let mut text = String::from(
        "table bridge paddock_lab\ndelete table bridge paddock_lab\ntable bridge paddock_lab {\n",
    );
    for (chain, hook, key, wanted) in [
        (
            "from_port",
            "prerouting",
            "iifname",
            Direction::loses_sent as fn(Direction) -> bool,
        ),
        (
            "to_port",
            "postrouting",
            "oifname",
            Direction::loses_received,
        ),
    ] {
        let _ = writeln!(
            text,
            "  chain {chain} {{\n    type filter hook {hook} priority -400; policy accept;"
        );
        for (port, direction) in cuts {
            if wanted(*direction) {
                let _ = writeln!(text, "    {key} \"{port}\" drop");
            }
        }
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_way_and_both_ways() {
        let cuts = Cuts::from([
            ("m0".into(), Direction::ToApi),
            ("m1".into(), Direction::FromApi),
            ("l2".into(), Direction::Both),
        ]);
        assert_eq!(
            ruleset(&cuts),
            r#"table bridge paddock_lab
delete table bridge paddock_lab
table bridge paddock_lab {
  chain from_port {
    type filter hook prerouting priority -400; policy accept;
    iifname "l2" drop
    iifname "m0" drop
  }
  chain to_port {
    type filter hook postrouting priority -400; policy accept;
    oifname "l2" drop
    oifname "m1" drop
  }
}
"#
        );
    }

    #[test]
    fn nothing_cut_drops_nothing() {
        assert!(!ruleset(&Cuts::new()).contains("drop"));
    }

    #[test]
    fn cuts_add_up() {
        assert_eq!(Direction::ToApi.and(Direction::ToApi), Direction::ToApi);
        assert_eq!(Direction::ToApi.and(Direction::FromApi), Direction::Both);
        assert_eq!(Direction::Both.and(Direction::FromApi), Direction::Both);
    }
}
