//! The memory that machines take of each host, added up as they change: a plan looks at the hosts, not at every machine
//! on them.

use super::World;
use paddock_crds::VirtualMachineInstance;
use paddock_planner::{
    ObjectKey,
    machine::{Reservation, instance_memory},
};
use std::collections::HashMap;

/// Bytes by host.
#[derive(Default)]
pub struct Memory(HashMap<String, u64>);

impl Memory {
    /// What a machine takes of a host: by its instance, or what its plan took, which may be more than the API shows yet.
    fn of<'a>(
        instance: Option<&'a VirtualMachineInstance>,
        planned: Option<&'a Reservation>,
    ) -> impl Iterator<Item = (&'a str, u64)> {
        let placed = instance.map(|i| (&*i.spec.host, instance_memory(i)));
        let planned = planned.map(|r| (&*r.host, r.memory));
        let (placed, planned) = match (placed, planned) {
            (Some((host, placed)), Some((same, planned))) if host == same => {
                (Some((host, placed.max(planned))), None)
            }
            both => both,
        };
        placed.into_iter().chain(planned)
    }

    pub(super) fn add(
        &mut self,
        instance: Option<&VirtualMachineInstance>,
        planned: Option<&Reservation>,
    ) {
        for (host, bytes) in Self::of(instance, planned).filter(|(_, bytes)| *bytes > 0) {
            match self.0.get_mut(host) {
                Some(sum) => *sum = sum.saturating_add(bytes),
                None => {
                    self.0.insert(host.to_owned(), bytes);
                }
            }
        }
    }

    pub(super) fn subtract(
        &mut self,
        instance: Option<&VirtualMachineInstance>,
        planned: Option<&Reservation>,
    ) {
        for (host, bytes) in Self::of(instance, planned) {
            if let Some(sum) = self.0.get_mut(host) {
                *sum = sum.saturating_sub(bytes);
                if *sum == 0 {
                    self.0.remove(host);
                }
            }
        }
    }
}

impl World {
    /// Bytes of a host's memory that machines take. What the plan of `except` took is left out: it is being made anew.
    pub(super) fn allocated(&self, host: &str, except: Option<&ObjectKey>) -> u64 {
        let sum = self.index.memory.0.get(host).copied().unwrap_or(0);
        let Some(key) = except else { return sum };
        let instance = self.instances.get(key).map(AsRef::as_ref);
        let planned = self.index.reservation(key);
        let here = |planned| {
            let mut all = Memory::of(instance, planned);
            all.find(|(name, _)| *name == host)
                .map_or(0, |(_, bytes)| bytes)
        };
        sum.saturating_sub(here(planned)).saturating_add(here(None))
    }

    /// Replaces what a machine's plan took.
    pub fn reserve(&mut self, machine: &ObjectKey, what: Option<Reservation>) {
        let instance = self.instances.get(machine).map(AsRef::as_ref);
        let index = &mut self.index;
        index.memory.subtract(instance, index.reserved.get(machine));
        index.memory.add(instance, what.as_ref());
        index.reserve(machine, what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn instance(host: &str, mebibytes: u64) -> VirtualMachineInstance {
        let instance = json!({
            "apiVersion": "paddock.dev/v1alpha1", "kind": "VirtualMachineInstance", "metadata": {"name": "a"},
            "spec": {
                "host": host, "hostEpoch": 1, "power": "Running", "configRevision": "c",
                "config": {
                    "uuid": "u", "hostname": "a", "machine": "PC", "acceleration": "Auto", "cores": 1,
                    "memoryMebibytes": mebibytes, "stopDeadlineSeconds": 1,
                },
            },
        });
        serde_json::from_value(instance).unwrap()
    }

    fn planned(host: &str, memory: u64) -> Reservation {
        Reservation {
            host: host.to_owned(),
            memory,
            disks: vec![],
            macs: vec![],
            addresses: vec![],
        }
    }

    #[test]
    fn a_machine_takes_the_larger_of_both_and_each_on_its_host() {
        let placed = instance("a", 64);
        let bytes = instance_memory(&placed);
        let all = |i: Option<&VirtualMachineInstance>, r: Option<&Reservation>| {
            let all: Vec<_> = Memory::of(i, r).map(|(h, n)| (h.to_owned(), n)).collect();
            all
        };
        let here = |n| ("a".to_owned(), n);
        assert_eq!(all(None, None), []);
        assert_eq!(all(Some(&placed), None), [here(bytes)]);
        assert_eq!(all(Some(&placed), Some(&planned("a", 1))), [here(bytes)]);
        let more = planned("a", bytes + 1);
        assert_eq!(all(Some(&placed), Some(&more)), [here(bytes + 1)]);
        let there = planned("b", 7);
        assert_eq!(
            all(Some(&placed), Some(&there)),
            [here(bytes), ("b".to_owned(), 7)]
        );
        let mut sums = Memory::default();
        sums.add(Some(&placed), Some(&there));
        sums.add(None, Some(&more));
        sums.subtract(Some(&placed), Some(&there));
        assert_eq!(sums.0, HashMap::from([here(bytes + 1)]));
        sums.subtract(None, Some(&more));
        assert!(sums.0.is_empty());
    }
}
