//! From facts to the agent's part of the Host's status, and whether it differs from what the API has.

use super::facts::{Facts, Machine, PoolFact, Space};
use crate::instance::status::shorten;
use jiff::Timestamp;
use paddock_crds::{
    Host, HostSpec, HostStatus,
    host::{Accelerator, PoolState, PoolStatus, UplinkStatus},
    names::condition::{ACCELERATED, POOLS_AVAILABLE, UPLINKS_AVAILABLE},
    quantity::format_bytes,
    reference::{Condition, Time, condition},
};

/// What is kept from machines when the spec does not say: 512 MiB.
const DEFAULT_RESERVE: i64 = 512 << 20;
/// A change of a pool's space is told when it is at least this part of the capacity: 5 %.
const FREE_STEPS: i64 = 20;
const MAX_MESSAGE: usize = 512;

/// The agent's part of a Host's status. Free space that changed little is told as it was told before.
#[must_use]
pub fn build(
    machine: &Machine,
    facts: &Facts,
    spec: &HostSpec,
    generation: Option<i64>,
    before: &HostStatus,
    now: Timestamp,
) -> HostStatus {
    let pools: Vec<_> = spec
        .pools
        .iter()
        .filter_map(|pool| {
            let fact = facts.pools.get(&pool.name)?;
            let told = before.pools.iter().find(|told| told.name == pool.name);
            Some(pool_status(&pool.name, fact, told))
        })
        .collect();
    let uplinks: Vec<_> = spec
        .uplinks
        .iter()
        .filter_map(|uplink| {
            let fact = facts.uplinks.get(&uplink.name)?;
            Some(UplinkStatus {
                name: uplink.name.clone(),
                state: match fact {
                    Ok(()) => PoolState::Available,
                    Err(_) => PoolState::Unavailable,
                },
                message: fact.as_ref().err().map(|error| shorten(error, MAX_MESSAGE)),
            })
        })
        .collect();
    let troubles = |list: Vec<(&str, Option<&String>)>| -> Vec<String> {
        list.into_iter()
            .filter_map(|(name, message)| Some(format!("{name}: {}", message?)))
            .collect()
    };
    let pool_troubles = troubles(
        pools
            .iter()
            .map(|pool| (pool.name.as_str(), pool.message.as_ref()))
            .collect(),
    );
    let uplink_troubles = troubles(
        uplinks
            .iter()
            .map(|uplink| (uplink.name.as_str(), uplink.message.as_ref()))
            .collect(),
    );
    let reserve = spec
        .reserve
        .memory
        .as_ref()
        .map_or(DEFAULT_RESERVE, |memory| {
            i64::try_from(memory.bytes()).unwrap_or(i64::MAX)
        });
    let memory = machine.capacity.memory_bytes.saturating_sub(reserve).max(0);
    let conditions = [
        available(
            POOLS_AVAILABLE,
            &pool_troubles,
            "PoolsAvailable",
            "PoolUnavailable",
            "every pool can be used",
        ),
        available(
            UPLINKS_AVAILABLE,
            &uplink_troubles,
            "UplinksAvailable",
            "UplinkUnavailable",
            "every uplink can be used",
        ),
        accelerated(facts.accelerator.as_ref()),
    ]
    .into_iter()
    .map(|new| with_time(new, &before.conditions, generation, now))
    .collect();
    HostStatus {
        observed_generation: generation,
        capacity: Some(machine.capacity.clone()),
        memory: Some(format_bytes(u64::try_from(memory).unwrap_or(0))),
        accelerator: facts.accelerator.as_ref().map(|(found, _)| *found),
        backend: Some(machine.backend),
        pools,
        uplinks,
        boot_id: Some(machine.boot_id.clone()),
        agent_version: Some(machine.agent_version.clone()),
        conditions,
        ..HostStatus::default()
    }
}

/// The agent's part of the status that the API has.
#[must_use]
pub fn own_part(host: &Host) -> HostStatus {
    let Some(status) = host.status.clone() else {
        return HostStatus::default();
    };
    HostStatus {
        observed_generation: status.observed_generation,
        capacity: status.capacity,
        memory: status.memory,
        accelerator: status.accelerator,
        backend: status.backend,
        pools: status.pools,
        uplinks: status.uplinks,
        boot_id: status.boot_id,
        agent_version: status.agent_version,
        conditions: [POOLS_AVAILABLE, UPLINKS_AVAILABLE, ACCELERATED]
            .iter()
            .filter_map(|type_| condition(&status.conditions, type_).cloned())
            .collect(),
        // What is the operator's is not compared: it would be written again and again.
        ..HostStatus::default()
    }
}

