//! Whole machines: `paddock-vmm` with a real QEMU (emulating, so no KVM is needed), whose guests are boot sectors of a
//! few instructions.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod disks;
#[path = "../skipped/mod.rs"]
mod skipped;

use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use paddock_vhd::{Access, BlockDevice, CreateOptions, DiskSize, DiskType, Gate, Pool, Vhd};
use paddock_vmm::api::{
    EndReason, ErrorReason, Outcome, PauseReason, Power, PowerRequest, RunResult, State, Status,
    StopStep,
};
use paddock_vmm::client::{ClientError, VmmClient};
use paddock_vmm::identity::{Identity, open_pidfd_if_same};
use rustix::process::{Pid, Signal, getegid, geteuid, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Generous: the machine may be busy. Nothing here waits for it to pass.
const PATIENCE: Duration = Duration::from_secs(60);

/// Says `!` on the serial port, which the BIOS never does, then switches the machine off when the power button is pressed (PM1a enable 0x602 and
/// status 0x600, bit 8).
const OBEY_POWER_BUTTON: &[u8] = &[
    0xfa, // cli
    0xba, 0x02, 0x06, // mov dx, 0x602
    0xb8, 0x00, 0x01, // mov ax, 0x100
    0xef, // out dx, ax
    0xb0, b'!', // mov al, '!'
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xba, 0x00, 0x06, // mov dx, 0x600
    0xed, // in ax, dx
    0xf6, 0xc4, 0x01, // test ah, 1
    0x74, 0xfa, // jz in
    0xba, 0x04, 0x06, // mov dx, 0x604
    0xb8, 0x00, 0x20, // mov ax, 0x2000
    0xef, // out dx, ax
    0xf4, // hlt
    0xeb, 0xfd, // jmp hlt
];

fn have_qemu() -> bool {
    let there = Path::new(QEMU).exists();
    if !there {
        skipped::skipped(format_args!("{QEMU} is not installed"));
    }
    there
}

/// A folder with a pool, a run directory and a configuration.
struct Setup {
    directory: tempfile::TempDir,
    config: Value,
}

impl Setup {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["pool", "run"] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::set_permissions(directory.path().join(name), Permissions::from_mode(0o700))
                .unwrap();
        }
        let (uid, gid) = if geteuid().is_root() {
            (65534, 65534)
        } else {
            (geteuid().as_raw(), getegid().as_raw())
        };
        let config = json!({
            "version": 1, "id": "test", "name": "default/test", "machine": "PC", "accelerator": "tcg", "cores": 1,
            "memoryMib": 32, "uuid": "00000000-0000-4000-8000-000000000001", "hostEpoch": 7,
            "boot": {"order": ["HardDisk"]}, "disks": [], "networkAdapters": [], "console": {"logBytes": 65536},
            "runDirectory": directory.path().join("run"),
            "qemu": {"binary": QEMU, "uid": uid, "gid": gid}, "stopDeadlineSeconds": 60,
        });
        Setup { directory, config }
    }

    fn pool(&self) -> Pool {
        Pool::open(self.directory.path().join("pool")).unwrap()
    }

    /// Attaches a new disk of 1 MiB or more that begins with `sector`.
    fn disk(&mut self, name: &str, bus: &str, disk_type: DiskType, sector: &[u8]) {
        let file = format!("{name}.vhd");
        let size = DiskSize::from_bytes(4 << 20).unwrap();
        let disk = Vhd::create(&self.pool(), &file, &CreateOptions::new(disk_type, size)).unwrap();
        let mut boot_sector = sector.to_vec();
        boot_sector.resize(510, 0);
        boot_sector.extend([0x55, 0xaa]);
        disk.write_at(&boot_sector, 0).unwrap();
        disk.close().unwrap();
        let pool = self.directory.path().join("pool");
        let disks = self.config["disks"].as_array_mut().unwrap();
        disks.push(json!({
            "name": name, "bus": bus, "unit": 0, "pool": pool, "path": file, "diskEpoch": 1, "serial": "A1",
        }));
    }

    fn run_directory(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    fn result(&self) -> Option<RunResult> {
        let text = fs::read(self.run_directory().join("result.json")).ok()?;
        Some(serde_json::from_slice(&text).unwrap())
    }

    fn start(&self) -> Process {
        let config = self.directory.path().join("config.json");
        fs::write(&config, self.config.to_string()).unwrap();
        let log = fs::File::create(self.directory.path().join("vmm.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_paddock-vmm"))
            .args(["run", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Process {
            child,
            client: VmmClient::for_run_directory(&self.run_directory()),
        }
    }

    fn log(&self) -> String {
        let mut text = String::new();
        fs::File::open(self.directory.path().join("vmm.log"))
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    async fn console_says(&self, what: &str) {
        until(&format!("{what:?} on the console"), async || {
            let log = fs::read(self.run_directory().join("console.log")).unwrap_or_default();
            String::from_utf8_lossy(&log).contains(what).then_some(())
        })
        .await;
    }
}

/// A running `paddock-vmm`; killed when the test is over.
struct Process {
    child: Child,
    client: VmmClient,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn reaches(&self, state: State) -> Status {
        until(&format!("{state:?}"), async || {
            let status = self.client.status().await.ok()?;
            assert!(
                !status.state.is_final() || status.state == state,
                "{status:?}"
            );
            (status.state == state).then_some(status)
        })
        .await
    }

    async fn set(&self, power: Power, deadline_seconds: Option<u32>) -> Status {
        self.client
            .set_power(&PowerRequest {
                power,
                deadline_seconds,
            })
            .await
            .unwrap()
    }

    async fn exit_code(&mut self) -> Option<i32> {
        until("the end of paddock-vmm", async || {
            self.child.try_wait().unwrap()
        })
        .await
        .code()
    }
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn pid(raw: u32) -> Pid {
    Pid::from_raw(raw.try_into().unwrap()).unwrap()
}

/// Gone, or a zombie that nobody has reaped yet.
fn is_dead(raw: u32) -> bool {
    match fs::read_to_string(format!("/proc/{raw}/stat")) {
        Ok(stat) => stat.rsplit_once(") ").unwrap().1.starts_with(['Z', 'X']),
        Err(_) => true,
    }
}

#[tokio::test]
async fn runs_pauses_resumes_resets_and_is_turned_off() {
    if !have_qemu() {
        return;
    }
    let setup = Setup::new();
    let mut process = setup.start();
    let status = process.reaches(State::Running).await;
    assert_eq!(
        (status.id.as_str(), status.name.as_str(), status.host_epoch),
        ("test", "default/test", 7)
    );
    assert_eq!(status.pid, process.child.id());
    let identity = Identity::read(&setup.run_directory()).unwrap().unwrap();
    assert_eq!(identity.pid, process.child.id() as i32);
    assert!(open_pidfd_if_same(&identity).unwrap().is_some());
    setup.console_says("No bootable device").await;

    let mut events = process.client.events().await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().state, State::Running);
    process.set(Power::Paused, None).await;
    let paused = events.next().await.unwrap().unwrap();
    assert_eq!(
        (paused.state, paused.pause_reason),
        (State::Paused, Some(PauseReason::Requested))
    );
    assert_eq!(process.set(Power::Paused, None).await, paused);
    process.set(Power::Running, None).await;
    assert_eq!(events.next().await.unwrap().unwrap().state, State::Running);

    let mut console = UnixStream::connect(setup.run_directory().join("console.sock"))
        .await
        .unwrap();
    assert_eq!(
        process
            .client
            .reset("one")
            .await
            .unwrap()
            .reset_token
            .as_deref(),
        Some("one")
    );
    let reset = until("a counted reset", async || {
        Some(process.client.status().await.unwrap()).filter(|status| status.resets == 1)
    })
    .await;
    assert_eq!(
        (reset.state, reset.qemu_pid),
        (State::Running, status.qemu_pid)
    );
    assert_eq!(process.client.reset("one").await.unwrap().resets, 1);
    let mut heard = Vec::new();
    let listening = async {
        while !String::from_utf8_lossy(&heard).contains("SeaBIOS") {
            assert!(console.read_buf(&mut heard).await.unwrap() > 0);
        }
    };
    tokio::time::timeout(PATIENCE, listening).await.unwrap();

    assert_eq!(
        process.set(Power::Stopped, Some(0)).await.state,
        State::Stopping
    );
    let mut last = None;
    while let Some(status) = events.next().await.unwrap() {
        last = Some(status);
    }
    let last = last.unwrap();
    assert_eq!(
        (last.state, last.stop_step, last.qemu_pid),
        (State::Stopped, Some(StopStep::Quit), None)
    );
    assert_eq!(process.exit_code().await, Some(0));
    let result = setup.result().unwrap();
    assert_eq!(
        (result.outcome, result.stop_step),
        (Outcome::Stopped, Some(StopStep::Quit))
    );
    assert_eq!(
        (result.reason, result.resets),
        (EndReason::StopRequested, 1)
    );
    assert!(is_dead(status.qemu_pid.unwrap()));
    assert!(open_pidfd_if_same(&identity).unwrap().is_none());
    assert!(matches!(
        process.client.status().await,
        Err(ClientError::NotListening { .. })
    ));
}

#[tokio::test]
async fn the_power_button_reaches_even_a_paused_guest() {
    if !have_qemu() {
        return;
    }
    let mut setup = Setup::new();
    setup.disk("root", "Virtio", DiskType::Dynamic, OBEY_POWER_BUTTON);
    let mut process = setup.start();
    setup.console_says("!").await;
    process.set(Power::Paused, None).await;
    process.reaches(State::Paused).await;
    // As the agent would on its own shutdown.
    kill_process(pid(process.child.id()), Signal::TERM).unwrap();
    assert_eq!(process.exit_code().await, Some(0), "{}", setup.log());
    let result = setup.result().unwrap();
    assert_eq!(
        (result.outcome, result.stop_step),
        (Outcome::Stopped, Some(StopStep::PowerButton))
    );
}

#[tokio::test]
async fn a_qemu_that_hangs_is_killed() {
    if !have_qemu() {
        return;
    }
    let setup = Setup::new();
    let mut process = setup.start();
    let qemu = process.reaches(State::Running).await.qemu_pid.unwrap();
    kill_process(pid(qemu), Signal::STOP).unwrap();
    assert_eq!(
        process.set(Power::Stopped, Some(0)).await.stop_step,
        Some(StopStep::Quit)
    );
    let refused = process
        .client
        .set_power(&PowerRequest {
            power: Power::Running,
            deadline_seconds: None,
        })
        .await;
    assert!(
        matches!(refused, Err(ClientError::Refused(error)) if error.reason == ErrorReason::Stopping)
    );
    assert_eq!(process.exit_code().await, Some(0));
    let result = setup.result().unwrap();
    assert_eq!(
        (result.outcome, result.stop_step),
        (Outcome::Stopped, Some(StopStep::Kill))
    );
    assert!(is_dead(qemu));
}

#[tokio::test]
async fn the_death_of_qemu_is_noticed_and_its_disk_let_go() {
    if !have_qemu() {
        return;
    }
    let mut setup = Setup::new();
    setup.disk("root", "IDE", DiskType::Dynamic, OBEY_POWER_BUTTON);
    let mut process = setup.start();
    let qemu = process.reaches(State::Running).await.qemu_pid.unwrap();
    assert!(Vhd::open(&setup.pool(), "root.vhd", Access::ReadWrite, Gate::open()).is_err());
    kill_process(pid(qemu), Signal::KILL).unwrap();
    assert_eq!(process.exit_code().await, Some(1));
    let result = setup.result().unwrap();
    assert_eq!(
        (result.outcome, result.reason),
        (Outcome::Failed, EndReason::QemuExited)
    );
    assert!(result.message.contains("signal: 9"), "{}", result.message);
    Vhd::open(&setup.pool(), "root.vhd", Access::ReadWrite, Gate::open()).unwrap();
}

#[tokio::test]
async fn qemu_dies_with_its_vmm() {
    if !have_qemu() {
        return;
    }
    let setup = Setup::new();
    let mut process = setup.start();
    let qemu = process.reaches(State::Running).await.qemu_pid.unwrap();
    process.child.kill().unwrap();
    process.child.wait().unwrap();
    until("QEMU's death", async || is_dead(qemu).then_some(())).await;
    assert_eq!(setup.result(), None, "a crash leaves no result");
    // And the next run finds nothing in its way.
    let process = setup.start();
    process.reaches(State::Running).await;
}

#[tokio::test]
async fn a_run_directory_and_a_disk_are_used_once_at_a_time() {
    if !have_qemu() {
        return;
    }
    let mut setup = Setup::new();
    setup.disk("root", "Virtio", DiskType::Dynamic, OBEY_POWER_BUTTON);
    let process = setup.start();
    process.reaches(State::Running).await;
    let mut second = setup.start();
    assert_eq!(second.exit_code().await, Some(2));
    assert!(
        setup
            .log()
            .contains("another paddock-vmm runs in this directory"),
        "{}",
        setup.log()
    );
    assert_eq!(process.client.status().await.unwrap().state, State::Running);

    let mut other = Setup::new();
    other.config["disks"] = setup.config["disks"].clone();
    let mut thief = other.start();
    assert_eq!(thief.exit_code().await, Some(1));
    let result = other.result().unwrap();
    assert_eq!(
        (result.outcome, result.reason),
        (Outcome::Failed, EndReason::DiskInUse)
    );
    assert!(
        result.message.starts_with("disk root ("),
        "{}",
        result.message
    );
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let end = async |change: &dyn Fn(&mut Value)| {
        let mut setup = Setup::new();
        change(&mut setup.config);
        let mut process = setup.start();
        let code = process.exit_code().await;
        (
            code,
            setup.result().map(|result| (result.outcome, result.reason)),
            setup.log(),
        )
    };
    let failed = |reason| Some((Outcome::Failed, reason));
    let (code, result, log) = end(&|config| config["cores"] = json!(33)).await;
    assert_eq!((code, result), (Some(2), failed(EndReason::InvalidConfig)));
    assert!(log.contains("cores is 33; it must be 1 to 32"), "{log}");

    let (code, result, _) = end(&|config| config["colour"] = json!("red")).await;
    assert_eq!((code, result), (Some(2), None));

    let (code, result, _) =
        end(&|config| config["qemu"]["binary"] = json!("/nonexistent/qemu")).await;
    assert_eq!((code, result), (Some(1), failed(EndReason::QemuNotStarted)));

    let (code, result, _) = end(&|config| {
        config["boot"] = json!({"kernel": {"kernel": {"pool": "/nonexistent", "path": "vmlinuz"}}});
    })
    .await;
    assert_eq!((code, result), (Some(1), failed(EndReason::KernelNotRead)));

    let (code, result, _) = end(&|config| {
        config["networkAdapters"] =
            json!([{"name": "lan", "mac": "02:00:00:00:00:01", "tap": "pdt-none", "model": "Virtio"}]);
    })
    .await;
    assert_eq!((code, result), (Some(1), failed(EndReason::TapNotOpened)));

    if have_qemu() {
        let (code, result, _) = end(&|config| config["cpuModel"] = json!("nonesuch")).await;
        assert_eq!((code, result), (Some(1), failed(EndReason::QemuNotStarted)));
    }
}

#[tokio::test]
async fn the_api_refuses_what_it_does_not_know() {
    if !have_qemu() {
        return;
    }
    let setup = Setup::new();
    let process = setup.start();
    process.reaches(State::Running).await;
    let long = "x".repeat(5000);
    for (request, code, reason) in [
        ("GET /v1/disks", 404, "NotFound"),
        ("DELETE /v1/vm", 405, "MethodNotAllowed"),
        ("PUT /v1/vm/power {\"power\":\"Off\"}", 400, "BadRequest"),
        (
            "PUT /v1/vm/power {\"power\":\"Stopped\",\"deadlineSeconds\":86401}",
            400,
            "BadRequest",
        ),
        ("PUT /v1/vm/reset {\"token\":\"\"}", 400, "BadRequest"),
        (
            &format!("PUT /v1/vm/reset {{\"token\":\"{long}\"}}"),
            400,
            "BadRequest",
        ),
    ] {
        let (line, body) = request
            .split_once(" {")
            .map_or((request, String::new()), |(line, body)| {
                (line, format!("{{{body}"))
            });
        let mut stream = UnixStream::connect(setup.run_directory().join("api.sock"))
            .await
            .unwrap();
        let text = format!(
            "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {code} ")),
            "{line}: {answer}"
        );
        assert!(
            answer.contains(&format!("\"reason\":\"{reason}\"")),
            "{line}: {answer}"
        );
    }
    assert_eq!(process.client.status().await.unwrap().state, State::Running);
}
