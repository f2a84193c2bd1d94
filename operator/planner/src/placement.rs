//! Choosing the host of a machine.
//!
//! Among the hosts that refuse nothing: the one it ran on last, else the one with most free memory, else the
//! first by name. Memory is never given twice: a host's free memory is what it has for machines, less the
//! guest memory and the overhead of each machine placed there.

use crate::memory::readable;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use paddock_crds::{
    host::{Accelerator, Host, PoolKind, PoolScope, PoolState},
    quantity::ByteQuantity,
    virtual_machine::Acceleration,
};
use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

/// A host as placement sees it.
#[derive(Clone, Debug)]
pub struct HostView {
    /// The object.
    pub host: Arc<Host>,
    /// Whether it takes machines, and under which epoch.
    pub availability: Availability,
    /// The epoch below which a person's word has ended every instance and attachment of this host.
    pub ended_below: Option<i64>,
    /// Bytes taken by the machines placed on it.
    pub allocated: u64,
}

/// Whether a host takes machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It holds its lease under this epoch.
    Ready {
        /// The epoch of its lease.
        epoch: i64,
    },
    /// It does not take machines.
    NotReady {
        /// Why, as the reason of its condition.
        reason: &'static str,
        /// Why, for people.
        message: String,
    },
}

impl HostView {
    /// Name of the host.
    #[must_use]
    pub fn name(&self) -> &str {
        crate::identity::name(&self.host.metadata)
    }

    /// The epoch under which it takes machines, while it does.
    #[must_use]
    pub fn epoch(&self) -> Option<i64> {
        match self.availability {
            Availability::Ready { epoch } => Some(epoch),
            Availability::NotReady { .. } => None,
        }
    }

    /// Bytes that it has for machines; none while its agent has not said.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.host
            .status
            .as_ref()
            .and_then(|s| s.memory.as_deref())
            .and_then(|text| text.parse::<ByteQuantity>().ok())
            .map_or(0, |quantity| quantity.bytes())
    }

    /// Bytes that no machine has taken.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.memory().saturating_sub(self.allocated)
    }

    /// Whether its spec names the pool, and with which scope.
    #[must_use]
    pub fn pool_scope(&self, pool: &str) -> Option<PoolScope> {
        self.host
            .spec
            .pools
            .iter()
            .find(|p| p.name == pool)
            .map(|p| p.scope)
    }

    /// Free bytes of a pool, when its agent has said.
    #[must_use]
    pub fn pool_free(&self, pool: &str) -> Option<i64> {
        let status = self.host.status.as_ref()?;
        status.pools.iter().find(|p| p.name == pool)?.free_bytes
    }

    /// Why a pool cannot be used for `kind`, or `None` if it can.
    #[must_use]
    pub fn pool_refusal(&self, pool: &str, kind: PoolKind) -> Option<String> {
        let Some(spec) = self.host.spec.pools.iter().find(|p| p.name == pool) else {
            return Some(format!("pool \"{pool}\" missing"));
        };
        if !spec.kinds.contains(&kind) {
            return Some(format!("pool \"{pool}\" is not for {kind:?}"));
        }
        // Whoever may name an image could name any namespace's disk.
        if kind == PoolKind::Images && spec.kinds.contains(&PoolKind::Disks) {
            return Some(format!(
                "pool \"{pool}\" holds disks, so that no image is read from it: put the image into a pool that is for Images alone, or copy a disk by source.cloneRef"
            ));
        }
        let status = self
            .host
            .status
            .as_ref()
            .and_then(|s| s.pools.iter().find(|p| p.name == pool));
        match status {
            Some(found) if found.state == PoolState::Available => None,
            Some(found) => Some(format!(
                "pool \"{pool}\" unavailable{}",
                found
                    .message
                    .as_ref()
                    .map(|m| format!(" ({m})"))
                    .unwrap_or_default()
            )),
            None => Some(format!("pool \"{pool}\" not yet reported by its agent")),
        }
    }

    fn uplink_refusal(&self, uplink: &str) -> Option<String> {
        if !self.host.spec.uplinks.iter().any(|u| u.name == uplink) {
            return Some(format!("uplink \"{uplink}\" missing"));
        }
        let status = self
            .host
            .status
            .as_ref()
            .and_then(|s| s.uplinks.iter().find(|u| u.name == uplink));
        match status {
            Some(found) if found.state == PoolState::Available => None,
            Some(found) => Some(format!(
                "uplink \"{uplink}\" unavailable{}",
                found
                    .message
                    .as_ref()
                    .map(|m| format!(" ({m})"))
                    .unwrap_or_default()
            )),
            None => Some(format!("uplink \"{uplink}\" not yet reported by its agent")),
        }
    }
}

