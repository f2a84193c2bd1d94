//! The watch over the hosts' leases: who has fallen silent, and who is declared fenced.
//!
//! Sans IO: [`LeaseWatch::step`] takes the time and what happened, and answers with what to ask or write. Times are
//! durations on one clock of the operator's that runs while the machine sleeps; they are never compared with a
//! host's times or with `renewTime`.
//!
//! A host is fenced only after its nonce has stood still for [`patience`] while the operator's own reads went
//! well, and a read with quorum has shown the same nonce; the write carries that read's resource version, so that
//! a renewal that comes first wins.

use k8s_openapi::api::coordination::v1::Lease;
use paddock_crds::lease as annotation;
use std::{collections::BTreeMap, time::Duration};

/// `D_lease` of the default profile.
///
/// With clocks that run at most `rho` = 10 % wrong, a host that fences itself `D_fence` = 4 s after it sent its last
/// renewal, needs `K` = 0.5 s to close and a margin of 0.2 s, is certainly fenced
/// `1.1 * (4 / 0.9 + 0.5 + 0.2)` = 5.72 s after that renewal was seen.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(6);
/// The margin `m`, in milliseconds.
const MARGIN_MILLISECONDS: u64 = 200;
/// No lease is waited for longer than this, whatever it says of itself.
const LONGEST_FENCE_MILLISECONDS: u64 = 3_600_000;

/// Whether a host holds its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    /// The host renews it.
    Held,
    /// The operator's word: the host has to join anew.
    Fenced,
}

/// What a host's Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRecord {
    /// UID of the object.
    pub uid: String,
    /// Its resource version.
    pub resource_version: String,
    /// Held or fenced.
    pub state: LeaseState,
    /// The host epoch, at least 1.
    pub epoch: i64,
    /// The nonce of the last renewal; none before the host first joined.
    pub nonce: Option<String>,
    /// Milliseconds until the host fences itself.
    pub fence_milliseconds: u64,
    /// Milliseconds that it needs for that.
    pub kill_milliseconds: u64,
}

/// A Lease that does not say what a host's lease has to say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lease {name}: annotation {annotation} is {found:?}, expected {expected}")]
pub struct InvalidLease {
    name: String,
    annotation: &'static str,
    found: Option<String>,
    expected: &'static str,
}

impl LeaseRecord {
    /// Parses a host's Lease. Times that are absent are the default profile's; a nonsensical one is refused.
    pub fn parse(lease: &Lease) -> Result<Self, InvalidLease> {
        let get = |key: &'static str| lease.metadata.annotations.as_ref().and_then(|a| a.get(key));
        let invalid = |key, expected| InvalidLease {
            name: lease.metadata.name.clone().unwrap_or_default(),
            annotation: key,
            found: get(key).map(|v| v.chars().take(64).collect()),
            expected,
        };
        let milliseconds = |key, default: u64| match get(key) {
            None => Ok(default),
            Some(text) => text
                .parse::<u64>()
                .ok()
                .filter(|n| *n <= LONGEST_FENCE_MILLISECONDS)
                .ok_or_else(|| invalid(key, "milliseconds, at most 3600000")),
        };
        let state = match get(annotation::STATE).map(String::as_str) {
            Some(annotation::HELD) => LeaseState::Held,
            Some(annotation::FENCED) => LeaseState::Fenced,
            _ => return Err(invalid(annotation::STATE, "Held or Fenced")),
        };
        let epoch = get(annotation::EPOCH)
            .and_then(|text| text.parse::<i64>().ok())
            .filter(|epoch| *epoch >= 1)
            .ok_or_else(|| invalid(annotation::EPOCH, "a positive decimal"))?;
        Ok(Self {
            uid: lease.metadata.uid.clone().unwrap_or_default(),
            resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
            state,
            epoch,
            nonce: get(annotation::NONCE).cloned(),
            fence_milliseconds: milliseconds(annotation::FENCE_MILLISECONDS, 4_000)?,
            kill_milliseconds: milliseconds(annotation::KILL_MILLISECONDS, 500)?,
        })
    }
}

