//! The lab's folder, `.lab` unless said otherwise: what lies where in it.
//!
//! ```text
//! .paddock-lab.json   the marker: a folder without it is never removed
//! control.sock        the supervisor, mode 0600
//! kubeconfig          the administrator's, mode 0600
//! pki/ etcd/          of our own control plane
//! logs/NAME.log       supervisor, etcd, kube-apiserver, kube-controller-manager, operator and one per host
//! hosts/NAME/         /var/lib/paddock of that host
//! hollow/NAME/        state and run folder of that hollow host
//! pools/shared/ images/   the pools that all hosts see
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, lchown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::network::subnet::ManagementSubnet;

const MARKER: &str = ".paddock-lab.json";

/// What the marker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Marker {
    /// Version of the folder's layout: 1.
    pub version: u32,
    /// Eight hexadecimal digits that tell labs on one machine apart.
    pub id: String,
    /// The management subnet of the last start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<ManagementSubnet>,
    /// Kubeconfig of the cluster that is used instead of our own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_kubeconfig: Option<PathBuf>,
    /// Folder of the control plane's programs, which holds `kubectl` too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<PathBuf>,
}

impl Marker {
    /// Name of the interface in the machine's own network namespace.
    pub fn machine_link(&self) -> String {
        format!("pdl-{}", self.id)
    }
}

/// A lab's folder, by its absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabFolder(PathBuf);

