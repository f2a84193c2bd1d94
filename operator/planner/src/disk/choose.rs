//! The host that a task is done on.

use super::{Draft, is_shared};
use crate::placement::{Availability, HostView};
use paddock_crds::host::{PoolKind, PoolScope};

/// What a task's host must reach.
pub(super) struct Reach {
    /// The pool of the disk's file.
    pub(super) pool: String,
    /// Other pools, and what they are used for.
    pub(super) also: Vec<(String, PoolKind)>,
    /// The host that has a file it reads, unless hosts share that.
    pub(super) near: Option<String>,
}

impl Draft<'_> {
    /// The host to do a task on, or why there is none yet.
    pub(super) fn choose(&self, reach: &Reach) -> Result<(&HostView, i64), (&'static str, String)> {
        let s = self.s;
        let pool = reach.pool.as_str();
        let bound = match (&self.plan.status.host, &reach.near) {
            (Some(bound), Some(near)) if bound != near => {
                return Err((
                    "NoHostAvailable",
                    format!(
                        "it is bound to host {bound}, but is made from a file that only host {near} has"
                    ),
                ));
            }
            (bound, near) => bound.as_ref().or(near.as_ref()),
        };
        let candidates: Vec<&HostView> = match bound {
            Some(bound) => match self.host(bound) {
                Some(host) => vec![host],
                None => {
                    return Err((
                        "HostNotFound",
                        format!("it is bound to host {bound}, but there is no such Host"),
                    ));
                }
            },
            None => {
                let shared = is_shared(s.hosts, pool);
                let with_pool: Vec<&HostView> = s
                    .hosts
                    .iter()
                    .filter(|h| match h.pool_scope(pool) {
                        Some(PoolScope::Shared) => true,
                        Some(PoolScope::Local) => !shared,
                        None => false,
                    })
                    .collect();
                if !shared && with_pool.len() > 1 {
                    return Err((
                        "WaitingForFirstConsumer",
                        format!(
                            "pool \"{pool}\" is Local to each of {} hosts: the disk is made on the host of the first machine that names it",
                            with_pool.len()
                        ),
                    ));
                }
                if with_pool.is_empty() {
                    return Err((
                        "PoolNotFound",
                        format!("no Host has a pool \"{pool}\" in its spec.pools"),
                    ));
                }
                with_pool
            }
        };
        let mut refusals = Vec::new();
        let mut best = None;
        for host in candidates {
            let why = match &host.availability {
                Availability::NotReady { message, .. } => Some(format!("not ready: {message}")),
                Availability::Ready { .. } => {
                    host.pool_refusal(pool, PoolKind::Disks).or_else(|| {
                        let mut also = reach.also.iter();
                        also.find_map(|(pool, kind)| host.pool_refusal(pool, *kind))
                    })
                }
            };
            match (why, host.epoch()) {
                (None, Some(epoch)) => {
                    let rank = (s.busy.get(host.name()).copied().unwrap_or(0), host.name());
                    if best.as_ref().is_none_or(|(found, _, _)| rank < *found) {
                        best = Some((rank, host, epoch));
                    }
                }
                (why, _) => refusals.push(format!("{}: {}", host.name(), why.unwrap_or_default())),
            }
        }
        best.map(|(_, host, epoch)| (host, epoch)).ok_or_else(|| {
            (
                "NoHostAvailable",
                format!("no host can work on it: {}", refusals.join("; ")),
            )
        })
    }
}
