//! Machines and hosts in the states that tests begin with.

use super::{Model, host, machine, network, ready_disk, with_adapter, with_disk};
use paddock_crds::{
    names::condition::READY,
    virtual_hard_disk::{Attachment, AttachmentOwner, OwnerKind},
    virtual_machine::{Bus, MachineState},
};
use paddock_planner::{ObjectKey, placement::Availability};

pub fn attachment(vm: &str, host: &str, host_epoch: i64, disk_epoch: i64) -> Attachment {
    Attachment {
        owner: AttachmentOwner {
            kind: OwnerKind::VirtualMachine,
            name: vm.to_owned(),
            uid: format!("uid-{vm}"),
        },
        host: host.to_owned(),
        host_epoch,
        disk_epoch,
    }
}

pub fn quickstart() -> (Model, ObjectKey) {
    let mut model = Model::new(vec![host("host-a", "2Gi"), host("host-b", "2Gi")]);
    model.add_disk(ready_disk("root", Some("host-b")));
    model.add_network(network("lab", None));
    let vm = with_adapter(
        with_disk(machine("web", 192), "root", Bus::Virtio),
        Some("lab"),
        None,
    );
    let key = model.add(vm);
    (model, key)
}

pub fn running() -> (Model, ObjectKey) {
    let (mut model, key) = quickstart();
    model.settle(&key);
    model.answer(&key);
    model.settle(&key);
    assert_eq!(model.condition(&key, READY).status, "True");
    (model, key)
}

pub fn silence(model: &mut Model, name: &str) {
    for host in &mut model.hosts {
        if host.name() == name {
            host.availability = Availability::NotReady {
                reason: "LeaseExpired",
                message: "its agent has been silent".to_owned(),
            };
        }
    }
}

pub fn ready(model: &mut Model, name: &str, epoch: i64) {
    for host in &mut model.hosts {
        if host.name() == name {
            host.availability = Availability::Ready { epoch };
        }
    }
}

pub fn word(model: &mut Model, name: &str, below: i64) {
    for host in &mut model.hosts {
        if host.name() == name {
            host.ended_below = Some(below);
        }
    }
}

pub fn state(model: &Model, key: &ObjectKey) -> MachineState {
    model.machines[key].status.as_ref().unwrap().state
}
