//! The run folder of an instance, `<run-dir>/vms/<uid>`: what the agent writes for `paddock-vmm`, and what it writes
//! for the agent that comes after it.

use super::cgroup::is_uid;
use crate::{backend::GuestKey, instance::core::Started};
use paddock_crds::host::Accelerator;
use paddock_net::{AdapterSpec, NetworkSpec};
use paddock_vmm::{api::RunResult, config::VmConfig};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// The configuration for `paddock-vmm`.
pub const CONFIG_FILE: &str = "config.json";
const RECORD_FILE: &str = "start.json";
const RESULT_FILE: &str = "result.json";
const IDENTITY_FILE: &str = paddock_vmm::identity::IDENTITY_FILE;
const LOG_FILE: &str = "vmm.log";
/// A log that is longer is begun anew at the next start, in bytes.
const MAX_LOG: u64 = 1 << 20;
/// Longest file that is read back, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// The version of [`Record`]. One of a later version is not understood.
pub const RECORD_VERSION: u32 = 1;

/// What a process was started from, for the next agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Namespace of the instance.
    pub namespace: String,
    /// Name of the instance.
    pub name: String,
    /// Generation it was started from.
    pub generation: i64,
    /// Config revision it was started from.
    pub config_revision: String,
    /// Restart token it was started with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_token: Option<String>,
    /// When.
    pub at: String,
    /// What runs its instructions.
    pub accelerator: Accelerator,
    /// The user of its QEMU.
    pub user: u32,
    /// Its networks and adapters.
    #[serde(default)]
    pub adapters: Vec<Plug>,
    /// What its DHCP servers answer, as a text to compare; empty in the records of earlier agents.
    #[serde(default)]
    pub dhcp: String,
    /// Its version, [`RECORD_VERSION`].
    #[serde(default = "first_version")]
    pub version: u32,
}

fn first_version() -> u32 {
    1
}

/// An adapter and the network that it is plugged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plug {
    /// The network.
    pub network: NetworkSpec,
    /// The adapter.
    pub adapter: AdapterSpec,
}

impl Record {
    /// What the core wants to know.
    #[must_use]
    pub fn started(&self, process_id: Option<i64>) -> Started {
        Started {
            generation: self.generation,
            config_revision: self.config_revision.clone(),
            restart_token: self.restart_token.clone(),
            at: self.at.clone(),
            process_id,
            accelerator: Some(self.accelerator),
            dhcp: self.dhcp.clone(),
        }
    }

    /// The instance.
    #[must_use]
    pub fn key(&self, uid: &str) -> GuestKey {
        GuestKey {
            uid: uid.to_owned(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }
}

/// All run folders.
#[derive(Clone, Debug)]
pub struct RunFolders {
    machines: PathBuf,
}

impl RunFolders {
    /// Below `run_dir`, made if they are missing.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn below(run_dir: &Path) -> io::Result<Self> {
        let machines = run_dir.join("vms");
        DirBuilder::new()
            .recursive(true)
            // Sockets in the folders are QEMU's to reach: each folder guards itself.
            .mode(0o711)
            .create(&machines)?;
        Ok(Self { machines })
    }

    /// The folder of an instance.
    ///
    /// # Errors
    /// When that is no uid.
    pub fn of(&self, uid: &str) -> io::Result<RunFolder> {
        if is_uid(uid) {
            Ok(RunFolder {
                path: self.machines.join(uid),
            })
        } else {
            Err(io::Error::other(format!(
                "{uid:?} is not the uid of an instance"
            )))
        }
    }

    /// The uids that have one.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn list(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.machines)? {
            let entry = entry?;
            if let Some(name) = entry.file_name().to_str()
                && is_uid(name)
                && entry.file_type()?.is_dir()
            {
                found.push(name.to_owned());
            }
        }
        Ok(found)
    }
}

