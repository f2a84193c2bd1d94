//! The programs that are measured.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::files::sync;
use crate::signals;

/// How long a server may take to start, and to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Where they are.
#[derive(Debug)]
pub(crate) struct Programs {
    vhd: PathBuf,
}

/// A file and who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// `vhd serve`
    Vhd,
    /// `vhd serve --read-only`
    VhdReadOnly,
    /// `vhd serve --from raw`
    VhdRaw,
    /// `vhd serve --uncached`
    VhdUncached,
    /// `vhd serve --from raw --uncached`
    VhdRawUncached,
    /// `qemu-nbd -f vpc`, `qcow2`, `raw`
    Qemu(&'static str),
    /// The same, past the page cache.
    QemuUncached(&'static str),
}

/// A program that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub seconds: f64,
    pub peak_mebibytes: f64,
}

impl Programs {
    pub fn new(vhd: &Path) -> Result<Self> {
        let vhd = vhd
            .canonicalize()
            .with_context(|| format!("{}: build it, `make bench-vhd` does", vhd.display()))?;
        for tool in ["fio", "qemu-img", "qemu-nbd"] {
            let found = Command::new(tool).arg("--version").output();
            ensure!(
                found.is_ok_and(|output| output.status.success()),
                "{tool} is missing: `make prepare` installs it"
            );
        }
        Ok(Programs { vhd })
    }

    pub fn qemu_version(&self) -> String {
        let output = Command::new("qemu-img").arg("--version").output();
        let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let said = said.unwrap_or_default();
        said.lines().next().unwrap_or("QEMU").to_owned()
    }

    /// `vhd` with these arguments.
    pub fn vhd<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(&self.vhd);
        command.arg("--quiet").args(arguments);
        command
    }

    /// Serves `file` at `socket`.
    pub fn serve(&self, reader: Reader, file: &Path, socket: &Path) -> Result<Server> {
        let mut command = match reader {
            Reader::Vhd => self.vhd(["serve"]),
            Reader::VhdReadOnly => self.vhd(["serve", "--read-only"]),
            Reader::VhdRaw => self.vhd(["serve", "--from", "raw"]),
            Reader::VhdUncached => self.vhd(["serve", "--uncached"]),
            Reader::VhdRawUncached => self.vhd(["serve", "--from", "raw", "--uncached"]),
            Reader::Qemu(format) => qemu_nbd(format, &["--cache=writeback"]),
            Reader::QemuUncached(format) => qemu_nbd(format, &["--cache=none", "--aio=io_uring"]),
        };
        command.arg("--socket").arg(socket).arg(file);
        Server::start(command, socket, file)
    }
}

/// For as many clients as come, as long as the bench likes.
fn qemu_nbd(format: &str, cache: &[&str]) -> Command {
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=16", "--discard=unmap"]);
    command.args(["--format", format]).args(cache);
    command
}

/// Runs a program to its end. It must succeed.
pub(crate) fn run(command: &mut Command) -> Result<Ended> {
    let started = Instant::now();
    let mut child = Running::start(command)?;
    let mut peak = 0.0;
    let status = loop {
        // Before it is asked whether it has ended: then there is nothing left to see.
        peak = peak_mebibytes(&child.0).unwrap_or(0.0).max(peak);
        match child.0.try_wait().context("waiting")? {
            Some(status) => break status,
            None => thread::sleep(PAUSE),
        }
        signals::check()?;
    };
    signals::check()?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(Ended {
        seconds: started.elapsed().as_secs_f64(),
        peak_mebibytes: peak,
    })
}

/// Killed with this value.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Running(child))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The most memory it has had so far, as the kernel counts it.
fn peak_mebibytes(child: &Child) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes / 1024.0)
}

/// A disk that is served, until this value is dropped or stopped.
pub(crate) struct Server {
    child: Running,
    socket: PathBuf,
    file: PathBuf,
}

impl Server {
    fn start(mut command: Command, socket: &Path, file: &Path) -> Result<Self> {
        let mut child = Running::start(&mut command)?;
        let deadline = Instant::now() + PATIENCE;
        while greet(socket).is_err() {
            signals::check()?;
            if let Some(status) = child.0.try_wait().context("waiting")? {
                bail!("{command:?} ended: {status}");
            }
            ensure!(Instant::now() < deadline, "{command:?} does not serve");
            thread::sleep(PAUSE);
        }
        Ok(Server {
            child,
            socket: socket.to_owned(),
            file: file.to_owned(),
        })
    }

    /// For clients. The empty name is the only export of either server.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// The processor time of all its threads so far, in seconds.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.0.id());
        let said = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        cpu_seconds(&said).with_context(|| format!("no times in {path}"))
    }

    pub fn peak_mebibytes(&self) -> Result<f64> {
        peak_mebibytes(&self.child.0).context("the server has ended")
    }

    /// Ends it in good order, and makes the file durable.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.0.id())
            .ok()
            .and_then(Pid::from_raw);
        kill_process(pid.context("no such process")?, Signal::TERM).context("stopping")?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.0.try_wait().context("waiting")?.is_none() {
            ensure!(Instant::now() < deadline, "a server does not stop");
            thread::sleep(PAUSE);
        }
        let _ = fs::remove_file(&self.socket);
        sync(&self.file)
    }
}

/// User and system time out of `/proc/PID/stat`: the 12th and 13th field behind the program's name, which may hold
/// anything, in hundredths of a second on every Linux.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: f64 = times.next()?.parse().ok()?;
    let system: f64 = times.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

/// Connects, and gives up in good order, as a client may in the handshake (`NBD_OPT_ABORT`).
fn greet(socket: &Path) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_exact(&mut [0; 18])?;
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x02\0\0\0\0")?;
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Has the page cache hold nothing of a file.
pub(crate) fn forget(path: &Path) -> Result<File> {
    let forget = || -> std::io::Result<File> {
        let file = File::open(path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(file)
    };
    forget().with_context(|| format!("dropping the pages of {}", path.display()))
}

/// Reads a file once, so that everybody finds it in the page cache, and in the same way: what was there before goes first, since
/// the kernel keeps what was written in other pieces than what was read, and they cost differently.
pub(crate) fn warm(path: &Path) -> Result<()> {
    std::io::copy(&mut forget(path)?, &mut std::io::sink())
        .with_context(|| format!("reading {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 1 0 0 0 250 150 0 0 20 0 1 0 9 0 0";
        assert_eq!(cpu_seconds(stat), Some(4.0));
        assert_eq!(cpu_seconds("7 (a) S 1"), None);
    }
}
