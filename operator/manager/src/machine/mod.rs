//! VirtualMachines and their instances: [`fetch`] a snapshot and decide, [`apply`] the steps, write the [`status`].

pub mod apply;
pub mod fetch;
pub mod status;

use crate::{
    controller::{Context, ReconcileError, now},
    queue::Work,
    shrink::give_back,
};
use paddock_crds::virtual_machine::MachineState;
use paddock_planner::{ObjectKey, machine::Action};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long "Pending" and "Starting" may go unsaid after a machine was first seen or its instance was created: most
/// often the rest of a manifest, or its host's answer, comes sooner, and then one write says it all.
const UNSAID: Duration = Duration::from_millis(250);

/// When machines were first seen or their instances created, while that is not long ago.
#[derive(Default)]
pub struct Fresh(Mutex<HashMap<ObjectKey, Instant>>);

impl Fresh {
    fn map(&self) -> MutexGuard<'_, HashMap<ObjectKey, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, key: &ObjectKey) {
        self.map().insert(key.clone(), Instant::now());
    }

    /// How long "Pending" and "Starting" may still go unsaid.
    fn left(&self, key: &ObjectKey) -> Option<Duration> {
        let mut map = self.map();
        let left = map
            .get(key)
            .and_then(|created| UNSAID.checked_sub(created.elapsed()));
        if left.is_none() {
            map.remove(key);
        }
        left
    }

    /// Nothing is left unsaid of a machine.
    fn remove(&self, key: &ObjectKey) {
        let mut map = self.map();
        map.remove(key);
        give_back(&mut map);
    }

    /// How long the status that is to say `state` may still wait.
    fn unsaid(&self, key: &ObjectKey, state: MachineState) -> Option<Duration> {
        if matches!(state, MachineState::Pending | MachineState::Starting) {
            return self.left(key);
        }
        self.remove(key);
        None
    }
}

/// Looks at one machine.
pub async fn reconcile(context: &Context, key: &ObjectKey) -> Result<(), ReconcileError> {
    let now = now();
    let Some(planned) = fetch::plan(&mut context.cache.world(), key, &now) else {
        context.fresh.remove(key);
        return Ok(());
    };
    if planned.frees {
        context.cache.something_is_free();
    }
    if planned.plan.actions.contains(&Action::AddFinalizer) {
        context.fresh.insert(key);
    }
    let vm = apply::apply(context, key, &planned).await?;
    let ends = planned.plan.actions.contains(&Action::RemoveFinalizer);
    let (Some(vm), Some(wanted), false) = (vm, &planned.plan.status, ends) else {
        context.fresh.remove(key);
        return Ok(());
    };
    if let Some(left) = context.fresh.unsaid(key, wanted.state) {
        context.queue.add_after(Work::Machine(key.clone()), left);
        return Ok(());
    }
    status::write(context, &vm, wanted).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_left_unsaid() {
        let (fresh, key) = (Fresh::default(), ObjectKey::new("n", "a"));
        assert_eq!(fresh.unsaid(&key, MachineState::Starting), None);
        fresh.insert(&key);
        assert!(fresh.unsaid(&key, MachineState::Starting).is_some());
        assert_eq!(fresh.unsaid(&key, MachineState::Running), None);
        assert!(fresh.map().is_empty(), "it was said");
        fresh.insert(&key);
        fresh.remove(&key);
        assert!(fresh.map().is_empty());
    }
}
