//! A machine's open disks and their servers.

mod open;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use paddock_nbd::{Export, Server};
use paddock_vhd::{BlockDevice, Vhd};

use self::open::{Opened, open};
use crate::api::EndReason;
use crate::config::ValidVmConfig;
use crate::hold::{Hold, HoldWhenFull, Told, room_in};
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
    hold: Arc<Hold>,
    server: Server,
}

/// Tells that a disk's pool is full, or has room again. May block.
pub(crate) type TellHeld = Arc<dyn Fn(&str, Told) + Send + Sync>;

impl ServedDisks {
    /// Opens all disks, then serves them on sockets in `folder`. Blocks.
    pub fn open(
        config: &ValidVmConfig,
        folder: &QemuFolder,
        tell: &TellHeld,
    ) -> Result<Self, NotOpened> {
        let opened = config
            .disks
            .iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let mut served = ServedDisks::default();
        for (
            disk,
            Opened {
                vhd,
                gate,
                grows_in,
            },
        ) in config.disks.iter().zip(opened)
        {
            let vhd = Arc::new(vhd);
            let tell = {
                let (tell, name) = (tell.clone(), disk.name.clone());
                let pool = grows_in.path().display().to_string();
                move |told| match told {
                    Told::Full(why) => tell(&name, Told::Full(format!("pool {pool}: {why}"))),
                    Told::Room => tell(&name, Told::Room),
                }
            };
            let hold = Hold::new(&disk.name, gate, room_in(grows_in), Box::new(tell));
            let held = Arc::new(HoldWhenFull::new(vhd.clone(), hold.clone()));
            let server = folder
                .listen(&disk_socket(disk))
                .map_err(|error| error.to_string())
                .and_then(|listener| {
                    Server::on(listener, vec![Export::new(&disk.name, held)])
                        .map_err(|error| error.to_string())
                });
            match server {
                Ok(server) => served.0.push(ServedDisk {
                    name: disk.name.clone(),
                    vhd,
                    hold,
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

    /// Tries what is held for lack of space again now.
    pub fn retry_held(&self) {
        self.0.iter().for_each(|disk| disk.hold.retry());
    }

    /// Holds nothing any more for lack of space: what is held fails.
    pub fn give_up_held(&self) {
        self.0.iter().for_each(|disk| disk.hold.give_up());
    }

    /// Stops serving, flushes and closes the disks. Says which of them could not be made durable. Blocks for as long as
    /// the disks take.
    pub fn close(self) -> Result<(), String> {
        // A server waits for the requests that it has read.
        self.give_up_held();
        let mut problems = Vec::new();
        for ServedDisk {
            name, vhd, server, ..
        } in self.0
        {
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
