//! Networks: who hears whom.

use crate::{
    cluster::Context,
    guest::{self, BOOT, Guest, Running, internal_network},
    runner::{Manner, Scenario},
    wait,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "external_guests_on_two_hosts_reach_each_other",
        manner: Manner::Beside,
        run: external,
    },
    Scenario {
        name: "private_guests_are_out_of_the_hosts_reach",
        manner: Manner::Beside,
        run: private,
    },
    Scenario {
        name: "forged_sources_are_not_heard",
        manner: Manner::Beside,
        run: forged,
    },
];

/// What curl ends with when nobody answers.
const NO_ROUTE: i32 = 7;
const TIMED_OUT: i32 = 28;

fn ping(cx: &Context<'_>, from: &Running, host: &str, to: &str) -> Result<i64> {
    let answer = guest::ask_patiently(cx, host, &from.address, &format!("ping?to={to}"))?;
    answer["replies"]
        .as_i64()
        .with_context(|| format!("ping answered {answer}"))
}

fn external(cx: &Context<'_>) -> Result<()> {
    // The lab's LAN bridge is 192.168.77.254: from there both are asked, the hosts have no address on the LAN.
    cx.kubectl.apply(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualNetwork\nmetadata: {name: lan}\nspec: {type: External, uplink: lan, subnet: 192.168.77.0/24, dhcp: {mode: Enabled, rangeStart: 192.168.77.20, rangeEnd: 192.168.77.120}}\n",
    )?;
    for (name, host) in [("ea", "host-a"), ("eb", "host-b")] {
        cx.kubectl.apply(
            &Guest {
                network: "lan",
                host,
                ..Guest::new(name)
            }
            .yaml(),
        )?;
    }
    let mut running = Vec::new();
    for (name, host) in [("ea", "host-a"), ("eb", "host-b")] {
        cx.kubectl
            .wait_condition(&format!("vm/{name}"), "Ready", BOOT)?;
        ensure!(
            cx.kubectl.text(&format!("vm/{name}"), "/status/host")? == host,
            "{name} is not on {host}"
        );
        let address = cx
            .kubectl
            .text(&format!("vm/{name}"), "/status/ipAddress")?;
        let says = wait::until(&format!("the page of {name} on the LAN"), BOOT, || {
            guest::ask(cx, "lab", &address, "status")
        })?;
        running.push(Running {
            host: host.to_owned(),
            address,
            process_id: 0,
            says,
        });
    }
    ensure!(
        running[0].address != running[1].address,
        "both have {}",
        running[0].address
    );
    for (from, to) in [(0, 1), (1, 0)] {
        let replies = ping(cx, &running[from], "lab", &running[to].address)?;
        ensure!(
            replies == 3,
            "{} of 3 replies from {} to {}",
            replies,
            running[from].host,
            running[to].host
        );
    }
    Ok(())
}

