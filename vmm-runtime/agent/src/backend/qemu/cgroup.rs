//! The cgroups of machines: everything of an instance lives below `paddock/vms/<uid>`, so it is killed by one write and
//! proved gone by one read.
//!
//! Each run has a folder of its own in there. A process that was started and has not joined yet when its instance is
//! cleared finds its folder gone and ends: it cannot slip in beside the next run.
//!
//! A machine without the second version of cgroups has the first one's freezer, see [`freezer`].

mod freezer;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::Instant;

/// Longest wait for killed processes to be gone. One in uninterruptible sleep takes longer: tried again.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const POLL_EACH: Duration = Duration::from_millis(5);

/// Why a cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The machine has neither a cgroup v2 hierarchy nor the freezer of v1.
    #[error(
        "neither a cgroup2 file system nor the freezer of cgroup v1 is mounted here: mount one (mount -t cgroup2 none /sys/fs/cgroup)"
    )]
    NoHierarchy,
    /// A uid that is no name of a folder.
    #[error("{0:?} is not the uid of an instance")]
    Uid(String),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Processes live on.
    #[error("{}: processes are left after {KILL_LIMIT:?}: pid {pids}", path.display())]
    Populated {
        /// The cgroup.
        path: PathBuf,
        /// Their ids.
        pids: String,
    },
}

/// The cgroups of this host's machines.
#[derive(Clone, Debug)]
pub struct Cgroups {
    machines: PathBuf,
    version: Version,
}

/// The version of a cgroup hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    /// The freezer's hierarchy.
    First,
    /// The one hierarchy.
    Second,
}

impl Cgroups {
    /// Below the first cgroup v2 mount of this process, else below the freezer of v1.
    ///
    /// # Errors
    /// When there is none, or the folder cannot be made.
    pub fn find() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = fs::read_to_string(path).map_err(failed(path))?;
        let found = [Version::Second, Version::First]
            .into_iter()
            .find_map(|version| Some((mount_point(&text, version)?, version)));
        let (root, version) = found.ok_or(CgroupError::NoHierarchy)?;
        Self::below(&root, version)
    }

    /// Below `root`.
    fn below(root: &Path, version: Version) -> Result<Self, CgroupError> {
        let machines = root.join("paddock/vms");
        fs::create_dir_all(&machines).map_err(failed(&machines))?;
        Ok(Self { machines, version })
    }

    fn of(&self, uid: &str) -> Result<PathBuf, CgroupError> {
        if is_uid(uid) {
            Ok(self.machines.join(uid))
        } else {
            Err(CgroupError::Uid(uid.chars().take(80).collect()))
        }
    }

    /// Makes the folder that a run joins.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self, uid: &str, run: &str) -> Result<PathBuf, CgroupError> {
        let path = self.of(uid)?.join(run);
        fs::create_dir_all(&path).map_err(failed(&path))?;
        Ok(path)
    }

    /// Whether the instance has one.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn exists(&self, uid: &str) -> Result<bool, CgroupError> {
        let path = self.of(uid)?;
        path.try_exists().map_err(failed(&path))
    }

    /// The uids that have one.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<Vec<String>, CgroupError> {
        Ok(folders(&self.machines)?
            .into_iter()
            .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
            .collect())
    }

    /// Whether its processes are all of another pid namespace: those of another host that shares this machine's cgroups.
    ///
    /// # Errors
    /// When that is no uid.
    pub fn is_foreign(&self, uid: &str) -> Result<bool, CgroupError> {
        // A process that this namespace does not see is written as 0, see cgroup_namespaces(7) and pid_namespaces(7).
        let pids = pids(&self.of(uid)?);
        Ok(!pids.is_empty() && pids.iter().all(|pid| pid == "0"))
    }

    /// Kills every process of the instance, proves that none is left, and removes the folders.
    ///
    /// # Errors
    /// When processes are left, or the proof cannot be had.
    pub async fn clear(&self, uid: &str) -> Result<(), CgroupError> {
        let path = self.of(uid)?;
        let kill = path.join(match self.version {
            Version::First => freezer::STATE_FILE,
            Version::Second => "cgroup.kill",
        });
        let killed = match self.version {
            Version::First => freezer::kill(&path).await,
            Version::Second => fs::write(&kill, "1"),
        };
        match killed {
            Ok(()) => {}
            // A folder with processes cannot be removed, so one that is not there has none.
            Err(error) if is_gone(&error) && !path.exists() => return Ok(()),
            Err(source) => return Err(CgroupError::Io { path: kill, source }),
        }
        let end = Instant::now() + KILL_LIMIT;
        while self.populated(&path)? {
            if Instant::now() >= end {
                let pids = pids(&path).join(", ");
                return Err(CgroupError::Populated { path, pids });
            }
            tokio::time::sleep(POLL_EACH).await;
        }
        remove(&path)
    }

    fn populated(&self, path: &Path) -> Result<bool, CgroupError> {
        match self.version {
            Version::First => freezer::populated(path),
            Version::Second => populated(path),
        }
    }
}