/// How long a lease's nonce must stand still: `(1+rho) * (D_fence/(1-rho) + K + m)` with rho = 10 %, by the times
/// that the last committed renewal itself names, and never below [`DEFAULT_PATIENCE`].
#[must_use]
pub fn patience(lease: &LeaseRecord) -> Duration {
    // 1.1 * (f / 0.9 + k + m) = (11 f / 9) + 1.1 (k + m), rounded up in whole milliseconds.
    let fence = (11 * lease.fence_milliseconds).div_ceil(9);
    let rest = (11 * (lease.kill_milliseconds + MARGIN_MILLISECONDS)).div_ceil(10);
    Duration::from_millis(fence + rest).max(DEFAULT_PATIENCE)
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A watch showed a lease.
    Seen {
        /// The host.
        host: String,
        /// Its lease.
        lease: LeaseRecord,
    },
    /// A watch showed that a lease is gone.
    Gone {
        /// The host.
        host: String,
    },
    /// The watch broke: time does not count until it is back.
    Interrupted,
    /// The watch is complete again: every lease is observed afresh.
    Resumed,
    /// Time went by.
    Tick,
    /// The answer to [`Action::Confirm`]; `None` is a read that failed.
    Confirmed {
        /// The host.
        host: String,
        /// What a read with quorum showed, if it went well.
        found: Option<Option<LeaseRecord>>,
    },
    /// The answer to [`Action::Fence`]: the lease as written, or `None` if it was not.
    Fenced {
        /// The host.
        host: String,
        /// The lease as written.
        written: Option<LeaseRecord>,
    },
}

/// What to ask or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the lease with quorum.
    Confirm {
        /// The host.
        host: String,
    },
    /// Write the lease as fenced by compare-and-swap.
    Fence {
        /// The host.
        host: String,
        /// The UID that it must still have.
        uid: String,
        /// The resource version that it must still have.
        resource_version: String,
        /// The new epoch.
        epoch: i64,
    },
}

#[derive(Clone, Debug)]
struct Watched {
    lease: LeaseRecord,
    since: Duration,
    asked: bool,
    looked_twice: bool,
}

/// The watch over the leases of all hosts.
#[derive(Clone, Debug, Default)]
pub struct LeaseWatch {
    held: BTreeMap<String, Watched>,
    reading: bool,
}

