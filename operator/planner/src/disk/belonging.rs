//! Which disk a task is for, and who has made it.
//!
//! A task is for the disk of its own namespace that it names. Only in the operator's namespace do annotations say
//! otherwise: anywhere else they are some user's, who could reach the disks of other namespaces by them.

use super::{DISK_ANNOTATION, DISK_UID_ANNOTATION};
use crate::identity::{ObjectKey, uid};
use paddock_crds::{VirtualHardDisk, VirtualHardDiskTask};

const OWNER_KIND: &str = "VirtualHardDisk";

/// The disk that a task is for.
#[must_use]
pub fn disk_of(task: &VirtualHardDiskTask, system_namespace: &str) -> ObjectKey {
    let elsewhere = annotation(task, DISK_ANNOTATION, system_namespace);
    match elsewhere.and_then(|text| text.split_once('/')) {
        Some((namespace, name)) => ObjectKey::new(namespace, name),
        None => ObjectKey::new(
            &ObjectKey::of(&task.metadata).namespace,
            &task.spec.virtual_hard_disk_ref.name,
        ),
    }
}

/// UID of the disk that the operator has made a task for; none for a task that somebody else has made.
#[must_use]
pub fn made_for<'a>(task: &'a VirtualHardDiskTask, system_namespace: &str) -> Option<&'a str> {
    let mut owners = task.metadata.owner_references.iter().flatten();
    let owner = owners.find(|o| o.controller == Some(true) && o.kind == OWNER_KIND);
    owner
        .map(|o| o.uid.as_str())
        .or_else(|| annotation(task, DISK_UID_ANNOTATION, system_namespace))
}

/// Whether a task can be for the disk with a key and a UID: not when the operator made it for an earlier one.
#[must_use]
pub fn may_be_for(
    task: &VirtualHardDiskTask,
    disk: &ObjectKey,
    disk_uid: &str,
    system_namespace: &str,
) -> bool {
    disk_of(task, system_namespace) == *disk
        && made_for(task, system_namespace).is_none_or(|uid| uid == disk_uid)
}

/// Whether the operator made a task for a disk.
pub(super) fn is_own(
    task: &VirtualHardDiskTask,
    disk: &VirtualHardDisk,
    system_namespace: &str,
) -> bool {
    made_for(task, system_namespace) == Some(uid(&disk.metadata))
}

fn annotation<'a>(
    task: &'a VirtualHardDiskTask,
    name: &str,
    system_namespace: &str,
) -> Option<&'a str> {
    if task.metadata.namespace.as_deref() != Some(system_namespace) {
        return None;
    }
    let annotations = task.metadata.annotations.as_ref()?;
    annotations.get(name).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
    use paddock_crds::{VirtualHardDiskTaskSpec, virtual_hard_disk_task::TaskAction};

    const SYSTEM: &str = "paddock-system";

    fn task(namespace: &str) -> VirtualHardDiskTask {
        VirtualHardDiskTask {
            metadata: ObjectMeta {
                name: Some("t".to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            spec: VirtualHardDiskTaskSpec::new(TaskAction::Merge, "d"),
            status: None,
        }
    }

    fn annotated(namespace: &str) -> VirtualHardDiskTask {
        let mut task = task(namespace);
        let annotations = [(DISK_ANNOTATION, "a/d"), (DISK_UID_ANNOTATION, "uid-a")];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned()));
        task.metadata.annotations = Some(annotations.into());
        task
    }

    #[test]
    fn annotations_count_in_the_operators_namespace_alone() {
        let (theirs, own) = (ObjectKey::new("a", "d"), ObjectKey::new("b", "d"));
        let forged = annotated("b");
        assert_eq!(disk_of(&forged, SYSTEM), own);
        assert_eq!(made_for(&forged, SYSTEM), None);
        assert!(!may_be_for(&forged, &theirs, "uid-a", SYSTEM));
        assert!(may_be_for(&forged, &own, "uid-b", SYSTEM));
        let made = annotated(SYSTEM);
        assert_eq!(disk_of(&made, SYSTEM), theirs);
        assert!(may_be_for(&made, &theirs, "uid-a", SYSTEM));
        // An earlier disk of that name.
        assert!(!may_be_for(&made, &theirs, "uid-a2", SYSTEM));
    }

    #[test]
    fn only_a_disk_of_its_own_namespace_owns_a_task() {
        let owned = |kind: &str| {
            let mut task = task("b");
            task.metadata.owner_references = Some(vec![OwnerReference {
                kind: kind.to_owned(),
                uid: "uid-a".to_owned(),
                controller: Some(true),
                ..OwnerReference::default()
            }]);
            task
        };
        assert_eq!(made_for(&owned("VirtualHardDisk"), SYSTEM), Some("uid-a"));
        assert_eq!(made_for(&owned("ConfigMap"), SYSTEM), None);
        let theirs = ObjectKey::new("a", "d");
        for kind in ["VirtualHardDisk", "ConfigMap"] {
            assert!(!may_be_for(&owned(kind), &theirs, "uid-a", SYSTEM));
        }
    }
}