/// One run folder.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes it ready for a run: what told of the one before is removed, its logs stay.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn begin(&self, record: &Record) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        self.forget()?;
        self.note(record)
    }

    /// Replaces what the process runs with.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn note(&self, record: &Record) -> io::Result<()> {
        write(&self.path.join(RECORD_FILE), &serde_json::to_vec(record)?)
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write_config<T: Serialize>(&self, config: &T) -> io::Result<PathBuf> {
        let path = self.path.join(CONFIG_FILE);
        write(&path, &serde_json::to_vec_pretty(config)?)?;
        Ok(path)
    }

    /// Where the process writes what it has to say.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn log(&self) -> io::Result<File> {
        let path = self.path.join(LOG_FILE);
        let long = fs::metadata(&path).is_ok_and(|metadata| metadata.len() > MAX_LOG);
        if long {
            fs::remove_file(&path)?;
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
    }

    /// Removes what tells of a run, so that it is not taken for the next one's.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn forget(&self) -> io::Result<()> {
        for file in [RECORD_FILE, RESULT_FILE, IDENTITY_FILE] {
            match fs::remove_file(self.path.join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What the process was started from; what cannot be read, or is of a later version, counts as nothing.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        read(&self.path.join(RECORD_FILE)).filter(|r: &Record| r.version <= RECORD_VERSION)
    }

    /// Whether a process has made itself known in it that was not cleared away.
    #[must_use]
    pub fn has_process(&self) -> bool {
        self.path.join(IDENTITY_FILE).exists()
    }

    /// The configuration that was written last.
    #[must_use]
    pub fn config(&self) -> Option<VmConfig> {
        read(&self.path.join(CONFIG_FILE))
    }

    /// How the process ended; `None` while it runs, and when it crashed.
    #[must_use]
    pub fn result(&self) -> Option<RunResult> {
        read(&self.path.join(RESULT_FILE))
    }

    /// Removes it with all that is in it.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(content)?;
    drop(file);
    fs::rename(&new, path)
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_FILE)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    pub(crate) fn record() -> Record {
        Record {
            namespace: "default".into(),
            name: "web".into(),
            generation: 3,
            config_revision: "c".into(),
            restart_token: None,
            at: "2026-01-02T03:04:05Z".into(),
            accelerator: Accelerator::Emulation,
            user: 200_001,
            adapters: Vec::new(),
            dhcp: "[]".into(),
            version: RECORD_VERSION,
        }
    }

    #[test]
    fn a_new_run_forgets_the_last_one_and_keeps_its_logs() {
        let dir = tempfile::tempdir().unwrap();
        let folders = RunFolders::below(dir.path()).unwrap();
        let folder = folders.of("a-1").unwrap();
        assert_eq!(folder.record(), None);
        folder.begin(&record()).unwrap();
        assert_eq!(folder.record(), Some(record()));
        let mode = fs::metadata(folder.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for file in [RESULT_FILE, IDENTITY_FILE, "console.log"] {
            fs::write(folder.path().join(file), "{}").unwrap();
        }
        assert!(folder.has_process());
        folder.begin(&record()).unwrap();
        assert!(!folder.has_process());
        assert!(!folder.path().join(RESULT_FILE).exists());
        assert!(!folder.path().join(IDENTITY_FILE).exists());
        assert!(folder.path().join("console.log").exists());
        assert_eq!(folders.list().unwrap(), ["a-1"]);
        folder.remove().unwrap();
        folder.remove().unwrap();
        assert_eq!(folders.list().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_record_of_a_later_version_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let folder = RunFolders::below(dir.path()).unwrap().of("a-1").unwrap();
        folder.begin(&record()).unwrap();
        let mut json = serde_json::to_value(record()).unwrap();
        // Agents before versions were noted wrote the first.
        for field in ["version", "dhcp"] {
            json.as_object_mut().unwrap().remove(field);
        }
        fs::write(folder.path().join(RECORD_FILE), json.to_string()).unwrap();
        let old = Record {
            dhcp: String::new(),
            ..record()
        };
        assert_eq!(folder.record(), Some(old));
        json["version"] = 2.into();
        fs::write(folder.path().join(RECORD_FILE), json.to_string()).unwrap();
        assert_eq!(folder.record(), None);
    }

    #[test]
    fn no_uid_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let folders = RunFolders::below(dir.path()).unwrap();
        assert!(folders.of("../x").is_err());
        assert!(folders.of("").is_err());
    }
}
