//! Machines that are planned together before any step is taken share nothing once all steps are.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A panic is a test's answer.

mod lab;

use lab::Lab;
use paddock_planner::{ObjectKey, machine::instance_memory};
use proptest::prelude::*;
use std::collections::BTreeSet;

const HOST_MEBIBYTES: u64 = 900;

/// Memory in MiB and adapters to give to a machine, or a start anew.
#[derive(Clone, Debug)]
enum Op {
    Change(usize, u64, usize),
    Restart(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (0..4usize, 1..6u64, 0..4usize).prop_map(|(m, n, a)| Op::Change(m, n * 40, a)),
        1 => (0..4usize).prop_map(Op::Restart),
    ]
}

fn check(lab: &Lab) -> Result<(), TestCaseError> {
    let world = lab.cache.world();
    let (mut addresses, mut macs, mut memory) = (BTreeSet::new(), BTreeSet::new(), 0);
    for (key, instance) in world.instances.all() {
        memory += instance_memory(instance);
        for adapter in &instance.spec.config.network_adapters {
            prop_assert!(
                addresses.insert(adapter.ip_address.clone().unwrap()),
                "{key}: {adapter:?}"
            );
            prop_assert!(
                macs.insert(adapter.mac_address.clone()),
                "{key}: {adapter:?}"
            );
        }
    }
    prop_assert!(memory <= HOST_MEBIBYTES << 20, "{memory} bytes are given");
    // The sum that is kept is that of all that instances and plans take.
    let each = world.machines.all().map(|(key, _)| {
        let placed = world.instances.get(key).map(|i| instance_memory(i));
        let planned = world.index.reservation(key).map(|r| r.memory);
        (placed.max(planned).unwrap_or(0), placed.unwrap_or(0), key)
    });
    let each: Vec<_> = each.collect();
    let all: u64 = each.iter().map(|(taken, ..)| taken).sum();
    let host = world.hosts.get(&ObjectKey::new("", "host-a")).unwrap();
    prop_assert_eq!(world.host_view(host, None).allocated, all);
    for (taken, placed, key) in each {
        let others = world.host_view(host, Some(key)).allocated;
        prop_assert_eq!(others, all - taken + placed);
    }
    Ok(())
}

async fn run(rounds: Vec<Vec<Op>>) -> Result<(), TestCaseError> {
    let lab = Lab::new(&format!("{HOST_MEBIBYTES}Mi")).await;
    let mut made = BTreeSet::new();
    for round in rounds {
        for op in round {
            match op {
                Op::Change(m, mebibytes, adapters) => {
                    made.insert(m);
                    lab.change(&format!("m{m}"), &format!("{mebibytes}Mi"), adapters);
                }
                Op::Restart(m) => lab.restart(&format!("m{m}")),
            }
        }
        for _ in 0..2 {
            let plans: Vec<_> = made
                .iter()
                .map(|m| (format!("m{m}"), lab.plan(&format!("m{m}"))))
                .collect();
            check(&lab)?;
            for (name, planned) in plans {
                lab.apply(&name, &planned);
                check(&lab)?;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_made_together_share_nothing(
        rounds in proptest::collection::vec(proptest::collection::vec(op(), 1..6), 1..6)
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(run(rounds))?;
    }
}

#[tokio::test]
async fn two_running_machines_get_an_adapter_at_once() {
    let rounds =
        [0, 1].map(|adapters| vec![Op::Change(0, 40, adapters), Op::Change(1, 40, adapters)]);
    run(rounds.to_vec()).await.unwrap();
}

#[tokio::test]
async fn two_running_machines_grow_at_once() {
    let rounds = [40, 250].map(|memory| vec![Op::Change(0, memory, 0), Op::Change(1, memory, 0)]);
    run(rounds.to_vec()).await.unwrap();
}