/// What a machine asks of its host.
#[derive(Clone, Debug, Default)]
pub struct Need {
    /// Guest memory and overhead, in bytes.
    pub memory: u64,
    /// Virtual processors.
    pub cores: i32,
    /// Use of hardware virtualization.
    pub acceleration: Acceleration,
    /// Labels that the host must carry.
    pub selector: Option<LabelSelector>,
    /// Its disks.
    pub disks: Vec<DiskNeed>,
    /// Pools with boot files.
    pub image_pools: Vec<String>,
    /// Uplinks of its networks.
    pub uplinks: Vec<String>,
    /// The host it ran on last.
    pub last_host: Option<String>,
    /// The host that its last plan took memory of: taken elsewhere, it would be free there, and all that wait would be
    /// looked at for nothing.
    pub reserved: Option<String>,
    /// The host that holds an attachment of this machine already.
    pub held_by: Option<String>,
}

/// What a disk asks of its machine's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskNeed {
    /// Name of the VirtualHardDisk.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// Where its file is.
    pub place: DiskPlace,
    /// The pool of its image, while the file is still to be made.
    pub image_pool: Option<String>,
    /// The pools of its parents.
    pub parent_pools: Vec<String>,
}

/// Where a disk's file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskPlace {
    /// In the pool of this host.
    Bound(String),
    /// In a pool that hosts share.
    Shared,
    /// Not made yet: the chosen host gets it.
    Unbound,
}

/// Every host refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoHost {
    /// One sentence per host, by name.
    pub refusals: BTreeMap<String, String>,
}

impl NoHost {
    /// The refusals in one line: `host-a: …; host-b: …`.
    #[must_use]
    pub fn message(&self) -> String {
        if self.refusals.is_empty() {
            return "there is no Host".to_owned();
        }
        let each: Vec<String> = self
            .refusals
            .iter()
            .map(|(host, why)| format!("{host}: {why}"))
            .collect();
        each.join("; ")
    }
}

/// Chooses a host, or says why each one refuses.
pub fn place<'a>(hosts: &'a [HostView], need: &Need) -> Result<&'a HostView, NoHost> {
    let mut refusals = BTreeMap::new();
    let mut best: Option<(&HostView, _)> = None;
    for host in hosts {
        if let Some(why) = refuse(host, need) {
            refusals.insert(host.name().to_owned(), why);
            continue;
        }
        let rank = (
            need.last_host.as_deref() != Some(host.name()),
            need.reserved.as_deref() != Some(host.name()),
            Reverse(host.free()),
            host.name(),
        );
        if best.as_ref().is_none_or(|(_, found)| rank < *found) {
            best = Some((host, rank));
        }
    }
    // A disk or an attachment on a host that has no object is named too: the refusals of the others would mislead.
    let absent = need
        .held_by
        .iter()
        .map(|name| {
            (
                name,
                "holds its disks, but there is no such Host".to_owned(),
            )
        })
        .chain(need.disks.iter().filter_map(|disk| match &disk.place {
            DiskPlace::Bound(name) => Some((
                name,
                format!("holds disk \"{}\", but there is no such Host", disk.name),
            )),
            _ => None,
        }))
        .filter(|(name, _)| !hosts.iter().any(|h| h.name() == name.as_str()));
    for (name, why) in absent {
        refusals.entry(name.clone()).or_insert(why);
    }
    best.map(|(host, _)| host).ok_or(NoHost { refusals })
}

