//! A machine's open disks and their servers.

use std::sync::Arc;

use paddock_nbd::{Export, Server};
use paddock_vhd::{Access, BlockDevice, Gate, OpenError, OpenErrorKind, Pool, Vhd};
use tracing::info;

use crate::api::EndReason;
use crate::config::{ValidDisk, ValidVmConfig};

use crate::qemu::command_line::disk_socket;
use crate::run_directory::QemuFolder;

/// Why the machine cannot have what it needs.
#[derive(Debug)]
pub(crate) struct NotOpened {
    pub reason: EndReason,
    pub message: String,
}

impl NotOpened {
    pub fn new(reason: EndReason, message: impl ToString) -> Self {
        NotOpened {
            reason,
            message: message.to_string(),
        }
    }
}

/// Disks that are served.
#[derive(Default)]
pub(crate) struct ServedDisks(Vec<ServedDisk>);

struct ServedDisk {
    name: String,
    vhd: Arc<Vhd>,
    server: Server,
}

impl ServedDisks {
    /// Opens all disks, then serves them on sockets in `folder`. Blocks.
    pub fn open(config: &ValidVmConfig, folder: &QemuFolder) -> Result<Self, NotOpened> {
        let opened = config
            .disks
            .iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut served = ServedDisks::default();
        for (disk, vhd) in config.disks.iter().zip(opened) {
            let vhd = Arc::new(vhd);
            let server = folder
                .listen(&disk_socket(disk))
                .map_err(|error| error.to_string())
                .and_then(|listener| {
                    Server::on(listener, vec![Export::new(&disk.name, vhd.clone())])
                        .map_err(|error| error.to_string())
                });
            match server {
                Ok(server) => served.0.push(ServedDisk {
                    name: disk.name.clone(),
                    vhd,
                    server,
                }),
                Err(error) => {
                    // Nothing was written, so nothing is lost if this fails, too.
                    let _ = served.close();
                    let message = format!("disk {} cannot be served: {error}", disk.name);
                    return Err(NotOpened::new(EndReason::HostError, message));
                }
            }
        }
        Ok(served)
    }

    /// Stops serving, flushes and closes the disks. Says which of them could not be made durable. Blocks for as long as
    /// the disks take.
    pub fn close(self) -> Result<(), String> {
        let mut problems = Vec::new();
        for ServedDisk { name, vhd, server } in self.0 {
            server.stop();
            let closed = match Arc::try_unwrap(vhd) {
                Ok(vhd) => vhd.close(),
                // A stopped server holds no handle; if it did, the flush is what matters.
                Err(vhd) => vhd.flush(),
            };
            if let Err(error) = closed {
                problems.push(format!("disk {name}: {error}"));
            }
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(problems.join("; "))
        }
    }
}

fn open(disk: &ValidDisk) -> Result<Vhd, NotOpened> {
    let describe = |what: &dyn std::fmt::Display| {
        format!(
            "disk {} ({}/{}): {what}",
            disk.name,
            disk.file.pool.display(),
            disk.file.path.display()
        )
    };
    let pool = Pool::open(&disk.file.pool)
        .map_err(|error| NotOpened::new(EndReason::DiskNotOpened, describe(&error)))?;
    let access = if disk.read_only {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    };
    let vhd =
        Vhd::open(&pool, &disk.file.path, access, Gate::open()).map_err(|error: OpenError| {
            let reason = match error.kind() {
                OpenErrorKind::InUse => EndReason::DiskInUse,
                _ => EndReason::DiskNotOpened,
            };
            NotOpened::new(reason, describe(&error))
        })?;
    disk.check_size(vhd.size())
        .map_err(|error| NotOpened::new(EndReason::DiskTooLargeForBus, error))?;
    info!(
        disk = disk.name,
        bytes = vhd.size(),
        epoch = disk.disk_epoch,
        "opened"
    );
    Ok(vhd)
}
