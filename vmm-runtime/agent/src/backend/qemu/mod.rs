//! Real guests: one `paddock-vmm` with its QEMU per instance.

pub mod cgroup;
pub mod file_checks;
pub mod machine;
pub mod measure;
pub mod networks;
pub mod process;
pub mod run_folder;
mod serial;
pub mod users;

use super::{Backend, GuestKey, KnownUids, Leftover, Monitor, StartOrder, Teller};
use crate::{
    clock::{Clock, SystemClock},
    host::{self, SpecReceiver, accelerator::Verdict},
    instance::{
        actor::dhcp_answers,
        core::{End, Failure, Found, Guest, Started},
    },
};
use cgroup::Cgroups;
use file_checks::FileChecks;
use futures::{FutureExt, future::BoxFuture};
use networks::Networks;
use paddock_crds::{
    HostSpec,
    virtual_machine_instance::{Power, VirtualMachineInstanceStatus},
};
use paddock_vhd::LockOwner;
use paddock_vmm::{
    api::{self, ErrorReason, PowerRequest},
    client::{ClientError, VmmClient},
    identity::{Identity, open_pidfd_if_same},
};
use process::Process;
use run_folder::{RECORD_VERSION, Record, RunFolder, RunFolders};
use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::watch;
use tracing::warn;
use users::Users;
use uuid::Uuid;

/// A running process answers within this time, or it counts as hung.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// From a failed try to the next.
const RETRY: Duration = Duration::from_millis(100);
/// First and longest wait from a failed try to restore the network of a machine that was taken over to the next.
const NETWORK_RETRY: Duration = Duration::from_secs(2);
const NETWORK_RETRY_MAX: Duration = Duration::from_secs(60);

/// Where things are on this host.
#[derive(Clone, Debug)]
pub struct Paths {
    /// `paddock-vmm`.
    pub vmm: PathBuf,
    /// QEMU.
    pub qemu: PathBuf,
    /// The agent's run folder.
    pub run_dir: PathBuf,
}

/// The backend with QEMU.
pub struct QemuBackend {
    paths: Paths,
    cgroups: Cgroups,
    folders: RunFolders,
    networks: Arc<Networks>,
    users: Users,
    file_checks: FileChecks,
    spec: SpecReceiver,
    verdict: watch::Receiver<Option<Verdict>>,
    boot_id: Uuid,
}