impl LeaseWatch {
    /// When time itself will next matter.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        if !self.reading {
            return None;
        }
        self.held
            .values()
            .filter(|w| !w.asked)
            .map(|w| w.since + patience(&w.lease))
            .min()
    }

    /// Takes one event in.
    pub fn step(&mut self, now: Duration, event: Event) -> Vec<Action> {
        match event {
            Event::Seen { host, lease } => {
                self.observe(now, host, lease);
                Vec::new()
            }
            Event::Gone { host } => {
                self.held.remove(&host);
                Vec::new()
            }
            Event::Interrupted => {
                self.reading = false;
                Vec::new()
            }
            Event::Resumed => {
                self.reading = true;
                for watched in self.held.values_mut() {
                    watched.since = now;
                    watched.asked = false;
                }
                Vec::new()
            }
            Event::Tick => self.tick(now),
            Event::Confirmed { host, found } => self.confirmed(now, host, found),
            Event::Fenced { host, written } => {
                match written {
                    Some(_) => {
                        self.held.remove(&host);
                    }
                    None => self.restart(now, &host),
                }
                Vec::new()
            }
        }
    }

    fn restart(&mut self, now: Duration, host: &str) {
        if let Some(watched) = self.held.get_mut(host) {
            watched.since = now;
            watched.asked = false;
        }
    }

    fn observe(&mut self, now: Duration, host: String, lease: LeaseRecord) {
        if lease.state == LeaseState::Fenced {
            self.held.remove(&host);
            return;
        }
        match self.held.get_mut(&host) {
            // The same renewal, perhaps with an edited label: its time runs on.
            Some(watched)
                if watched.lease.uid == lease.uid && watched.lease.nonce == lease.nonce =>
            {
                watched.lease = lease;
            }
            _ => {
                self.held.insert(
                    host,
                    Watched {
                        lease,
                        since: now,
                        asked: false,
                        looked_twice: false,
                    },
                );
            }
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Action> {
        if !self.reading {
            return Vec::new();
        }
        let expired: Vec<String> = self
            .held
            .iter()
            .filter(|(_, w)| !w.asked && now >= w.since + patience(&w.lease))
            .map(|(host, _)| host.clone())
            .collect();
        // When most hosts fall silent at once, the fault is more likely between the API and them, or here.
        let many = expired.len() > 1 && expired.len() * 2 > self.held.len();
        let mut actions = Vec::new();
        for host in expired {
            if let Some(watched) = self.held.get_mut(&host) {
                if many && !watched.looked_twice {
                    watched.looked_twice = true;
                    watched.since = now;
                } else {
                    watched.asked = true;
                    actions.push(Action::Confirm { host });
                }
            }
        }
        actions
    }

    fn confirmed(
        &mut self,
        now: Duration,
        host: String,
        found: Option<Option<LeaseRecord>>,
    ) -> Vec<Action> {
        let Some(watched) = self.held.get(&host).filter(|w| w.asked) else {
            return Vec::new();
        };
        match found {
            None => self.restart(now, &host),
            Some(None) => {
                self.held.remove(&host);
            }
            Some(Some(lease)) => {
                let silent = lease.state == LeaseState::Held
                    && lease.uid == watched.lease.uid
                    && lease.nonce == watched.lease.nonce;
                if silent && self.reading {
                    return vec![Action::Fence {
                        host,
                        uid: lease.uid,
                        resource_version: lease.resource_version,
                        epoch: lease.epoch + 1,
                    }];
                }
                self.restart(now, &host);
                self.observe(now, host, lease);
            }
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(nonce: &str, version: &str) -> LeaseRecord {
        LeaseRecord {
            uid: "u".to_owned(),
            resource_version: version.to_owned(),
            state: LeaseState::Held,
            epoch: 4,
            nonce: Some(nonce.to_owned()),
            fence_milliseconds: 4_000,
            kill_milliseconds: 500,
        }
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn seen(host: &str, lease: LeaseRecord) -> Event {
        Event::Seen {
            host: host.to_owned(),
            lease,
        }
    }

    fn confirm(host: &str) -> Vec<Action> {
        vec![Action::Confirm {
            host: host.to_owned(),
        }]
    }

    fn watching(lease: LeaseRecord) -> LeaseWatch {
        let mut watch = LeaseWatch::default();
        assert_eq!(watch.step(seconds(0), seen("a", lease)), []);
        assert_eq!(watch.step(seconds(0), Event::Resumed), []);
        watch
    }

    #[test]
    fn the_default_profile_needs_less_than_six_seconds() {
        assert_eq!(patience(&held("n", "1")), seconds(6));
        let mut tolerant = held("n", "1");
        tolerant.fence_milliseconds = 10_000;
        tolerant.kill_milliseconds = 1_000;
        // 1.1 * (10 / 0.9 + 1 + 0.2) = 13.54 s.
        assert_eq!(patience(&tolerant), Duration::from_millis(12_223 + 1_320));
    }

    #[test]
    fn a_silent_host_is_asked_once_then_fenced_with_the_version_of_the_answer() {
        let mut watch = watching(held("n1", "1"));
        assert_eq!(watch.next_deadline(), Some(seconds(6)));
        assert_eq!(watch.step(Duration::from_millis(5_999), Event::Tick), []);
        assert_eq!(watch.step(seconds(6), Event::Tick), confirm("a"));
        assert_eq!(watch.step(seconds(7), Event::Tick), []);
        let answer = Event::Confirmed {
            host: "a".to_owned(),
            found: Some(Some(held("n1", "9"))),
        };
        assert_eq!(
            watch.step(seconds(7), answer),
            [Action::Fence {
                host: "a".to_owned(),
                uid: "u".to_owned(),
                resource_version: "9".to_owned(),
                epoch: 5
            }]
        );
    }

    #[test]
    fn the_nonce_is_timed_not_the_version() {
        let mut watch = watching(held("n1", "1"));
        watch.step(seconds(5), seen("a", held("n1", "2")));
        assert_eq!(watch.step(seconds(6), Event::Tick), confirm("a"));
        let mut watch = watching(held("n1", "1"));
        watch.step(seconds(5), seen("a", held("n2", "2")));
        assert_eq!(watch.step(seconds(6), Event::Tick), []);
        assert_eq!(watch.step(seconds(11), Event::Tick), confirm("a"));
    }

    #[test]
    fn an_answer_with_another_nonce_starts_again() {
        let mut watch = watching(held("n1", "1"));
        watch.step(seconds(6), Event::Tick);
        let answer = Event::Confirmed {
            host: "a".to_owned(),
            found: Some(Some(held("n2", "9"))),
        };
        assert_eq!(watch.step(seconds(7), answer), []);
        assert_eq!(watch.step(seconds(12), Event::Tick), []);
        assert_eq!(watch.step(seconds(13), Event::Tick), confirm("a"));
    }

    #[test]
    fn time_counts_only_while_reads_succeed() {
        let mut watch = watching(held("n1", "1"));
        watch.step(seconds(3), Event::Interrupted);
        assert_eq!(watch.next_deadline(), None);
        assert_eq!(watch.step(seconds(60), Event::Tick), []);
        watch.step(seconds(60), Event::Resumed);
        assert_eq!(watch.step(seconds(65), Event::Tick), []);
        assert_eq!(watch.step(seconds(66), Event::Tick), confirm("a"));
        let failed = Event::Confirmed {
            host: "a".to_owned(),
            found: None,
        };
        assert_eq!(watch.step(seconds(70), failed), []);
        assert_eq!(watch.step(seconds(75), Event::Tick), []);
        assert_eq!(watch.step(seconds(76), Event::Tick), confirm("a"));
    }

    #[test]
    fn most_hosts_at_once_are_looked_at_twice() {
        let mut watch = LeaseWatch::default();
        for host in ["a", "b", "c"] {
            watch.step(seconds(0), seen(host, held("n", "1")));
        }
        watch.step(seconds(0), Event::Resumed);
        watch.step(seconds(5), seen("c", held("n2", "2")));
        assert_eq!(watch.step(seconds(6), Event::Tick), []);
        watch.step(seconds(11), seen("c", held("n3", "3")));
        let asked = watch.step(seconds(12), Event::Tick);
        assert_eq!(asked, [confirm("a"), confirm("b")].concat());
    }

    #[test]
    fn one_of_two_is_fenced_at_its_first_silence() {
        let mut watch = watching(held("n", "1"));
        watch.step(seconds(5), seen("b", held("n2", "2")));
        assert_eq!(watch.step(seconds(6), Event::Tick), confirm("a"));
    }

    #[test]
    fn a_lost_race_starts_again_and_a_fenced_lease_is_not_timed() {
        let mut watch = watching(held("n1", "1"));
        watch.step(seconds(6), Event::Tick);
        let lost = Event::Fenced {
            host: "a".to_owned(),
            written: None,
        };
        watch.step(seconds(7), lost);
        assert_eq!(watch.next_deadline(), Some(seconds(13)));
        let mut fenced = held("n1", "3");
        fenced.state = LeaseState::Fenced;
        watch.step(seconds(8), seen("a", fenced));
        assert_eq!(watch.next_deadline(), None);
    }

    #[test]
    fn parses_what_a_lease_says_and_refuses_the_rest() {
        let mut lease = Lease::default();
        lease.metadata.name = Some("a".to_owned());
        let mut set = |pairs: &[(&str, &str)]| {
            lease.metadata.annotations = Some(
                pairs
                    .iter()
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            );
            LeaseRecord::parse(&lease)
        };
        let good = set(&[
            (annotation::STATE, "Held"),
            (annotation::EPOCH, "7"),
            (annotation::FENCE_MILLISECONDS, "2000"),
        ])
        .unwrap();
        assert_eq!((good.epoch, good.state), (7, LeaseState::Held));
        assert_eq!(
            (good.fence_milliseconds, good.kill_milliseconds),
            (2_000, 500)
        );
        for bad in [
            &[][..],
            &[(annotation::STATE, "held"), (annotation::EPOCH, "1")],
            &[(annotation::STATE, "Held"), (annotation::EPOCH, "0")],
            &[(annotation::STATE, "Held"), (annotation::EPOCH, "x")],
            &[
                (annotation::STATE, "Held"),
                (annotation::EPOCH, "1"),
                (annotation::KILL_MILLISECONDS, "-1"),
            ],
        ] {
            assert!(set(bad).is_err(), "{bad:?}");
        }
    }
}
