//! What a cluster at rest costs.

use crate::{
    api_metrics::Writes,
    objects,
    report::{Figure, Report},
    watching::Readiness,
};
use anyhow::{Context, Result};
use futures::{TryStreamExt, stream};
use kube::{Api, api::PostParams};
use paddock_crds::{VirtualHardDisk, VirtualMachine};
use paddock_lab::{Lab, LabOptions};
use std::{
    fs,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(600);

/// 1,000 machines on ten hosts, then a minute of doing nothing.
pub async fn measure(quick: bool) -> Result<Report> {
    let (count, idle) = if quick { (100, 6) } else { (1000, 60) };
    let options = LabOptions {
        hosts: 0,
        ..LabOptions::default()
    };
    // The control plane first and alone: a lab of its own starts in this time.
    let begun = Instant::now();
    let lab = objects::lab(LabOptions {
        control_plane_only: true,
        ..options.clone()
    })?;
    let control_plane = begun.elapsed();
    lab.up_again(&LabOptions {
        hollow_hosts: 10,
        timeout_seconds: 300,
        ..options
    })?;
    let client = objects::client(&lab).await?;
    objects::share_a_pool(&client, &lab).await?;
    objects::network(&client).await?;

    let disks: Api<VirtualHardDisk> = Api::default_namespaced(client.clone());
    let machines: Api<VirtualMachine> = Api::default_namespaced(client.clone());
    // One first, so that what is loaded once is not counted for each.
    let mut ready = Readiness::<VirtualMachine>::start(&client).await?;
    for (from, to) in [(0, 1), (1, count)] {
        if from == 1 {
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
        let before = operator_memory(&lab)?;
        stream::iter((from..to).map(Ok::<usize, anyhow::Error>))
            .try_for_each_concurrent(8, |i| {
                let (disks, machines) = (disks.clone(), machines.clone());
                async move {
                    let name = format!("steady-{i}");
                    disks
                        .create(&PostParams::default(), &objects::disk(&name)?)
                        .await?;
                    machines
                        .create(&PostParams::default(), &objects::machine(&name)?)
                        .await?;
                    Ok(())
                }
            })
            .await?;
        ready.until(to, DEADLINE).await?;
        if from == 1 {
            // Let what is under way come to an end before the minute begins.
            tokio::time::sleep(Duration::from_secs(15)).await;
            let after = operator_memory(&lab)?;
            let start = Writes::now(&client).await?;
            tokio::time::sleep(Duration::from_secs(idle)).await;
            let writes = Writes::now(&client).await?.since(&start);
            let grown = (after as f64 - before as f64) / (to - from) as f64 / 1000.0;
            lab.down()?;
            return Ok(Report::new(
                "steady",
                quick,
                vec![
                    Figure::new(
                        "own control plane from nothing to ready",
                        control_plane.as_secs_f64(),
                        "s",
                    )
                    .goal(10.0),
                    Figure::new(
                        format!("API writes in {idle} idle s, {count} VMs"),
                        writes.total() + writes.events,
                        "writes",
                    )
                    .goal(0.0),
                    Figure::new("  of them events", writes.events, "writes"),
                    Figure::new(
                        format!("lease renewals in {idle} s, 10 hosts and operator"),
                        writes.leases,
                        "writes",
                    ),
                    Figure::new(
                        "operator's memory growth per VM (its disk included)",
                        grown,
                        "KB",
                    )
                    .goal(15.0)
                    .kubevirt("173 KB"),
                    Figure::new("operator's memory", after as f64 / 1048576.0, "MiB"),
                ],
            ));
        }
    }
    anyhow::bail!("no machines were asked for")
}

/// Bytes of memory that the lab's operator alone takes (USS plus its share, PSS).
fn operator_memory(lab: &Lab) -> Result<u64> {
    let mine = lab.directory().to_string_lossy().into_owned();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(command) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words: Vec<_> = command
            .split(|b| *b == 0)
            .map(String::from_utf8_lossy)
            .collect();
        let is_operator = words
            .first()
            .is_some_and(|w| w.ends_with("/paddock-operator"));
        if is_operator && words.iter().any(|w| w.starts_with(&mine)) {
            let rollup = fs::read_to_string(entry.path().join("smaps_rollup"))
                .context("the operator's memory")?;
            let pss = rollup.lines().find_map(|l| {
                l.strip_prefix("Pss:")?
                    .trim()
                    .strip_suffix(" kB")?
                    .parse::<u64>()
                    .ok()
            });
            return pss.map(|kib| kib * 1024).context("the operator's Pss");
        }
    }
    anyhow::bail!("no operator of the lab in {mine} runs")
}
