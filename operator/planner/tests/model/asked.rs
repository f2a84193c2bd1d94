//! Tasks that people ask for, and what is told of them.

use super::life::Life;
use paddock_crds::{
    VirtualHardDiskTaskSpec,
    names::condition::PROGRESSING,
    reference::condition,
    virtual_hard_disk_task::{TaskAction, TaskResult, TaskState},
};
use paddock_planner::ObjectKey;
use std::sync::Arc;

pub fn asked(life: &mut Life, name: &str, action: TaskAction) -> ObjectKey {
    asked_with(life, name, VirtualHardDiskTaskSpec::new(action, "d"))
}

pub fn asked_with(life: &mut Life, name: &str, spec: VirtualHardDiskTaskSpec) -> ObjectKey {
    life.now += 1;
    life.ask(name, spec)
}

pub fn told(life: &Life, task: &ObjectKey) -> (TaskState, Option<String>) {
    let status = life.tasks[task].status.clone().unwrap_or_default();
    (status.state, status.reason)
}

pub fn end(life: &mut Life, task: &ObjectKey, state: TaskState, result: TaskResult) {
    let found = Arc::make_mut(life.tasks.get_mut(task).unwrap());
    let status = found.status.as_mut().expect("it was assigned");
    assert!(status.order.is_some(), "{task} was never assigned");
    status.state = state;
    if state == TaskState::Failed {
        status.reason = Some("PoolFull".to_owned());
        status.message = Some("no room".to_owned());
    }
    status.result = Some(result);
}

pub fn progressing(life: &Life) -> Option<(String, String)> {
    let status = life.disk.status.as_ref().unwrap();
    condition(&status.conditions, PROGRESSING).map(|c| (c.status.clone(), c.reason.clone()))
}

pub fn path(life: &Life) -> &str {
    &life
        .disk
        .status
        .as_ref()
        .unwrap()
        .file
        .as_ref()
        .unwrap()
        .path
}
