//! Linked disks, which stand for a physical disk of this host: made, and made a disk of. That physical disk is opened
//! for reading and for nobody else, and only while a disk is made of it.

use super::{
    Job,
    failure::{file_exists, from_operation, io_error, refused},
    image::fits,
    look::{describe, look},
    make::{already_made, disk_type, grow, is_mine},
    pools::At,
};
use crate::instance::core::Failure;
use paddock_crds::{virtual_hard_disk::LinkedDisk, virtual_hard_disk_task::TaskResult};
use paddock_vhd::{
    ConvertOptions, CreateError, LinkedInfo, OperationError, VhdInfo, import_linked, link, remove,
};

/// Makes the descriptor of a physical disk.
pub(super) fn link_device(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let device = job
        .order
        .device
        .as_ref()
        .ok_or_else(|| io_error("the order names no device".to_owned()))?;
    match link(&at.pool, at.path, &device.device) {
        Ok(made) => {
            if let Err(failure) = expect(device, &made) {
                // Nobody has been told of it.
                let _ = remove(&at.pool, at.path);
                return Err(at.named(failure));
            }
            look(&at)
        }
        Err(OperationError::Create(CreateError::AlreadyExists { .. })) => {
            let found = at.find()?.filter(|found| stands_for(device, found));
            found
                .map(|found| describe(&found))
                .ok_or_else(|| at.named(file_exists(&at.path.display().to_string())))
        }
        Err(error) => Err(at.named(from_operation(&error))),
    }
}

/// Whether the physical disk is the one that was meant.
fn expect(wanted: &LinkedDisk, found: &LinkedInfo) -> Result<(), Failure> {
    match &wanted.serial {
        Some(serial) if *serial != found.serial => Err(Failure::new(
            "WrongSerial",
            format!(
                "{}: the disk has the serial number \"{}\", expected \"{serial}\": it is another one, or linked.serial is wrong",
                wanted.device, found.serial
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether a file that is there is the descriptor that this task, before a crash, has made.
fn stands_for(device: &LinkedDisk, found: &VhdInfo) -> bool {
    found.linked.as_ref().is_some_and(|linked| {
        linked.device.to_str() == Some(&*device.device) && expect(device, linked).is_ok()
    })
}

/// Makes a disk of a physical one.
pub(super) fn import(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let source = job
        .order
        .linked
        .as_ref()
        .ok_or_else(|| io_error("the order names no linked disk".to_owned()))?;
    if !is_mine(job, &at) {
        let from = job.pools.at(source)?;
        copy(job, &from, &at)?;
    }
    grow(job, &at)?;
    look(&at)
}

fn copy(job: &Job<'_>, from: &At<'_>, at: &At<'_>) -> Result<(), Failure> {
    let path = from.path.display();
    let found = from
        .find()?
        .filter(|found| found.linked.is_some())
        .ok_or_else(|| from.named(refused(format!("{path}: it is not a linked disk"))))?;
    fits(job, from, &found)?;
    let mut options = ConvertOptions::new(disk_type(job)?);
    options.unique_id = job.identity();
    let progress = &mut job.progress();
    match import_linked(
        &from.pool,
        from.path,
        &at.pool,
        at.path,
        job.control.gate(),
        &options,
        progress,
    ) {
        Ok(_) => Ok(()),
        Err(OperationError::Create(CreateError::AlreadyExists { .. })) => {
            already_made(job, at).map(drop)
        }
        Err(error) => Err(from.named(from_operation(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_serial_number_is_another_disk() {
        let found = LinkedInfo {
            device: "/dev/disk/by-id/ata-X".into(),
            size: 1 << 30,
            serial: "Z1F2".into(),
        };
        let wanted = |serial: Option<&str>| LinkedDisk {
            host: "host-a".into(),
            device: "/dev/disk/by-id/ata-X".into(),
            serial: serial.map(Into::into),
        };
        assert_eq!(expect(&wanted(None), &found), Ok(()));
        assert_eq!(expect(&wanted(Some("Z1F2")), &found), Ok(()));
        let failure = expect(&wanted(Some("Z1F3")), &found).unwrap_err();
        assert_eq!(
            (failure.reason, failure.message.as_str()),
            (
                "WrongSerial",
                "/dev/disk/by-id/ata-X: the disk has the serial number \"Z1F2\", expected \"Z1F3\": it is another one, or linked.serial is wrong"
            )
        );
    }
}
