//! The core of Hosts: whether a host takes machines, its lease, and a person's word that it is off.

use crate::{
    conditions::{Answer, Writer},
    identity::deleting,
    lease::{LeaseRecord, LeaseState},
    memory::readable,
    placement::Availability,
};
use paddock_crds::{
    Host, HostStatus,
    host::{Committed, HostState},
    names::condition::READY,
    reference::{Condition, Time, condition},
};

/// Whether a host takes machines.
#[must_use]
pub fn availability(host: &Host, lease: Option<&LeaseRecord>) -> Availability {
    let no = |reason, message: String| Availability::NotReady { reason, message };
    let status = host.status.as_ref();
    let known = status.and_then(|s| s.host_epoch).unwrap_or(0);
    let Some(lease) = lease else {
        return no("NoLease", "its lease is being made".to_owned());
    };
    if deleting(&host.metadata) {
        return no("Deleting", "it is being deleted".to_owned());
    }
    if lease.epoch < known {
        return no(
            "EpochRegression",
            format!(
                "its lease says epoch {}, but epoch {known} was given out already; nothing starts there until the lease is made again above it",
                lease.epoch
            ),
        );
    }
    match lease.state {
        LeaseState::Fenced if lease.nonce.is_none() => {
            no("NotJoined", "its agent has not joined yet".to_owned())
        }
        LeaseState::Fenced => no(
            "LeaseExpired",
            format!(
                "its agent has been silent since epoch {} ended",
                lease.epoch - 1
            ),
        ),
        LeaseState::Held if status.and_then(|s| s.capacity.as_ref()).is_none() => no(
            "NotReported",
            "its agent has not reported its capacity yet".to_owned(),
        ),
        LeaseState::Held => Availability::Ready { epoch: lease.epoch },
    }
}

/// The epoch below which a person's word has ended everything on a host.
#[must_use]
pub fn ended_below(host: &Host) -> Option<i64> {
    host.status.as_ref()?.out_of_service_epoch
}

/// The operator's part of a Host's status.
#[derive(Clone, Debug, PartialEq)]
pub struct OperatorPart {
    /// What the host is doing.
    pub state: HostState,
    /// The epoch in its lease.
    pub host_epoch: Option<i64>,
    /// The token that was acted upon.
    pub out_of_service_token: Option<String>,
    /// The epoch below which it ended everything.
    pub out_of_service_epoch: Option<i64>,
    /// What the disks in its pools are committed to.
    pub committed: Vec<Committed>,
    /// The same in words, against the pools' capacity.
    pub storage: Option<String>,
    /// The condition Ready.
    pub ready: Condition,
}

impl OperatorPart {
    /// The operator's part as the API shows it now; none before it was first written.
    #[must_use]
    pub fn of(status: &HostStatus) -> Option<Self> {
        Some(Self {
            state: status.state?,
            host_epoch: status.host_epoch,
            out_of_service_token: status.out_of_service_token.clone(),
            out_of_service_epoch: status.out_of_service_epoch,
            committed: status.committed.clone(),
            storage: status.storage.clone(),
            ready: condition(&status.conditions, READY)?.clone(),
        })
    }
}

/// What the disks in a host's pools are committed to, against the pools' capacity, for people; none without disks.
#[must_use]
pub fn storage(host: &Host, committed: &[Committed]) -> Option<String> {
    let parts: Vec<String> = committed
        .iter()
        .filter(|c| c.disks > 0)
        .map(|c| {
            let pools = host.status.iter().flat_map(|s| &s.pools);
            let found = pools.clone().find(|p| p.name == c.pool);
            let capacity = found
                .and_then(|p| p.capacity_bytes)
                .and_then(|bytes| u64::try_from(bytes).ok());
            let bytes = u64::try_from(c.bytes).unwrap_or(0);
            match capacity {
                Some(capacity) => format!("{} {}/{}", c.pool, readable(bytes), readable(capacity)),
                None => format!("{} {}", c.pool, readable(bytes)),
            }
        })
        .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// What to do for one host.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Create its lease, fenced, with this epoch.
    pub create_lease: Option<i64>,
    /// The operator's part of its status.
    pub part: OperatorPart,
}