fn pool_status(name: &str, fact: &PoolFact, told: Option<&PoolStatus>) -> PoolStatus {
    match fact {
        Ok(space) => {
            let space = space_to_tell(*space, told);
            PoolStatus {
                name: name.to_owned(),
                capacity_bytes: Some(space.capacity),
                free_bytes: Some(space.free),
                state: PoolState::Available,
                message: None,
            }
        }
        Err(error) => PoolStatus {
            name: name.to_owned(),
            capacity_bytes: None,
            free_bytes: None,
            state: PoolState::Unavailable,
            message: Some(shorten(error, MAX_MESSAGE)),
        },
    }
}

/// The space of a pool as it is told: as before while neither its free space nor its capacity changed much. Of some
/// file systems, as of those that share a device, the capacity moves with what is free.
fn space_to_tell(space: Space, told: Option<&PoolStatus>) -> Space {
    let before = told.and_then(|told| {
        Some(Space {
            capacity: told.capacity_bytes?,
            free: told.free_bytes?,
        })
    });
    let step = space.capacity / FREE_STEPS;
    let close = |a: i64, b: i64| a == b || (a - b).abs() < step;
    before
        .filter(|b| close(b.free, space.free) && close(b.capacity, space.capacity))
        .unwrap_or(space)
}

struct New {
    type_: &'static str,
    status: &'static str,
    reason: &'static str,
    message: String,
}

fn available(
    type_: &'static str,
    troubles: &[String],
    good: &'static str,
    bad: &'static str,
    message: &str,
) -> New {
    if troubles.is_empty() {
        New {
            type_,
            status: "True",
            reason: good,
            message: message.to_owned(),
        }
    } else {
        New {
            type_,
            status: "False",
            reason: bad,
            message: shorten(&troubles.join("; "), 2048),
        }
    }
}

fn accelerated(found: Option<&(Accelerator, String)>) -> New {
    let (status, reason, message) = match found {
        None => (
            "Unknown",
            "Probing",
            "a guest is run to find out what this host can do",
        ),
        Some((Accelerator::Kvm, message)) => ("True", "Hardware", message.as_str()),
        Some((Accelerator::Emulation, message)) => ("False", "Emulation", message.as_str()),
        Some((Accelerator::None, message)) => ("False", "NoGuestRuns", message.as_str()),
    };
    New {
        type_: ACCELERATED,
        status,
        reason,
        message: shorten(message, 2048),
    }
}

