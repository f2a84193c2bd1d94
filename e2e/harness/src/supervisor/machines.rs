//! Finding a VM's processes: by the files in its run folder on its host, so that it works while the API server is down.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::Deserialize;

use super::host::Host;
use super::{Supervisor, lock};

/// On a host: one folder per VM.
const VMS: &str = "run/paddock/vms";

/// A VM's run folder on a host.
pub struct Located {
    /// The host.
    pub host: Arc<Host>,
    /// The folder, as a path of ours.
    pub folder: PathBuf,
    uid: String,
}

#[derive(Deserialize)]
struct Config {
    name: String,
}

#[derive(Deserialize)]
struct Identity {
    pid: i32,
}

impl Supervisor {
    /// The one run folder of a VM whose process is alive.
    pub fn locate(&self, namespace: &str, name: &str) -> Result<Located> {
        let hosts: Vec<Arc<Host>> = lock(&self.hosts).values().cloned().collect();
        let mut found = Vec::new();
        for host in hosts {
            let Ok(root) = host.root() else { continue };
            let Ok(entries) = std::fs::read_dir(root.join(VMS)) else {
                continue;
            };
            for entry in entries.flatten() {
                let folder = entry.path();
                let Some(config) = read_json::<Config>(&folder.join("config.json")) else {
                    continue;
                };
                if is_named(&config.name, namespace, name)
                    && vmm_pid(&folder).is_some_and(|pid| is_alive(&root, pid))
                {
                    let uid = entry.file_name().to_string_lossy().into_owned();
                    found.push(Located {
                        host: Arc::clone(&host),
                        folder,
                        uid,
                    });
                }
            }
        }
        if found.len() > 1 {
            // The same name in several namespaces, or an old instance that has not ended yet: the API server knows which one is meant.
            let uid = self
                .runtime
                .block_on(self.access()?.cluster.instance_uid(namespace, name))?;
            found.retain(|located| Some(&located.uid) == uid.as_ref());
        }
        let count = found.len();
        match found.pop() {
            Some(located) if count == 1 => Ok(located),
            Some(_) => bail!(
                "VM {namespace}/{name} runs {count} times: this must never happen; see `paddock-lab exec HOST -- ls /{VMS}`"
            ),
            None => bail!(
                "no process of a VM {namespace}/{name} on any host that is up; see `kubectl get vm -A -o wide`"
            ),
        }
    }

    /// Kills a VM's paddock-vmm.
    pub fn kill_vmm(&self, namespace: &str, name: &str) -> Result<String> {
        let located = self.locate(namespace, name)?;
        let pid = vmm_pid(&located.folder).context("vmm.json is gone")?;
        located.host.signal_inside(pid, Signal::KILL)?;
        Ok(format!(
            "killed paddock-vmm of {namespace}/{name} (process {pid} on {})",
            located.host.name()
        ))
    }

    /// Kills a VM's QEMU.
    pub fn kill_qemu(&self, namespace: &str, name: &str) -> Result<String> {
        let located = self.locate(namespace, name)?;
        let vmm = vmm_pid(&located.folder).context("vmm.json is gone")?;
        let root = located.host.root()?;
        let qemu = children(&root, vmm).into_iter().find(|pid| {
            std::fs::read_to_string(root.join(format!("proc/{pid}/comm")))
                .is_ok_and(|comm| comm.starts_with("qemu"))
        });
        let qemu = qemu.with_context(|| {
            format!("paddock-vmm of {namespace}/{name} has no QEMU at the moment")
        })?;
        located.host.signal_inside(qemu, Signal::KILL)?;
        Ok(format!(
            "killed QEMU of {namespace}/{name} (process {qemu} on {})",
            located.host.name()
        ))
    }

    /// A VM's console, connected, and its log; with the name of its host.
    pub fn console(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<(UnixStream, Option<File>, String)> {
        let located = self.locate(namespace, name)?;
        let socket = located.folder.join("console.sock");
        let stream = UnixStream::connect(&socket)
            .with_context(|| format!("console of {namespace}/{name}"))?;
        Ok((
            stream,
            File::open(located.folder.join("console.log")).ok(),
            located.host.name().to_owned(),
        ))
    }
}

/// Whether the name in a VM's configuration is that VM's: `namespace/name`, or the name alone.
fn is_named(configured: &str, namespace: &str, name: &str) -> bool {
    match configured.split_once('/') {
        Some((in_namespace, named)) => (in_namespace, named) == (namespace, name),
        None => configured == name,
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn vmm_pid(folder: &Path) -> Option<i32> {
    read_json::<Identity>(&folder.join("vmm.json")).map(|identity| identity.pid)
}

fn is_alive(root: &Path, pid: i32) -> bool {
    let stat = std::fs::read_to_string(root.join(format!("proc/{pid}/stat")));
    // The state follows the name, which is in parentheses and may hold any character.
    stat.is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    })
}

/// The children of all threads of a process.
fn children(root: &Path, pid: i32) -> Vec<i32> {
    let Ok(tasks) = std::fs::read_dir(root.join(format!("proc/{pid}/task"))) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_with_and_without_namespace() {
        assert!(is_named("web", "default", "web"));
        assert!(is_named("default/web", "default", "web"));
        assert!(!is_named("other/web", "default", "web"));
        assert!(!is_named("web2", "default", "web"));
    }

    #[test]
    fn sees_processes() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(is_alive(Path::new("/"), me));
        assert!(!is_alive(Path::new("/"), 0));
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(children(Path::new("/"), me).contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