/// What Kubernetes gives as uid, and nothing that leads elsewhere.
pub fn is_uid(uid: &str) -> bool {
    (1..=64).contains(&uid.len())
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    let path = path.to_owned();
    move |source| CgroupError::Io { path, source }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// Field 5 of the line whose file system type is `cgroup2`, or `cgroup` with the freezer among the options of its
/// superblock, see proc_pid_mountinfo(5).
fn mount_point(mountinfo: &str, version: Version) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1).unwrap_or_default());
        let is_it = match version {
            Version::First => kind == "cgroup" && options.split(',').any(|o| o == "freezer"),
            Version::Second => kind == "cgroup2",
        };
        if !is_it {
            return None;
        }
        let escaped = before.split(' ').nth(4)?;
        Some(PathBuf::from(unescape(escaped)))
    })
}

/// Spaces, tabs, newlines and backslashes are written in octal there.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

fn populated(path: &Path) -> Result<bool, CgroupError> {
    let events = path.join("cgroup.events");
    let text = fs::read_to_string(&events).map_err(failed(&events))?;
    text.lines()
        .find_map(|line| line.strip_prefix("populated "))
        .map(|value| value != "0")
        .ok_or_else(|| CgroupError::Io {
            path: events,
            source: io::Error::other("expected a line: populated 0 or 1"),
        })
}

fn pids(path: &Path) -> Vec<String> {
    let mut found: Vec<String> = fs::read_to_string(path.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .map(str::to_owned)
        .collect();
    for folder in folders(path).unwrap_or_default() {
        found.extend(pids(&folder));
    }
    found
}

fn folders(path: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(source) => {
            return Err(CgroupError::Io {
                path: path.to_owned(),
                source,
            });
        }
    };
    Ok(entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

/// Removes a cgroup and those in it. The kernel refuses while one has a process: the second half of the proof.
fn remove(path: &Path) -> Result<(), CgroupError> {
    for folder in folders(path)? {
        remove(&folder)?;
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        Err(error) if is_gone(&error) => Ok(()),
        Err(source) => Err(CgroupError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_second_version_beside_the_first() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw\n\
                      32 30 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let second = |text| mount_point(text, Version::Second);
        assert_eq!(second(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified = "31 30 0:27 / /sys/fs/my\\040group rw - cgroup2 none rw\n";
        assert_eq!(second(unified), Some("/sys/fs/my group".into()));
        assert_eq!(second("1 0 0:1 / / rw - ext4 /dev/sda rw\n"), None);
        assert_eq!(second("nonsense"), None);
        let old = "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                   32 30 0:28 / /sys/fs/cgroup/frozen rw shared:3 - cgroup none rw,freezer\n";
        assert_eq!(second(old), None);
        let first = mount_point(old, Version::First);
        assert_eq!(first, Some("/sys/fs/cgroup/frozen".into()));
        assert_eq!(mount_point(hybrid, Version::First), None);
    }

    #[test]
    fn uids_lead_nowhere_else() {
        assert!(is_uid("413556dc-f117-4746-a9f8-f9705661ab5f"));
        for bad in ["", ".", "..", "a/b", "a.b", &"a".repeat(65)] {
            assert!(!is_uid(bad), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn what_is_not_there_is_clear() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::below(dir.path(), Version::Second).unwrap();
        assert!(cgroups.clear("a-1").await.is_ok());
        assert!(matches!(
            cgroups.clear("../x").await,
            Err(CgroupError::Uid(_))
        ));
        cgroups.make("a-1", "run").unwrap();
        assert_eq!(cgroups.list().unwrap(), ["a-1"]);
    }

    #[tokio::test]
    async fn a_folder_that_does_not_say_is_no_proof() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups::below(dir.path(), Version::Second).unwrap();
        // Not a cgroup: nothing in it says that it is empty.
        cgroups.make("a-1", "run").unwrap();
        assert!(matches!(
            cgroups.clear("a-1").await,
            Err(CgroupError::Io { .. })
        ));
        assert!(cgroups.exists("a-1").unwrap());
    }

    /// Kills a real process; needs a cgroup tree of that version that this user may write.
    async fn kills_and_proves(version: Version) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(root) = mount_point(&mounts, version) else {
            crate::skipped::skipped(format!("no cgroups of the {version:?} version"));
            return;
        };
        let uid = format!("test-{}", std::process::id());
        let made = Cgroups::below(&root, version)
            .and_then(|cgroups| Ok((cgroups.make(&uid, "run")?, cgroups)));
        let (folder, cgroups) = match made {
            Ok(made) => made,
            Err(error) => {
                crate::skipped::skipped(error);
                return;
            }
        };
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert!(cgroups.populated(&cgroups.of(&uid).unwrap()).unwrap());
        assert!(!cgroups.is_foreign(&uid).unwrap());
        let waiting = tokio::task::spawn_blocking(move || child.wait().unwrap());
        cgroups.clear(&uid).await.unwrap();
        assert!(!cgroups.exists(&uid).unwrap());
        assert!(!waiting.await.unwrap().success());
        // Its folder is gone: one that comes late cannot join.
        assert!(fs::write(folder.join("cgroup.procs"), "0").is_err());
        assert!(cgroups.clear(&uid).await.is_ok());
    }

    #[tokio::test]
    async fn kills_and_proves_with_the_second_version() {
        kills_and_proves(Version::Second).await;
    }

    #[tokio::test]
    async fn kills_and_proves_with_the_first_version() {
        kills_and_proves(Version::First).await;
    }
}
