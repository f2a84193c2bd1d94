//! Guests that write to their disks.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use paddock_vhd::{Access, BlockDevice, DiskType, Gate, Vhd};
use paddock_vmm::api::{EndReason, Outcome, PauseReason, Power, State, StopStep};
use serde_json::json;

use super::skipped::skipped;
use super::{Setup, have_qemu};

/// Copies itself to the next sector by BIOS call 13h/43h, then switches the machine off through the PIIX4's PM1a control
/// register (0x604: SLP_TYP 0, SLP_EN).
const WRITE_AND_POWER_OFF: &[u8] = &[
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xbe, 0x16, 0x7c, // mov si, packet
    0xb8, 0x00, 0x43, // mov ax, 0x4300
    0xcd, 0x13, // int 0x13
    0xba, 0x04, 0x06, // mov dx, 0x604
    0xb8, 0x00, 0x20, // mov ax, 0x2000
    0xef, // out dx, ax
    0xf4, // hlt
    0xeb, 0xfd, // jmp hlt
    0x10, 0x00, 0x01, 0x00, 0x00, 0x7c, 0x00, 0x00, 1, 0, 0, 0, 0, 0, 0,
    0, // packet: 1 sector from 0:7c00 to LBA 1
];

#[tokio::test]
async fn guests_boot_from_each_bus_write_and_switch_themselves_off() {
    if !have_qemu() {
        return;
    }
    for (bus, disk_type) in [
        ("IDE", DiskType::Dynamic),
        ("SCSI", DiskType::Fixed),
        ("Virtio", DiskType::Dynamic),
    ] {
        let mut setup = Setup::new();
        setup.disk("root", bus, disk_type, WRITE_AND_POWER_OFF);
        let mut process = setup.start();
        assert_eq!(process.exit_code().await, Some(0), "{bus}: {}", setup.log());
        let result = setup.result().unwrap();
        assert_eq!(
            (result.outcome, result.stop_step),
            (Outcome::GuestPowerOff, None),
            "{bus}"
        );
        assert_eq!(result.reason, EndReason::GuestPowerOff);
        let disk = Vhd::open(&setup.pool(), "root.vhd", Access::ReadOnly, Gate::open()).unwrap();
        let mut sectors = [0; 1024];
        disk.read_at(&mut sectors, 0).unwrap();
        assert_eq!(sectors[..WRITE_AND_POWER_OFF.len()], *WRITE_AND_POWER_OFF);
        assert!(
            sectors[..512] == sectors[512..],
            "{bus}: the guest's write is not on the disk"
        );
    }
}

/// A small file system that is the pool; unmounted when the test is over.
struct SmallPool(PathBuf);

impl SmallPool {
    /// `None` where one may not be mounted.
    fn mount(setup: &Setup) -> Option<Self> {
        let path = setup.directory.path().join("pool");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=8m,mode=0700", "tmpfs"])
            .arg(&path)
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(SmallPool(path)),
            refused => {
                skipped(format_args!("no tmpfs may be mounted: {refused:?}"));
                None
            }
        }
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Leaves no byte.
    fn fill(&self) {
        let mut filler = fs::File::create(self.filler()).unwrap();
        while filler.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    }
}

impl Drop for SmallPool {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// As [`WRITE_AND_POWER_OFF`], but to the second block, which has no place in the file yet.
fn write_to_second_block() -> Vec<u8> {
    let mut code = WRITE_AND_POWER_OFF.to_vec();
    let lba = code.len() - 8;
    code[lba..].copy_from_slice(&4096_u64.to_le_bytes());
    code
}

#[tokio::test]
async fn a_full_pool_pauses_the_guest_and_room_lets_it_go_on() {
    if !have_qemu() {
        return;
    }
    for bus in ["IDE", "Virtio"] {
        let mut setup = Setup::new();
        let Some(pool) = SmallPool::mount(&setup) else {
            return;
        };
        let code = write_to_second_block();
        setup.disk("root", bus, DiskType::Dynamic, &code);
        pool.fill();
        let mut process = setup.start();
        let status = process.reaches(State::Paused).await;
        assert_eq!(
            status.pause_reason,
            Some(PauseReason::NoSpace),
            "{status:?}"
        );
        let named = format!("disk root: pool {}: root.vhd: ", pool.0.display());
        assert!(
            status.message.starts_with(&named) && status.message.contains("no space left"),
            "{}",
            status.message
        );
        // An order alone makes no room.
        let status = process.set(Power::Running, None).await;
        assert_eq!(
            (status.state, status.pause_reason),
            (State::Paused, Some(PauseReason::NoSpace))
        );
        fs::remove_file(pool.filler()).unwrap();
        assert_eq!(process.exit_code().await, Some(0), "{bus}: {}", setup.log());
        assert_eq!(setup.result().unwrap().outcome, Outcome::GuestPowerOff);
        let disk = Vhd::open(&setup.pool(), "root.vhd", Access::ReadOnly, Gate::open()).unwrap();
        let mut sector = [0; 512];
        disk.read_at(&mut sector, 4096 * 512).unwrap();
        assert_eq!(
            sector[..code.len()],
            code,
            "{bus}: the guest's write was lost"
        );
    }
}

#[tokio::test]
async fn a_guest_whose_pool_is_full_can_be_turned_off() {
    if !have_qemu() {
        return;
    }
    let mut setup = Setup::new();
    let Some(pool) = SmallPool::mount(&setup) else {
        return;
    };
    setup.disk(
        "root",
        "Virtio",
        DiskType::Dynamic,
        &write_to_second_block(),
    );
    pool.fill();
    let mut process = setup.start();
    process.reaches(State::Paused).await;
    process.set(Power::Stopped, Some(0)).await;
    assert_eq!(process.exit_code().await, Some(0), "{}", setup.log());
    let result = setup.result().unwrap();
    assert_eq!(
        (result.outcome, result.stop_step),
        (Outcome::Stopped, Some(StopStep::Quit)),
        "{}",
        result.message
    );
}

#[tokio::test]
async fn an_undo_disk_takes_the_guests_writes() {
    if !have_qemu() {
        return;
    }
    let mut setup = Setup::new();
    setup.disk("root", "IDE", DiskType::Dynamic, WRITE_AND_POWER_OFF);
    let pool = setup.directory.path().join("pool");
    let undo = |missing| json!({"pool": &pool, "path": "vm/root.vud", "missing": missing});
    let base = fs::read(pool.join("root.vhd")).unwrap();
    for missing in ["Create", "Refuse"] {
        setup.config["disks"][0]["undo"] = undo(missing);
        let _ = fs::remove_file(setup.run_directory().join("result.json"));
        let mut process = setup.start();
        assert_eq!(process.exit_code().await, Some(0), "{}", setup.log());
        assert_eq!(fs::read(pool.join("root.vhd")).unwrap(), base);
    }
    let disk = Vhd::open(&setup.pool(), "vm/root.vud", Access::ReadOnly, Gate::open()).unwrap();
    let mut sectors = [0; 1024];
    disk.read_at(&mut sectors, 0).unwrap();
    assert!(
        sectors[..512] == sectors[512..],
        "the write is not in the undo disk"
    );
    drop(disk);
    fs::remove_file(pool.join("vm/root.vud")).unwrap();
    let _ = fs::remove_file(setup.run_directory().join("result.json"));
    let mut process = setup.start();
    assert_eq!(process.exit_code().await, Some(1), "{}", setup.log());
    assert_eq!(setup.result().unwrap().reason, EndReason::UndoDiskNotFound);
}