impl LabFolder {
    /// The folder at `path`, which need not exist.
    pub fn new(path: &Path) -> Result<Self> {
        std::path::absolute(path)
            .map(Self)
            .with_context(|| format!("folder {}", path.display()))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder with a marker, or finds them there. Refuses a folder that holds something else.
    pub fn create(&self) -> Result<Marker> {
        if let Some(marker) = self.marker()? {
            return Ok(marker);
        }
        private_folder(&self.0)?;
        if fs::read_dir(&self.0)
            .with_context(|| self.0.display().to_string())?
            .next()
            .is_some()
        {
            bail!(
                "{} is not a lab's folder (no {MARKER} in it) and not empty; name another with --dir or empty it yourself",
                self.0.display()
            );
        }
        let id = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
        let marker = Marker {
            version: 1,
            id,
            subnet: None,
            external_kubeconfig: None,
            control_plane: None,
        };
        self.write_marker(&marker)?;
        Ok(marker)
    }

    /// The marker; `None` when the folder or the marker is missing.
    pub fn marker(&self) -> Result<Option<Marker>> {
        let path = self.0.join(MARKER);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let marker: Marker = serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged", path.display()))?;
        if marker.version != 1 {
            bail!(
                "{}: expected version 1, found {}; use the paddock-lab that made it",
                path.display(),
                marker.version
            );
        }
        if marker.id.len() != 8 || !marker.id.bytes().all(|b| b.is_ascii_hexdigit()) {
            bail!(
                "{}: expected an id of eight hexadecimal digits, found {:?}",
                path.display(),
                marker.id
            );
        }
        Ok(Some(marker))
    }

    /// The marker of a lab that must exist.
    pub fn existing(&self) -> Result<Marker> {
        match self.marker()? {
            Some(marker) => Ok(marker),
            None => bail!(
                "no lab in {} (it has no {MARKER}); start one with `paddock-lab up`",
                self.0.display()
            ),
        }
    }

    /// Replaces the marker.
    pub fn write_marker(&self, marker: &Marker) -> Result<()> {
        write_private(&self.0.join(MARKER), &serde_json::to_string_pretty(marker)?)
    }

    /// Gives folder and kubeconfig to a user, so that he can use them without being root; all else in it stays root's.
    pub fn give(&self, user: u32, group: u32) -> Result<()> {
        for path in [self.0.clone(), self.kubeconfig()] {
            match lchown(&path, Some(user), Some(group)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("giving {} to user {user}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Held while a lab is started or ended, so that two commands do not do it at once.
    pub fn lock(&self) -> Result<File> {
        let file = File::open(&self.0).with_context(|| self.0.display().to_string())?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .context("lock of the lab's folder")?;
        Ok(file)
    }

    /// Removes the folder with all in it. Refuses one without marker, and one with something mounted inside.
    pub fn remove(&self) -> Result<()> {
        self.existing()?;
        let mountinfo =
            fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
        if let Some(mount) = mounted_beneath(&mountinfo, &self.0) {
            bail!(
                "{mount} is mounted inside {}; unmount it first",
                self.0.display()
            );
        }
        // The marker goes last: what is left after an error is still known as a lab's folder.
        for entry in fs::read_dir(&self.0).with_context(|| self.0.display().to_string())? {
            let entry = entry.with_context(|| self.0.display().to_string())?;
            if entry.file_name() == MARKER {
                continue;
            }
            let path = entry.path();
            let removed = if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        fs::remove_dir_all(&self.0).with_context(|| format!("removing {}", self.0.display()))
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// Certificates and keys of our own control plane.
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// The data of our own etcd.
    pub fn etcd(&self) -> PathBuf {
        self.0.join("etcd")
    }

    /// Where the logs lie.
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The log of one process or host.
    pub fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// `/var/lib/paddock` of a host.
    pub fn host(&self, name: &str) -> PathBuf {
        self.0.join("hosts").join(name)
    }

    /// State and run folder of a hollow host.
    pub fn hollow(&self, name: &str) -> PathBuf {
        self.0.join("hollow").join(name)
    }

    /// A pool that all hosts see.
    pub fn pool(&self, name: &str) -> PathBuf {
        self.0.join("pools").join(name)
    }

    /// Connects to the supervisor. `None`: there is none.
    pub fn connect(&self) -> Result<Option<UnixStream>> {
        let Ok(folder) = File::open(&self.0) else {
            return Ok(None);
        };
        match UnixStream::connect(socket_path(&folder)) {
            Ok(stream) => Ok(Some(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).with_context(|| format!("{}/control.sock", self.0.display())),
        }
    }

    /// Listens for commands, mode 0600; replaces the socket of a supervisor that is gone.
    pub fn listen(&self) -> Result<UnixListener> {
        let folder = File::open(&self.0).with_context(|| self.0.display().to_string())?;
        let path = socket_path(&folder);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context("control.sock");
            }
            _ => {}
        }
        // The folder is 0700, so nobody reaches the socket before its mode is set.
        let listener = UnixListener::bind(&path).context("control.sock")?;
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .context("control.sock")?;
        Ok(listener)
    }
}

/// The socket's path through a descriptor: a socket's path has at most 107 bytes, a folder's may be longer.
fn socket_path(folder: &File) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}/control.sock", folder.as_raw_fd()))
}

/// The first mount point beneath `folder` in the text of a mountinfo file.
fn mounted_beneath(mountinfo: &str, folder: &Path) -> Option<String> {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(crate::cgroup::unescape)
        .find(|mount| Path::new(mount).starts_with(folder))
}

/// Makes a folder (and those above it) that only its owner may enter; that it exists is fine.
pub fn private_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("folder {}", path.display()))
}

/// Writes a file of mode 0600, whole or not at all.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?
            .write_all(text.as_bytes())?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_folder_is_neither_taken_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "years of work").unwrap();
        let folder = LabFolder::new(dir.path()).unwrap();
        assert!(
            folder
                .create()
                .unwrap_err()
                .to_string()
                .contains("not a lab's folder")
        );
        assert!(
            folder
                .remove()
                .unwrap_err()
                .to_string()
                .contains("no lab in")
        );
        assert_eq!(
            fs::read_to_string(dir.path().join("thesis.txt")).unwrap(),
            "years of work"
        );
    }

    #[test]
    fn a_lab_folder_keeps_its_id_and_goes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LabFolder::new(&dir.path().join("lab")).unwrap();
        let marker = folder.create().unwrap();
        assert_eq!(folder.create().unwrap(), marker);
        assert_eq!(marker.machine_link().len(), 12);
        fs::create_dir(folder.etcd()).unwrap();
        folder.remove().unwrap();
        assert!(!folder.path().exists());
        assert!(dir.path().exists());
    }

    #[test]
    fn a_damaged_marker_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LabFolder::new(dir.path()).unwrap();
        for text in [
            "",
            "{}",
            r#"{"version":2,"id":"01234567"}"#,
            r#"{"version":1,"id":"../../.."}"#,
        ] {
            fs::write(dir.path().join(MARKER), text).unwrap();
            assert!(folder.marker().is_err(), "{text}");
        }
    }

    #[test]
    fn finds_mounts_beneath() {
        let info =
            "1 2 0:1 / /a/lab/x\\040y rw - tmpfs t rw\n3 2 0:1 / /a/laboratory rw - tmpfs t rw\n";
        assert_eq!(
            mounted_beneath(info, Path::new("/a/lab")).as_deref(),
            Some("/a/lab/x y")
        );
        assert_eq!(mounted_beneath(info, Path::new("/b")), None);
    }

    #[test]
    fn a_long_path_has_a_socket_too() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LabFolder::new(&dir.path().join("x".repeat(120))).unwrap();
        folder.create().unwrap();
        assert!(folder.connect().unwrap().is_none());
        let listener = folder.listen().unwrap();
        assert!(folder.connect().unwrap().is_some());
        drop(listener);
        assert!(folder.connect().unwrap().is_none());
        folder.listen().unwrap();
    }
}