fn with_time(new: New, before: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
    let since = condition(before, new.type_)
        .filter(|old| old.status == new.status)
        .map_or(Time(now), |old| old.last_transition_time.clone());
    Condition {
        type_: new.type_.to_owned(),
        status: new.status.to_owned(),
        reason: new.reason.to_owned(),
        message: new.message,
        observed_generation: generation,
        last_transition_time: since,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_crds::host::{Backend, Capacity, Committed, HostState, Pool, PoolScope, Uplink};

    fn machine() -> Machine {
        Machine {
            capacity: Capacity {
                cores: 4,
                memory_bytes: 8 << 30,
            },
            boot_id: "boot".into(),
            agent_version: "1".into(),
            backend: Backend::Qemu,
        }
    }

    fn spec() -> HostSpec {
        HostSpec {
            pools: vec![Pool {
                name: "default".into(),
                path: "/p".into(),
                scope: PoolScope::Local,
                kinds: vec![],
            }],
            uplinks: vec![Uplink {
                name: "lan".into(),
                interface: "lan0".into(),
            }],
            ..HostSpec::default()
        }
    }

    fn facts(free: i64) -> Facts {
        Facts {
            pools: [(
                "default".to_owned(),
                Ok(Space {
                    capacity: 1000,
                    free,
                }),
            )]
            .into(),
            uplinks: [("lan".to_owned(), Ok(()))].into(),
            accelerator: Some((Accelerator::Emulation, "no KVM".into())),
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn says_everything_once_and_the_same_again() {
        let first = build(
            &machine(),
            &facts(500),
            &spec(),
            Some(2),
            &HostStatus::default(),
            at(1),
        );
        assert_eq!(first.memory.as_deref(), Some("7680Mi"));
        assert_eq!(first.pools[0].free_bytes, Some(500));
        let told: Vec<_> = first
            .conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("PoolsAvailable", "True", "PoolsAvailable"),
                ("UplinksAvailable", "True", "UplinksAvailable"),
                ("Accelerated", "False", "Emulation"),
            ]
        );
        let again = build(&machine(), &facts(500), &spec(), Some(2), &first, at(99));
        assert_eq!(again, first);
    }

    #[test]
    fn free_space_is_told_in_steps_of_a_twentieth() {
        let told = build(
            &machine(),
            &facts(500),
            &spec(),
            None,
            &HostStatus::default(),
            at(1),
        );
        for (free, expected) in [(549, 500), (451, 500), (550, 550), (450, 450)] {
            let new = build(&machine(), &facts(free), &spec(), None, &told, at(2));
            assert_eq!(new.pools[0].free_bytes, Some(expected), "{free}");
        }
    }

    #[test]
    fn a_capacity_that_moves_a_little_is_not_told() {
        let space = |capacity, free| {
            let mut facts = facts(0);
            let space = Space { capacity, free };
            facts.pools.insert("default".into(), Ok(space));
            facts
        };
        let told = |facts: &Facts, before: &HostStatus| {
            build(&machine(), facts, &spec(), None, before, at(1))
        };
        let first = told(&space(1000, 500), &HostStatus::default());
        for (capacity, free, expected) in [
            (1001, 501, (1000, 500)),
            (960, 460, (1000, 500)),
            (1060, 500, (1060, 500)),
            (1000, 560, (1000, 560)),
        ] {
            let new = told(&space(capacity, free), &first);
            let pool = &new.pools[0];
            let found = (pool.capacity_bytes, pool.free_bytes);
            assert_eq!(found, (Some(expected.0), Some(expected.1)), "{capacity}");
        }
    }

    #[test]
    fn troubles_name_the_pool_and_the_uplink() {
        let mut facts = facts(500);
        facts.pools.insert("default".into(), Err("gone".into()));
        facts
            .uplinks
            .insert("lan".into(), Err("has an address".into()));
        let before = build(
            &machine(),
            &super::tests::facts(500),
            &spec(),
            None,
            &HostStatus::default(),
            at(1),
        );
        let status = build(&machine(), &facts, &spec(), None, &before, at(5));
        assert_eq!(status.pools[0].state, PoolState::Unavailable);
        assert_eq!(status.pools[0].message.as_deref(), Some("gone"));
        assert_eq!(status.pools[0].free_bytes, None);
        let pools = condition(&status.conditions, POOLS_AVAILABLE).unwrap();
        assert_eq!(
            (pools.status.as_str(), pools.message.as_str()),
            ("False", "default: gone")
        );
        assert_eq!(pools.last_transition_time, Time(at(5)));
        let uplinks = condition(&status.conditions, UPLINKS_AVAILABLE).unwrap();
        assert_eq!(uplinks.message, "lan: has an address");
        let accelerated = condition(&status.conditions, ACCELERATED).unwrap();
        assert_eq!(accelerated.last_transition_time, Time(at(1)));
    }

    #[test]
    fn the_operators_part_is_not_the_agents() {
        let mut host = Host::new("h", spec());
        let own = build(
            &machine(),
            &facts(1),
            &spec(),
            None,
            &HostStatus::default(),
            at(1),
        );
        let mut status = own.clone();
        status.state = Some(HostState::Ready);
        status.host_epoch = Some(4);
        status.out_of_service_token = Some("t".into());
        status.out_of_service_epoch = Some(4);
        status.committed = vec![Committed {
            pool: "default".into(),
            bytes: 1 << 30,
            disks: 1,
        }];
        status.storage = Some("default 1 GiB/2 GiB".into());
        status.conditions.insert(
            0,
            Condition {
                type_: "Ready".into(),
                status: "True".into(),
                reason: "r".into(),
                message: String::new(),
                observed_generation: None,
                last_transition_time: Time(at(3)),
            },
        );
        host.status = Some(status);
        assert_eq!(own_part(&host), own);
    }

    #[test]
    fn a_reserve_larger_than_the_machine_leaves_nothing() {
        let mut spec = spec();
        spec.reserve.memory = Some("16Gi".parse().unwrap());
        let status = build(
            &machine(),
            &facts(1),
            &spec,
            None,
            &HostStatus::default(),
            at(1),
        );
        assert_eq!(status.memory.as_deref(), Some("0"));
    }
}
