//! From the apply of a machine to Running, on hosts that pretend their guests.

use crate::{
    api_metrics::Writes,
    objects,
    report::{Figure, Report, percentile},
    watching::Readiness,
};
use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use kube::{Api, Client, api::PostParams};
use paddock_crds::{VirtualHardDisk, VirtualMachine};
use paddock_lab::LabOptions;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(180);

/// 100 machines 100 ms apart, then 500 at 50 a second.
pub async fn measure(quick: bool) -> Result<Report> {
    let lab = objects::lab(LabOptions {
        hosts: 0,
        hollow_hosts: 4,
        ..LabOptions::default()
    })?;
    let client = objects::client(&lab).await?;
    objects::share_a_pool(&client, &lab).await?;
    objects::network(&client).await?;
    let scale = if quick { 10 } else { 1 };

    let slow = rate(&client, "slow", 100 / scale, Duration::from_millis(100)).await?;
    let fast = rate(&client, "fast", 500 / scale, Duration::from_millis(20)).await?;
    lab.down()?;

    let mut figures = vec![
        Figure::new(
            "apply -> Running, 10 VMs/s, P50",
            percentile(&slow.latencies, 50),
            "ms",
        )
        .goal(100.0)
        .kubevirt("15-18 s"),
        Figure::new(
            "apply -> Running, 10 VMs/s, P95",
            percentile(&slow.latencies, 95),
            "ms",
        )
        .goal(250.0)
        .kubevirt("24-28 s"),
        Figure::new(
            "apply -> Running, 10 VMs/s, worst",
            percentile(&slow.latencies, 100),
            "ms",
        ),
        Figure::new(
            "API writes of ours per VM, 10 VMs/s",
            slow.writes_per_vm,
            "writes",
        )
        .goal(7.0)
        .kubevirt("12.6"),
        Figure::new("events per VM, 10 VMs/s", slow.events_per_vm, "writes"),
        Figure::new(
            "refused writes (conflicts), 10 VMs/s",
            slow.failed,
            "writes",
        ),
        Figure::new(
            "apply -> Running, 50 VMs/s, P50",
            percentile(&fast.latencies, 50),
            "ms",
        ),
        Figure::new(
            "apply -> Running, 50 VMs/s, P95",
            percentile(&fast.latencies, 95),
            "ms",
        ),
        Figure::new(
            "API writes of ours per VM, 50 VMs/s",
            fast.writes_per_vm,
            "writes",
        ),
        Figure::new(
            "refused writes (conflicts), 50 VMs/s",
            fast.failed,
            "writes",
        ),
    ];
    for (what, count) in slow.by_kind {
        figures.push(Figure::new(
            format!("  of them {what}, per VM"),
            count,
            "writes",
        ));
    }
    Ok(Report::new("apply", quick, figures))
}

struct Outcome {
    latencies: Vec<f64>,
    writes_per_vm: f64,
    events_per_vm: f64,
    failed: f64,
    by_kind: Vec<(String, f64)>,
}

async fn rate(client: &Client, prefix: &str, count: usize, interval: Duration) -> Result<Outcome> {
    let names: Vec<String> = (0..count).map(|i| format!("{prefix}-{i}")).collect();
    let disks: Api<VirtualHardDisk> = Api::default_namespaced(client.clone());
    let mut ready_disks = Readiness::<VirtualHardDisk>::start(client).await?;
    let have = ready_disks.until(0, DEADLINE).await?.len();
    let making: Vec<_> = names
        .iter()
        .map(|n| objects::disk(n))
        .collect::<Result<_>>()?;
    stream::iter(making.iter().map(Ok))
        .try_for_each_concurrent(16, |disk| {
            let disks = disks.clone();
            async move { disks.create(&PostParams::default(), disk).await.map(drop) }
        })
        .await?;
    ready_disks.until(have + count, DEADLINE).await?;

    let machines: Api<VirtualMachine> = Api::default_namespaced(client.clone());
    let mut ready = Readiness::<VirtualMachine>::start(client).await?;
    let before_ready = ready.until(0, DEADLINE).await?.len();
    let before = Writes::now(client).await?;
    let start = tokio::time::Instant::now();
    let creating = stream::iter(names.iter().enumerate()).map(|(i, name)| {
        let machines = machines.clone();
        async move {
            let machine = objects::machine(name)?;
            tokio::time::sleep_until(start + interval * u32::try_from(i)?).await;
            let sent = Instant::now();
            machines.create(&PostParams::default(), &machine).await?;
            Ok::<_, anyhow::Error>((name.clone(), sent))
        }
    });
    // All wait for their own moment: none is held back by the answer of another.
    let creating = creating
        .buffer_unordered(count.max(1))
        .try_collect::<Vec<_>>();
    let watching = ready.until(before_ready + count, DEADLINE);
    let (sent, seen) = futures::try_join!(creating, watching)?;
    let mut latencies: Vec<f64> = sent
        .iter()
        .filter_map(|(name, sent)| {
            Some(
                seen.get(name)?
                    .saturating_duration_since(*sent)
                    .as_secs_f64()
                    * 1e3,
            )
        })
        .collect();
    latencies.sort_by(f64::total_cmp);

    let writes = Writes::now(client).await?.since(&before);
    let per_vm = |n: f64| n / count as f64;
    Ok(Outcome {
        latencies,
        // The machines themselves were created by this client.
        writes_per_vm: per_vm(writes.total()) - 1.0,
        events_per_vm: per_vm(writes.events),
        failed: writes.failed,
        by_kind: writes
            .paddock
            .iter()
            .map(|(k, v)| (k.clone(), per_vm(*v)))
            .collect(),
    })
}
