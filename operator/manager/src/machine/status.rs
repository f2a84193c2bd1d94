//! A machine's status: written when it differs, and told as an event when the machine passes to another state.

use crate::{controller::Context, write::WriteError};
use paddock_crds::{
    VirtualMachine, VirtualMachineStatus, names::condition::READY, reference::condition,
    virtual_machine::MachineState,
};

/// Writes a status if it differs.
pub async fn write(
    context: &Context,
    vm: &VirtualMachine,
    wanted: &VirtualMachineStatus,
) -> Result<(), WriteError> {
    if vm.status.as_ref() == Some(wanted) {
        return Ok(());
    }
    let mut changed = vm.clone();
    changed.status = Some(wanted.clone());
    context.writer.replace_status(&changed).await?;
    tell(context, vm, wanted);
    Ok(())
}

fn tell(context: &Context, vm: &VirtualMachine, wanted: &VirtualMachineStatus) {
    let ready = |status: &VirtualMachineStatus| {
        condition(&status.conditions, READY).map(|c| (c.reason.clone(), c.message.clone()))
    };
    let before = vm.status.as_ref().and_then(ready);
    let Some((reason, message)) = ready(wanted) else {
        return;
    };
    let passing = matches!(
        wanted.state,
        MachineState::Starting | MachineState::Stopping | MachineState::Terminating
    );
    if passing || before.is_some_and(|(old, _)| old == reason) {
        return;
    }
    let good = matches!(
        wanted.state,
        MachineState::Running | MachineState::Paused | MachineState::Stopped
    ) && reason != "PoolFull"
        || reason == "RestartAsked";
    context.events.tell(vm, good, &reason, &message);
}
