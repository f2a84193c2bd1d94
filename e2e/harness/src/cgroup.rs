//! Control groups, version 2 only: each lab has one, each host one beneath it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A control group's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup(PathBuf);

/// Where version 2 is mounted, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)): also `unified` of a hybrid machine.
///
/// A mount of the whole hierarchy wins over one of a part of it.
pub fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        (right.split(' ').next()? == "cgroup2").then(|| (root, unescape(point)))
    });
    mounts
        .min_by_key(|(root, _)| *root != "/")
        .map(|(_, point)| PathBuf::from(point))
}

/// Undoes the octal escapes of mountinfo: `\040` is a space.
pub fn unescape(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let digits = bytes
            .get(at + 1..at + 4)
            .and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()) {
            Some(byte) if bytes[at] == b'\\' => {
                out.push(byte);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

impl Cgroup {
    /// The control group of the lab `id`.
    pub fn of_lab(id: &str) -> Result<Self> {
        let mountinfo =
            fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        let Some(mount) = find_mount(&mountinfo) else {
            bail!(
                "no cgroup version 2 is mounted; mount it: mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"
            );
        };
        Ok(Self(mount.join(format!("paddock-lab-{id}"))))
    }

    /// A control group by its folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The control group `name` beneath this one.
    pub fn child(&self, name: &str) -> Self {
        Self(self.0.join(name))
    }

    /// Makes it. Nothing of the machine's own groups is changed: it gets the controllers that they hand out anyway.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.0).with_context(|| format!("control group {}", self.0.display()))
    }

    /// Makes the control group `name` beneath this one, with all the controllers that this one has.
    pub fn create_child(&self, name: &str) -> Result<Self> {
        let child = self.child(name);
        child.create()?;
        delegate(&self.0);
        Ok(child)
    }

    /// Moves the calling process in.
    pub fn join(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Stops every process in it from running; they notice nothing but the time.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        self.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        self.wait_for_event(wanted, Duration::from_secs(10))
    }

    /// Kills every process in it and beneath, and removes it; that it is missing is fine.
    pub fn destroy(&self) -> Result<()> {
        if !self.0.exists() {
            return Ok(());
        }
        self.write("cgroup.kill", "1")?;
        self.wait_for_event("populated 0", Duration::from_secs(20))?;
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match remove_tree(&self.0) {
                Ok(()) => return Ok(()),
                // An exited process may be accounted a moment longer.
                Err(error)
                    if error.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error())
                        && Instant::now() < deadline =>
                {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        format!("removing the control group {}", self.0.display())
                    });
                }
            }
        }
    }

    fn wait_for_event(&self, wanted: &str, limit: Duration) -> Result<()> {
        let path = self.0.join("cgroup.events");
        let deadline = Instant::now() + limit;
        loop {
            let events = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            if events.lines().any(|line| line == wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!(
                    "{}: expected `{wanted}` within {} s, found {events:?}",
                    path.display(),
                    limit.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, text).with_context(|| format!("writing {text:?} to {}", path.display()))
    }
}

/// Hands every controller of `cgroup` on to its children. What the kernel refuses stays off: a lab works without controllers.
pub fn delegate(cgroup: &Path) {
    let available = fs::read_to_string(cgroup.join("cgroup.controllers")).unwrap_or_default();
    for controller in available.split_whitespace() {
        if let Err(error) = fs::write(
            cgroup.join("cgroup.subtree_control"),
            format!("+{controller}"),
        ) {
            tracing::debug!(
                "{}: controller {controller} not handed on: {error}",
                cgroup.display()
            );
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_hybrid_and_pure() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      34 31 0:31 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let pure = "30 23 0:26 /lxc /other\\040place rw shared:4 - cgroup2 none rw\n31 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 none rw\n";
        assert_eq!(find_mount(pure), Some("/sys/fs/cgroup".into()));
        assert_eq!(
            find_mount("30 23 0:26 /lxc /other\\040place rw - cgroup2 none rw"),
            Some("/other place".into())
        );
        assert_eq!(
            find_mount(
                "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\ngarbage\n"
            ),
            None
        );
    }

    #[test]
    fn unescapes_octal_only() {
        assert_eq!(unescape("a\\040b\\"), "a b\\");
        assert_eq!(unescape("\\999"), "\\999");
        assert_eq!(unescape("x"), "x");
    }
}
