//! Running the command in a folder of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub(crate) const MIB: u64 = 1 << 20;

/// A folder in which the command runs.
pub(crate) struct Folder {
    dir: tempfile::TempDir,
}

/// What the command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Said {
    fn new(output: Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// What it answered in JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Asserts the exit code.
    #[track_caller]
    pub(crate) fn ends(self, code: i32) -> Said {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    /// Asserts an exit code and parts of the error.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) -> Said {
        let said = self.ends(code);
        for part in parts {
            assert!(said.stderr.contains(part), "no {part:?} in {said:?}");
        }
        assert_eq!(said.stdout, "");
        said
    }
}

impl Folder {
    pub(crate) fn new() -> Folder {
        let dir = tempfile::tempdir().unwrap();
        Folder { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhd"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("PADDOCK_VHD_RUN", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn vhd(&self, arguments: &[&str]) -> Said {
        Said::new(self.command(arguments).output().unwrap())
    }

    /// With an answer in JSON.
    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let said = self.vhd(&[&["--json"], arguments].concat()).ends(0);
        assert_eq!(said.stderr, "");
        said.json()
    }

    /// Another program; `None`, and a word about it, where it isn't there.
    pub(crate) fn other(&self, program: &str, arguments: &[&str]) -> Option<Said> {
        let result = Command::new(program)
            .args(arguments)
            .current_dir(self.dir.path())
            .output();
        match result {
            Ok(output) => Some(Said::new(output)),
            Err(error) => {
                skipped(format_args!("{program}: {error}"));
                None
            }
        }
    }

    /// The names in the folder, but those of lock files.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.ends_with(".lock"))
            .collect();
        names.sort();
        names
    }

    /// A raw image with `pieces` of 4 KiB at their offsets.
    pub(crate) fn raw(&self, name: &str, len: u64, pieces: &[(u64, u8)]) {
        let file = File::create(self.path(name)).unwrap();
        file.set_len(len).unwrap();
        for (offset, byte) in pieces {
            file.write_all_at(&[*byte; 4096], *offset).unwrap();
        }
    }

    /// A dynamic disk of 8 MiB with pieces at 1 MiB and 5 MiB.
    pub(crate) fn disk(&self, name: &str) {
        self.raw("disk.raw", 8 * MIB, &[(MIB, 1), (5 * MIB, 2)]);
        self.vhd(&[
            "convert", "--from", "raw", "--to", "dynamic", "disk.raw", name,
        ])
        .ends(0);
        std::fs::remove_file(self.path("disk.raw")).unwrap();
    }
}

/// Waits until `found` finds something, at most 20 s.
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal to a child that runs.
pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Waits until a child ends.
pub(crate) fn wait(child: &mut Child) -> ExitStatus {
    wait_for("the command's end", || child.try_wait().unwrap())
}

pub(crate) fn file_len(path: &Path) -> u64 {
    path.metadata().unwrap().len()
}

/// Tells that a test can't run here, and why: past the test harness, which keeps
/// what a test prints that passes, while `e2e/test.sh` counts these lines.
pub(crate) fn skipped(why: impl std::fmt::Display) {
    // In one piece, among those of other tests.
    let line = format!("skipped: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