fn private(cx: &Context<'_>) -> Result<()> {
    let subnet = "192.168.68";
    let network = format!(
        "apiVersion: paddock.dev/v1alpha1\nkind: VirtualNetwork\nmetadata: {{name: between}}\nspec: {{type: Private, subnet: {subnet}.0/24, dhcp: {{mode: Enabled}}}}\n---\n"
    );
    // The first has a second adapter through which it can be asked.
    let asked = Guest::new("pa").machine_yaml().replace(
        "networkAdapters: [",
        "networkAdapters: [{name: secret, virtualNetworkRef: {name: between}}, ",
    );
    let secret = Guest {
        network: "between",
        host: "host-a",
        ..Guest::new("pb")
    };
    let asked_here = asked.replace(
        "spec:\n",
        "spec:\n  hostSelector: {matchLabels: {paddock.dev/test-host: host-a}}\n",
    );
    cx.kubectl.apply(
        &(network
            + &internal_network(69)
            + &Guest::new("pa").disk_yaml()
            + &asked_here
            + &secret.yaml()),
    )?;
    for name in ["pa", "pb"] {
        cx.kubectl
            .wait_condition(&format!("vm/{name}"), "Ready", BOOT)?;
    }
    let vm = cx.kubectl.get("vm/pa")?;
    let addresses: Vec<String> = vm["status"]["networkAdapters"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a["ipAddress"].as_str().map(str::to_owned))
        .collect();
    let open = addresses
        .iter()
        .find(|a| a.starts_with("192.168.69."))
        .context("no address on the Internal network")?;
    let hidden = cx.kubectl.text("vm/pb", "/status/ipAddress")?;
    ensure!(hidden.starts_with(subnet), "pb has {hidden}");
    let says = wait::until("the page of pa", BOOT, || {
        guest::ask(cx, "host-a", open, "status")
    })?;
    let from = Running {
        host: "host-a".into(),
        address: open.clone(),
        process_id: 0,
        says,
    };
    wait::until("pa hears pb", BOOT, || {
        let replies = ping(cx, &from, "host-a", &hidden)?;
        ensure!(replies == 3, "{replies} of 3 replies");
        Ok(())
    })?;
    // Guests hear each other; their host must not, though its bridge carries them.
    let page = format!("http://{hidden}/");
    let route = cx
        .lab
        .exec("host-a", &["curl", "--silent", "--max-time", "3", &page])?;
    ensure!(!route.status.success(), "the host reached {hidden}");
    // Not even with an address of the subnet on the bridge: the frames are dropped, not just unrouted.
    let uid = cx.kubectl.text("vnet/between", "/metadata/uid")?;
    let links = cx
        .lab
        .exec_ok("host-a", &["ip", "-j", "link", "show", "type", "bridge"])?;
    let links: Vec<Value> = serde_json::from_str(&links)?;
    let bridge = links
        .iter()
        .find(|link| link["ifalias"].as_str().is_some_and(|a| a.contains(&uid)))
        .and_then(|link| link["ifname"].as_str())
        .with_context(|| format!("no bridge on host-a for {uid}: {links:?}"))?;
    let claimed = format!("{subnet}.2/24");
    let address = |what: &str| {
        cx.lab
            .exec_ok("host-a", &["ip", "address", what, &claimed, "dev", bridge])
    };
    address("add")?;
    let reached = cx
        .lab
        .exec("host-a", &["curl", "--silent", "--max-time", "3", &page])?;
    address("del")?;
    ensure!(
        matches!(reached.status.code(), Some(NO_ROUTE | TIMED_OUT)),
        "with {claimed} on {bridge} the host reached {hidden}: {reached:?}"
    );
    Ok(())
}

fn forged(cx: &Context<'_>) -> Result<()> {
    let subnet = "192.168.70";
    cx.kubectl
        .apply(&(Guest::new("f").yaml() + &internal_network(70)))?;
    let running = guest::wait_running(cx, "f")?;
    let gateway = format!("{subnet}.1");
    let honest = ping(cx, &running, &running.host, &gateway)?;
    ensure!(
        honest == 3,
        "{honest} of 3 replies to honest pings: the test would prove nothing"
    );
    for forgery in [
        format!("ip={subnet}.200"),
        "mac=02:de:ad:be:ef:01".to_owned(),
    ] {
        let answer = guest::ask_patiently(
            cx,
            &running.host,
            &running.address,
            &format!("spoof?{forgery}&to={gateway}"),
        )?;
        ensure!(answer["replies"] == 0, "{forgery} was heard: {answer}");
    }
    // An entry that the host has already is what an unsolicited ARP would overwrite, if it were heard.
    let bridge = cx.lab.exec_ok(
        &running.host,
        &[
            "sh",
            "-c",
            &format!("ip -o -4 addr show | awk '$4 ~ /^{subnet}\\./ {{print $2}}'"),
        ],
    )?;
    let claimed = format!("{subnet}.201");
    cx.lab.exec_ok(
        &running.host,
        &[
            "ip",
            "neigh",
            "replace",
            &claimed,
            "lladdr",
            "02:00:00:00:00:01",
            "dev",
            bridge.trim(),
            "nud",
            "stale",
        ],
    )?;
    guest::ask_patiently(
        cx,
        &running.host,
        &running.address,
        &format!("spoof?arp={claimed}"),
    )?;
    let neighbour = cx
        .lab
        .exec_ok(&running.host, &["ip", "neigh", "show", &claimed])?;
    ensure!(
        neighbour.contains("lladdr 02:00:00:00:00:01"),
        "the forged ARP was heard: {neighbour}"
    );
    let after = ping(cx, &running, &running.host, &gateway)?;
    ensure!(after == 3, "{after} of 3 replies after it stopped forging");
    Ok(())
}
