//! What QEMU needs from the host: disks, a kernel, taps.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use paddock_vhd::Pool;

use crate::api::EndReason;
use crate::config::{PoolFile, ValidBoot, ValidVmConfig};
use crate::disks::{NotOpened, ServedDisks, TellHeld};
use crate::qemu::command_line::{INITRD_FILE, KERNEL_FILE};
use crate::qemu::tap::open_tap;
use crate::run_directory::{QemuFolder, RunDirectory};

/// The largest kernel and the largest initial ramdisk, in bytes. They are copied to memory.
const MAX_BOOT_FILE_BYTES: u64 = 1 << 30;

/// All that was opened for a machine.
pub(crate) struct Resources {
    pub disks: ServedDisks,
    pub folder: QemuFolder,
    pub taps: Vec<OwnedFd>,
}

impl Resources {
    /// Opens everything, or nothing. Blocks.
    pub fn open(
        config: &ValidVmConfig,
        directory: &Arc<RunDirectory>,
        tell: &TellHeld,
    ) -> Result<Self, NotOpened> {
        let folder = directory
            .make_qemu_folder(config.qemu_uid, config.qemu_gid)
            .map_err(|error| NotOpened::new(EndReason::HostError, error))?;
        // Before the disks: opening those may write to them.
        let taps = open_taps(config)?;
        if let ValidBoot::Kernel(kernel) = &config.boot {
            copy_in(&folder, KERNEL_FILE, &kernel.kernel)?;
            if let Some(initrd) = &kernel.initrd {
                copy_in(&folder, INITRD_FILE, initrd)?;
            }
        }
        let disks = ServedDisks::open(config, &folder, tell)?;
        Ok(Resources {
            disks,
            folder,
            taps,
        })
    }

    /// Gives back what QEMU needs only to start.
    pub fn forget_boot_files(&self) {
        self.folder.remove(KERNEL_FILE);
        self.folder.remove(INITRD_FILE);
    }
}

fn open_taps(config: &ValidVmConfig) -> Result<Vec<OwnedFd>, NotOpened> {
    let open = |adapter: &crate::config::ValidAdapter| {
        open_tap(&adapter.tap).map_err(|error| {
            let message = format!(
                "network adapter {}: tap {}: {error}",
                adapter.name, adapter.tap
            );
            NotOpened::new(EndReason::TapNotOpened, message)
        })
    };
    config.adapters.iter().map(open).collect()
}

fn copy_in(folder: &QemuFolder, name: &str, file: &PoolFile) -> Result<(), NotOpened> {
    let failed = |what: String| {
        let path = file.pool.join(&file.path);
        NotOpened::new(
            EndReason::KernelNotRead,
            format!("{name} {}: {what}", path.display()),
        )
    };
    let pool = Pool::open(&file.pool).map_err(|error| failed(error.to_string()))?;
    let mut source: File = pool
        .open_read(&file.path)
        .map_err(|error| failed(error.to_string()))?;
    let metadata = source
        .metadata()
        .map_err(|error| failed(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > MAX_BOOT_FILE_BYTES {
        return Err(failed(format!(
            "must be a file of at most {MAX_BOOT_FILE_BYTES} bytes, has {}",
            metadata.len()
        )));
    }
    folder
        .copy_in(name, &mut source)
        .map_err(|error| failed(error.to_string()))
}