impl QemuBackend {
    /// A backend for this host.
    ///
    /// # Errors
    /// When cgroups, the run folder or the boot's identity cannot be used.
    pub fn new(
        paths: Paths,
        networks: Networks,
        spec: SpecReceiver,
        verdict: watch::Receiver<Option<Verdict>>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            cgroups: Cgroups::find()?,
            folders: RunFolders::below(&paths.run_dir)?,
            paths,
            networks: Arc::new(networks),
            users: Users::default(),
            file_checks: FileChecks::default(),
            spec,
            verdict,
            boot_id: LockOwner::this_boot()?,
        })
    }

    async fn circumstances(&self) -> Result<(Arc<HostSpec>, Verdict), Failure> {
        let spec = host::spec(&self.spec)
            .await
            .map_err(|error| Failure::new("HypervisorFailed", error))?;
        let mut verdict = self.verdict.clone();
        let verdict = verdict
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|verdict| verdict.clone())
            .ok_or_else(|| Failure::new("HypervisorFailed", "this host was not probed"))?;
        Ok((spec, verdict))
    }

    fn user(&self, uid: &str) -> Result<u32, Failure> {
        let me = rustix::process::geteuid();
        if !me.is_root() {
            return Ok(me.as_raw());
        }
        self.users.take(uid).ok_or_else(|| {
            Failure::new(
                "HypervisorFailed",
                format!("all {} users for machines are taken", users::COUNT),
            )
        })
    }

    fn client(&self, uid: &str) -> Result<VmmClient, String> {
        let folder = self.folders.of(uid).map_err(|error| error.to_string())?;
        Ok(VmmClient::for_run_directory(folder.path()))
    }

    /// Restores DHCP and packet filter of a machine that was taken over, for as long as it takes. Its tap is there, so
    /// its guest notices nothing meanwhile.
    fn restore_networks(&self, key: &GuestKey, folder: RunFolder) {
        let networks = self.networks.clone();
        let key = key.clone();
        tokio::spawn(retried(
            (NETWORK_RETRY, NETWORK_RETRY_MAX),
            move |failure: &Failure| {
                warn!(instance = %key, error = failure.message, "its network is not restored yet");
            },
            move || {
                let (networks, folder) = (networks.clone(), folder.clone());
                async move { networks.restore(&folder).await }
            },
        ));
    }

    async fn look(
        &self,
        key: &GuestKey,
        status: &VirtualMachineInstanceStatus,
        teller: Teller,
    ) -> Result<(Found, Option<Monitor>), String> {
        let folder = self
            .folders
            .of(&key.uid)
            .map_err(|error| error.to_string())?;
        let record = folder.record();
        let user = match &record {
            Some(record) => Some(record.user),
            // Nobody else's meanwhile, whatever became of the record.
            None => folder.config().map(|config| config.qemu.uid),
        };
        if let Some(user) = user {
            self.users.note(user, &key.uid);
        }
        let identity = Identity::read(folder.path()).unwrap_or_else(|error| {
            warn!(instance = %key, %error, "its process cannot be recognised");
            None
        });
        let pidfd = match &identity {
            Some(identity) => open_pidfd_if_same(identity).map_err(|error| error.to_string())?,
            None => None,
        };
        if let (Some(identity), Some(pidfd)) = (&identity, pidfd) {
            let process = Process::adopt(pidfd).map_err(|error| error.to_string())?;
            if let Some(guest) = self.answering(key).await {
                let pid = Some(i64::from(identity.pid));
                let started = match &record {
                    Some(record) => record.started(pid),
                    None => started_from(status, pid),
                };
                self.restore_networks(key, folder.clone());
                let monitor = process::follow(process, folder, teller);
                return Ok((Found::Adopted { started, guest }, Some(monitor)));
            }
            warn!(instance = %key, pid = identity.pid, "its process does not answer");
            return Ok((Found::Ended(End::Crashed), None));
        }
        let remains = self
            .cgroups
            .exists(&key.uid)
            .map_err(|error| error.to_string())?;
        if record.is_some() || remains {
            return Ok((Found::Ended(process::end(folder.result().as_ref())), None));
        }
        Ok((Found::Nothing, None))
    }

    /// What the guest of a living process does; `None` when the process does not answer.
    async fn answering(&self, key: &GuestKey) -> Option<Guest> {
        let client = self.client(&key.uid).ok()?;
        let asking = async {
            loop {
                match client.status().await {
                    Ok(status) if status.id == key.uid => {
                        // While it is being stopped it counts as running: it is told to stop once more, or ends.
                        return Some(process::guest(&status).unwrap_or(Guest::Running));
                    }
                    Ok(_) => return None,
                    Err(_) => tokio::time::sleep(RETRY).await,
                }
            }
        };
        tokio::time::timeout(ANSWER_LIMIT, asking).await.ok()?
    }

    async fn make_ready(&self, order: &StartOrder) -> Result<(), Failure> {
        let (spec, verdict) = self.circumstances().await?;
        let config = &order.instance.spec.config;
        machine::accelerator(config, &verdict)?;
        let user = self.user(&order.key.uid)?;
        let plugs = networks::plugs(order, &spec, user)?;
        let (config, spec) = (config.clone(), spec.clone());
        self.file_checks
            .run(&order.key.uid, move || machine::check_files(&config, &spec))
            .await?;
        self.networks.ensure(&plugs).await
    }

    async fn launch(
        &self,
        order: &StartOrder,
        teller: Teller,
    ) -> Result<(Started, Monitor), Failure> {
        let (spec, verdict) = self.circumstances().await?;
        let uid = &order.key.uid;
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::new("HypervisorFailed", format!("{what}: {error}"))
        };
        let folder = self
            .folders
            .of(uid)
            .map_err(|error| failed("run folder", &error))?;
        let user = self.user(uid)?;
        let group = if rustix::process::geteuid().is_root() {
            users::group(user)
        } else {
            rustix::process::getegid().as_raw()
        };
        let config = machine::config(
            order,
            &machine::Circumstances {
                host: &spec,
                verdict: &verdict,
                run_folder: folder.path(),
                qemu: &self.paths.qemu,
                user,
                group,
                boot_id: self.boot_id,
            },
        )?;
        let instance = &order.instance;
        let record = Record {
            namespace: order.key.namespace.clone(),
            name: order.key.name.clone(),
            generation: instance.metadata.generation.unwrap_or_default(),
            config_revision: instance.spec.config_revision.clone(),
            restart_token: instance.spec.restart_token.clone(),
            at: SystemClock.wall().to_string(),
            accelerator: machine::accelerator(&instance.spec.config, &verdict)?,
            user,
            adapters: networks::plugs(order, &spec, user)?,
            dhcp: dhcp_answers(instance),
            version: RECORD_VERSION,
        };
        let child = self
            .start_process(&folder, &record, &config, uid)
            .map_err(|error| failed("paddock-vmm was not started", &error))?;
        let started = record.started(child.id().map(i64::from));
        let monitor = process::follow(Process::Child(Box::new(child)), folder, teller);
        Ok((started, monitor))
    }

    fn start_process(
        &self,
        folder: &RunFolder,
        record: &Record,
        config: &paddock_vmm::config::VmConfig,
        uid: &str,
    ) -> anyhow::Result<tokio::process::Child> {
        folder.begin(record)?;
        let config = folder.write_config(config)?;
        let run = uuid::Uuid::new_v4().simple().to_string();
        let cgroup = self.cgroups.make(uid, &run)?;
        Ok(process::spawn(&self.paths.vmm, &config, &cgroup, folder)?)
    }

    async fn answer_dhcp(&self, order: &StartOrder) -> Result<(), Failure> {
        let (spec, _) = self.circumstances().await?;
        let user = self.user(&order.key.uid)?;
        let wanted = networks::plugs(order, &spec, user)?;
        let folder = self
            .folders
            .of(&order.key.uid)
            .map_err(|error| Failure::new("HypervisorFailed", format!("run folder: {error}")))?;
        let spec = &order.instance.spec;
        let status = order.instance.status.as_ref();
        let started_from = status.and_then(|s| s.started_config_revision.as_deref());
        let wish = networks::Wish {
            plugs: wanted,
            dhcp: dhcp_answers(&order.instance),
            is_started: started_from == Some(&*spec.config_revision),
        };
        self.networks.serve_dhcp(&folder, wish).await
    }

    /// Asks the process for a power state; one that is just starting listens in a moment.
    async fn ask(&self, uid: &str, request: PowerRequest) -> Result<(), String> {
        let client = self.client(uid)?;
        let mut error = String::new();
        let asking = async {
            loop {
                match client.set_power(&request).await {
                    Ok(_) => return Ok(()),
                    Err(ClientError::Refused(refusal)) => match refusal.reason {
                        ErrorReason::Busy => error = refusal.message,
                        // It is being stopped: that was asked for, or overrules what was asked for.
                        ErrorReason::Stopping => return Ok(()),
                        _ => return Err(refusal.message),
                    },
                    Err(other) => error = other.to_string(),
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        match tokio::time::timeout(ANSWER_LIMIT, asking).await {
            Ok(result) => result,
            Err(_) => Err(error),
        }
    }

    fn find_leftovers(&self) -> Result<Vec<Leftover>, String> {
        let mut uids: BTreeSet<String> = self
            .folders
            .list()
            .map_err(|error| error.to_string())?
            .into_iter()
            .collect();
        for uid in self.cgroups.list().map_err(|error| error.to_string())? {
            let foreign = self
                .cgroups
                .is_foreign(&uid)
                .map_err(|error| error.to_string())?;
            if foreign && !uids.contains(&uid) {
                warn!(
                    uid,
                    "a cgroup of another host on this machine: give each host a cgroup namespace of its own"
                );
            } else {
                uids.insert(uid);
            }
        }
        uids.into_iter()
            .map(|uid| {
                let folder = self.folders.of(&uid).map_err(|error| error.to_string())?;
                let record = folder.record();
                if let Some(record) = &record {
                    self.users.note(record.user, &uid);
                }
                Ok(Leftover {
                    key: record.map(|record| record.key(&uid)),
                    uid,
                })
            })
            .collect()
    }
}

/// Without a record of its own, what the API says of a process has to do.
fn started_from(status: &VirtualMachineInstanceStatus, process_id: Option<i64>) -> Started {
    Started {
        generation: status.started_generation.unwrap_or_default(),
        config_revision: status.started_config_revision.clone().unwrap_or_default(),
        restart_token: status.restart_token.clone(),
        at: status.started_at.clone().unwrap_or_default(),
        process_id,
        accelerator: status.accelerator,
        dhcp: String::new(),
    }
}

/// Tries until it works; the pauses grow from the first to the longest.
async fn retried<E, F>(
    (first, longest): (Duration, Duration),
    note: impl Fn(&E),
    mut attempt: impl FnMut() -> F,
) where
    F: Future<Output = Result<(), E>>,
{
    let mut pause = first;
    while let Err(error) = attempt().await {
        note(&error);
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(longest);
    }
}

impl Backend for QemuBackend {
    fn inventory(&self) -> BoxFuture<'_, Result<Vec<Leftover>, String>> {
        async { self.find_leftovers() }.boxed()
    }

    fn examine<'a>(
        &'a self,
        key: &'a GuestKey,
        status: &'a VirtualMachineInstanceStatus,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Found, Option<Monitor>), String>> {
        self.look(key, status, teller).boxed()
    }

    fn prepare<'a>(&'a self, order: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>> {
        self.make_ready(order).boxed()
    }

    fn spawn<'a>(
        &'a self,
        order: &'a StartOrder,
        teller: Teller,
    ) -> BoxFuture<'a, Result<(Started, Monitor), Failure>> {
        self.launch(order, teller).boxed()
    }

    fn set_power<'a>(
        &'a self,
        key: &'a GuestKey,
        power: Power,
    ) -> BoxFuture<'a, Result<(), String>> {
        let power = match power {
            Power::Running => api::Power::Running,
            Power::Paused => api::Power::Paused,
            Power::Stopped => api::Power::Stopped,
        };
        let request = PowerRequest {
            power,
            deadline_seconds: None,
        };
        self.ask(&key.uid, request).boxed()
    }

    fn stop<'a>(&'a self, key: &'a GuestKey, deadline: u32) -> BoxFuture<'a, Result<(), String>> {
        let request = PowerRequest {
            power: api::Power::Stopped,
            deadline_seconds: Some(deadline),
        };
        self.ask(&key.uid, request).boxed()
    }

    fn clear<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        async move {
            self.cgroups
                .clear(uid)
                .await
                .map_err(|error| error.to_string())?;
            // A process that was started and joined no cgroup is none that the proof covers.
            let folder = self.folders.of(uid).map_err(|error| error.to_string())?;
            folder.forget().map_err(|error| error.to_string())
        }
        .boxed()
    }

    fn clean<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        async move {
            let networks = self.networks.remove(|owner| owner != uid).await;
            let folder = self.folders.of(uid).map_err(|error| error.to_string())?;
            folder.remove().map_err(|error| error.to_string())?;
            self.users.give_back(uid);
            networks
        }
        .boxed()
    }

    fn serve_dhcp<'a>(&'a self, order: &'a StartOrder) -> BoxFuture<'a, Result<(), Failure>> {
        self.answer_dhcp(order).boxed()
    }

    fn sweep<'a>(&'a self, known: &'a KnownUids) -> BoxFuture<'a, Result<(), String>> {
        async move {
            self.networks.repair().await;
            self.networks.remove(|owner| known.contains(owner)).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn a_network_is_restored_however_long_it_takes() {
        let (tries, notes) = (Cell::new(0), Cell::new(0));
        retried(
            (Duration::ZERO, Duration::ZERO),
            |_: &()| notes.set(notes.get() + 1),
            || {
                tries.set(tries.get() + 1);
                std::future::ready(if tries.get() < 50 { Err(()) } else { Ok(()) })
            },
        )
        .await;
        assert_eq!((tries.get(), notes.get()), (50, 49));
    }
}
