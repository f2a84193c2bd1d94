//! VirtualMachines and their instances: [`fetch`] a snapshot and decide, [`apply`] the steps, write the [`status`].

pub mod apply;
pub mod fetch;
pub mod status;

use crate::{
    controller::{Context, ReconcileError, now},
    queue::Work,
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
}

/// Looks at one machine.
pub async fn reconcile(context: &Context, key: &ObjectKey) -> Result<(), ReconcileError> {
    let now = now();
    let Some(planned) = fetch::plan(&mut context.cache.world(), key, &now) else {
        return Ok(());
    };
    if planned.plan.actions.contains(&Action::AddFinalizer) {
        context.fresh.insert(key);
    }
    let vm = apply::apply(context, key, &planned).await?;
    let ends = planned.plan.actions.contains(&Action::RemoveFinalizer);
    if let (Some(vm), Some(wanted)) = (vm, &planned.plan.status)
        && !ends
    {
        if let Some(left) = context.fresh.left(key)
            && matches!(wanted.state, MachineState::Pending | MachineState::Starting)
        {
            context.queue.add_after(Work::Machine(key.clone()), left);
            return Ok(());
        }
        status::write(context, &vm, wanted).await?;
    }
    Ok(())
}