/// Decides for one host. `highest_epoch` is the highest that any instance, attachment or task on it names.
#[must_use]
pub fn decide(host: &Host, lease: Option<&LeaseRecord>, highest_epoch: i64, now: &Time) -> Plan {
    let status = host.status.clone().unwrap_or_default();
    let known = status
        .host_epoch
        .unwrap_or(0)
        .max(status.out_of_service_epoch.unwrap_or(0))
        .max(highest_epoch);
    let create_lease = (lease.is_none() && !deleting(&host.metadata)).then_some(known + 1);
    let available = availability(host, lease);
    let token = host.spec.out_of_service.as_ref().map(|o| &o.token);
    let (mut acted, mut ended) = (
        status.out_of_service_token.clone(),
        status.out_of_service_epoch,
    );
    let mut ignored = None;
    match (token, lease) {
        // The token may be given again once it was taken away; what it ended stays ended.
        (None, _) => acted = None,
        (Some(token), _) if acted.as_ref() == Some(token) => {}
        (Some(token), Some(lease)) if lease.state == LeaseState::Fenced && lease.epoch >= known => {
            acted = Some(token.clone());
            ended = Some(lease.epoch);
        }
        (Some(_), _) => {
            ignored = Some(
                "; spec.outOfService is not acted upon while its agent renews its lease: turn the host off first",
            );
        }
    }
    let mut conditions = status.conditions.clone();
    let (state, answer, reason, message) = match available {
        Availability::Ready { epoch } => (
            HostState::Ready,
            Answer::True,
            "Ready",
            format!("it takes machines under epoch {epoch}"),
        ),
        Availability::NotReady { reason, message } => {
            let state = match reason {
                "LeaseExpired" => HostState::Silent,
                "NoLease" | "NotJoined" => HostState::Unknown,
                _ => HostState::NotReady,
            };
            let message = match (reason, &acted, ended) {
                ("LeaseExpired", Some(token), Some(epoch)) => format!(
                    "{message}; by outOfService token \"{token}\" everything below epoch {epoch} has ended"
                ),
                ("LeaseExpired", None, _) => format!(
                    "{message}; its machines may still run. If it is off for good, set spec.outOfService.token to release its machines and disks"
                ),
                _ => message,
            };
            (state, Answer::False, reason, message)
        }
    };
    Writer {
        conditions: &mut conditions,
        generation: host.metadata.generation,
        now,
    }
    .set(
        READY,
        answer,
        reason,
        format!("{message}{}", ignored.unwrap_or_default()),
    );
    let ready = conditions
        .into_iter()
        .find(|c| c.type_ == READY)
        .unwrap_or_else(|| unreachable!("it was set above"));
    Plan {
        create_lease,
        part: OperatorPart {
            state,
            host_epoch: lease
                .map(|l| l.epoch.max(status.host_epoch.unwrap_or(0)))
                .or(status.host_epoch),
            out_of_service_token: acted,
            out_of_service_epoch: ended,
            committed: status.committed,
            storage: status.storage,
            ready,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use paddock_crds::{
        HostSpec,
        host::{Capacity, OutOfService},
    };

    fn now() -> Time {
        Time(Timestamp::from_second(1).unwrap())
    }

    fn lease(state: LeaseState, epoch: i64) -> LeaseRecord {
        LeaseRecord {
            uid: "u".to_owned(),
            resource_version: "1".to_owned(),
            state,
            epoch,
            nonce: Some("n".to_owned()),
            fence_milliseconds: 4_000,
            kill_milliseconds: 500,
        }
    }

    fn host() -> Host {
        let mut host = Host::new("host-a", HostSpec::default());
        host.status = Some(HostStatus {
            capacity: Some(Capacity {
                cores: 4,
                memory_bytes: 8 << 30,
            }),
            ..HostStatus::default()
        });
        host
    }

    fn apply(host: &mut Host, part: OperatorPart) {
        let status = host.status.get_or_insert_default();
        status.state = Some(part.state);
        status.host_epoch = part.host_epoch;
        status.out_of_service_token = part.out_of_service_token;
        status.out_of_service_epoch = part.out_of_service_epoch;
        status.conditions = vec![part.ready];
    }

    #[test]
    fn a_lease_is_made_above_every_epoch_that_was_given_out() {
        let mut host = host();
        assert_eq!(decide(&host, None, 0, &now()).create_lease, Some(1));
        assert_eq!(decide(&host, None, 8, &now()).create_lease, Some(9));
        host.status.as_mut().unwrap().host_epoch = Some(11);
        assert_eq!(decide(&host, None, 8, &now()).create_lease, Some(12));
        let held = lease(LeaseState::Held, 11);
        assert_eq!(decide(&host, Some(&held), 8, &now()).create_lease, None);
    }

    #[test]
    fn ready_follows_the_lease() {
        let mut host = host();
        let plan = decide(&host, Some(&lease(LeaseState::Held, 2)), 0, &now());
        assert_eq!(plan.part.state, HostState::Ready);
        assert_eq!(plan.part.host_epoch, Some(2));
        assert_eq!(plan.part.ready.status, "True");
        apply(&mut host, plan.part);
        let plan = decide(&host, Some(&lease(LeaseState::Fenced, 3)), 0, &now());
        assert_eq!(plan.part.state, HostState::Silent);
        assert_eq!(plan.part.ready.reason, "LeaseExpired");
        apply(&mut host, plan.part);
        let plan = decide(&host, Some(&lease(LeaseState::Held, 2)), 0, &now());
        assert_eq!(plan.part.ready.reason, "EpochRegression");
        assert_eq!(plan.part.host_epoch, Some(3));
        let mut bare = host.clone();
        bare.status.as_mut().unwrap().capacity = None;
        let plan = decide(&bare, Some(&lease(LeaseState::Held, 3)), 0, &now());
        assert_eq!(plan.part.ready.reason, "NotReported");
    }

    #[test]
    fn a_word_counts_once_and_only_for_a_silent_host() {
        let mut host = host();
        host.spec.out_of_service = Some(OutOfService {
            token: "t1".to_owned(),
        });
        let plan = decide(&host, Some(&lease(LeaseState::Held, 4)), 4, &now());
        assert_eq!(plan.part.out_of_service_epoch, None);
        assert!(plan.part.ready.message.contains("turn the host off first"));
        let plan = decide(&host, Some(&lease(LeaseState::Fenced, 5)), 4, &now());
        assert_eq!(plan.part.out_of_service_epoch, Some(5));
        assert_eq!(plan.part.out_of_service_token.as_deref(), Some("t1"));
        apply(&mut host, plan.part);
        // It came back and fell silent again: the old word does not end what runs under epoch 5.
        let plan = decide(&host, Some(&lease(LeaseState::Fenced, 6)), 5, &now());
        assert_eq!(plan.part.out_of_service_epoch, Some(5));
        host.spec.out_of_service = Some(OutOfService {
            token: "t2".to_owned(),
        });
        let plan = decide(&host, Some(&lease(LeaseState::Fenced, 6)), 5, &now());
        assert_eq!(plan.part.out_of_service_epoch, Some(6));
    }

    #[test]
    fn storage_is_told_against_the_capacity_where_that_is_known() {
        use paddock_crds::host::{PoolState, PoolStatus};
        let committed = |pool: &str, bytes: i64, disks: i32| Committed {
            pool: pool.to_owned(),
            bytes,
            disks,
        };
        let mut host = host();
        host.status.as_mut().unwrap().pools = vec![PoolStatus {
            name: "default".to_owned(),
            capacity_bytes: Some(500 << 30),
            free_bytes: Some(1),
            state: PoolState::Available,
            message: None,
        }];
        assert_eq!(storage(&host, &[]), None);
        assert_eq!(storage(&host, &[committed("default", 0, 0)]), None);
        let all = [
            committed("default", 120 << 30, 3),
            committed("empty", 0, 0),
            committed("unseen", 3 << 20, 1),
        ];
        assert_eq!(
            storage(&host, &all).as_deref(),
            Some("default 120 GiB/500 GiB, unseen 3 MiB")
        );
        // More than there is: oversubscribed.
        assert_eq!(
            storage(&host, &[committed("default", 600 << 30, 9)]).as_deref(),
            Some("default 600 GiB/500 GiB")
        );
    }

    #[test]
    fn the_same_snapshot_gives_no_change() {
        let mut host = host();
        let held = lease(LeaseState::Held, 2);
        let first = decide(&host, Some(&held), 0, &now()).part;
        apply(&mut host, first.clone());
        let later = Time(Timestamp::from_second(99).unwrap());
        assert_eq!(decide(&host, Some(&held), 0, &later).part, first);
        assert_eq!(OperatorPart::of(host.status.as_ref().unwrap()), Some(first));
    }
}