/// Why a host cannot run the machine, in one sentence, or `None` if it can.
#[must_use]
pub fn refuse(host: &HostView, need: &Need) -> Option<String> {
    if let Availability::NotReady { message, .. } = &host.availability {
        return Some(format!("not ready: {message}"));
    }
    let mut reasons = Vec::new();
    if let Some(holder) = need.held_by.as_deref().filter(|h| *h != host.name()) {
        reasons.push(format!("its disks are attached on {holder}"));
    }
    if let Some(selector) = &need.selector
        && !selects(selector, host.host.metadata.labels.as_ref())
    {
        reasons.push("labels do not match hostSelector".to_owned());
    }
    let accelerator = host.host.status.as_ref().and_then(|s| s.accelerator);
    match (need.acceleration, accelerator) {
        (_, None | Some(Accelerator::None)) => reasons.push("no accelerator for guests".to_owned()),
        (Acceleration::Required, Some(Accelerator::Emulation)) => reasons
            .push("acceleration is Required and it has no hardware virtualization".to_owned()),
        _ => {}
    }
    let cores = host
        .host
        .status
        .as_ref()
        .and_then(|s| s.capacity.as_ref())
        .map_or(0, |c| c.cores);
    if need.cores > cores {
        reasons.push(format!("{} cores asked for, it has {cores}", need.cores));
    }
    for disk in &need.disks {
        match &disk.place {
            DiskPlace::Bound(holder) if holder != host.name() => {
                reasons.push(format!("disk \"{}\" is bound to {holder}", disk.name));
                continue;
            }
            DiskPlace::Shared if host.pool_scope(&disk.pool) == Some(PoolScope::Local) => {
                reasons.push(format!(
                    "disk \"{}\" is in the shared pool \"{}\", which is Local here",
                    disk.name, disk.pool
                ));
                continue;
            }
            _ => {}
        }
        reasons.extend(host.pool_refusal(&disk.pool, PoolKind::Disks));
        for pool in &disk.parent_pools {
            reasons.extend(host.pool_refusal(pool, PoolKind::Disks));
        }
        if let Some(pool) = &disk.image_pool {
            reasons.extend(host.pool_refusal(pool, PoolKind::Images));
        }
    }
    for pool in &need.image_pools {
        reasons.extend(host.pool_refusal(pool, PoolKind::Images));
    }
    for uplink in &need.uplinks {
        reasons.extend(host.uplink_refusal(uplink));
    }
    if need.memory > host.free() {
        reasons.push(format!(
            "memory short by {} ({} needed with overhead, {} free)",
            readable(need.memory - host.free()),
            readable(need.memory),
            readable(host.free()),
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    reasons.retain(|r| seen.insert(r.clone()));
    (!reasons.is_empty()).then(|| reasons.join(", "))
}

/// Whether a label selector matches, by the rules of `metav1.LabelSelector`; an unknown operator matches nothing.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: Option<&BTreeMap<String, String>>) -> bool {
    let value = |key: &str| labels.and_then(|l| l.get(key));
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(k, v)| value(k) == Some(v));
    let expressions = selector.match_expressions.iter().flatten().all(|e| {
        let listed = |v: &String| e.values.iter().flatten().any(|x| x == v);
        match e.operator.as_str() {
            "In" => value(&e.key).is_some_and(listed),
            "NotIn" => !value(&e.key).is_some_and(listed),
            "Exists" => value(&e.key).is_some(),
            "DoesNotExist" => value(&e.key).is_none(),
            _ => false,
        }
    });
    equal && expressions
}
