//! Doing what [`Fault`] says.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::host::Host;
use super::service::Service;
use super::{Supervisor, lock};
use crate::fault::Fault;
use crate::folder::private_folder;
use crate::host_init::Order;
use crate::logs::log_name;
use crate::network::cuts::Direction;
use crate::network::links::{apply_cuts, lan_port, management_port};

/// The operator's port on the management bridge.
pub const OPERATOR_PORT_NAME: &str = "operator";
const API_SERVER: &str = "kube-apiserver";
const CONTROLLER_MANAGER: &str = "kube-controller-manager";

/// A host of either kind.
enum AnyHost {
    Namespaced(Arc<Host>),
    Hollow(Arc<Service>),
}

impl Supervisor {
    /// Breaks or mends something; says what was done.
    pub fn fault(&self, fault: &Fault) -> Result<String> {
        match fault {
            Fault::KillAgent { host } => match self.host(host)? {
                AnyHost::Namespaced(host) => host.kill_agent()?,
                AnyHost::Hollow(agent) => agent.kill()?,
            },
            Fault::StopAgent { host } => match self.host(host)? {
                AnyHost::Namespaced(host) => host.order(Order::StopAgent)?,
                AnyHost::Hollow(agent) => agent.halt(Signal::TERM)?,
            },
            Fault::StartAgent { host } => match self.host(host)? {
                AnyHost::Namespaced(host) => host.order(Order::StartAgent)?,
                AnyHost::Hollow(agent) => agent.resume()?,
            },
            Fault::PauseAgent { host } => self.signal_agent(host, Signal::STOP)?,
            Fault::ResumeAgent { host } => self.signal_agent(host, Signal::CONT)?,
            Fault::KillOperator => self.service("operator")?.kill()?,
            Fault::KillApiserver => self.service(API_SERVER)?.kill()?,
            Fault::KillEtcd => self.service("etcd")?.kill()?,
            Fault::KillControllerManager => self.service(CONTROLLER_MANAGER)?.kill()?,
            Fault::StopService { name } => self.service(name)?.halt(Signal::KILL)?,
            Fault::StartService { name } => self.service(name)?.resume()?,
            Fault::PauseService { name } => self.service(name)?.signal(Signal::STOP)?,
            Fault::ResumeService { name } => self.service(name)?.signal(Signal::CONT)?,
            Fault::KillVmm { vm, namespace } => return self.kill_vmm(namespace, vm),
            Fault::KillQemu { vm, namespace } => return self.kill_qemu(namespace, vm),
            Fault::KillHost {
                host: name,
                stay_down,
            } => match self.host(name)? {
                AnyHost::Namespaced(host) => host.kill(*stay_down)?,
                AnyHost::Hollow(agent) => self.kill_hollow(name, &agent, *stay_down)?,
            },
            Fault::StartHost { host } => match self.host(host)? {
                AnyHost::Namespaced(host) => host.switch_on()?,
                AnyHost::Hollow(agent) => agent.resume()?,
            },
            Fault::PauseHost { host } => self.pause(host, true)?,
            Fault::ResumeHost { host } => self.pause(host, false)?,
            Fault::Cut { target, direction } => {
                self.cut(self.management_port_of(target)?, *direction)?
            }
            Fault::CutLan { host } => {
                self.cut(lan_port(self.namespaced(host)?.index), Direction::Both)?
            }
            Fault::Heal { target: None } => self.change_cuts(|cuts| cuts.clear())?,
            Fault::Heal {
                target: Some(target),
            } => {
                let management = self.management_port_of(target)?;
                let lan = lock(&self.hosts)
                    .get(target)
                    .map(|host| lan_port(host.index));
                self.change_cuts(|cuts| {
                    cuts.retain(|port, _| *port != management && Some(port) != lan.as_ref())
                })?;
            }
        }
        let name = serde_json::to_value(fault)?;
        Ok(format!("done: {name}"))
    }

    fn host(&self, name: &str) -> Result<AnyHost> {
        if let Some(host) = lock(&self.hosts).get(name) {
            return Ok(AnyHost::Namespaced(Arc::clone(host)));
        }
        if let Some(agent) = lock(&self.hollow).get(name) {
            return Ok(AnyHost::Hollow(Arc::clone(agent)));
        }
        let names: Vec<String> = lock(&self.hosts).keys().cloned().collect();
        bail!(
            "no host {name:?}; there are: {}",
            if names.is_empty() {
                "none".to_owned()
            } else {
                names.join(", ")
            }
        )
    }

    /// A host with namespaces of its own.
    pub fn namespaced(&self, name: &str) -> Result<Arc<Host>> {
        match self.host(name)? {
            AnyHost::Namespaced(host) => Ok(host),
            AnyHost::Hollow(_) => bail!(
                "{name} is a hollow host, a plain process: it has no namespaces, links or freezer of its own"
            ),
        }
    }

    fn service(&self, name: &str) -> Result<Arc<Service>> {
        let services = lock(&self.services);
        let found = services.get(log_name(name)).cloned();
        found.with_context(|| {
            format!(
                "{name:?} does not run in this lab; there are: {}",
                services.keys().cloned().collect::<Vec<_>>().join(", ")
            )
        })
    }

    fn signal_agent(&self, name: &str, signal: Signal) -> Result<()> {
        match self.host(name)? {
            AnyHost::Namespaced(host) => host.signal_agent(signal),
            AnyHost::Hollow(agent) => agent.signal(signal),
        }
    }

    fn pause(&self, name: &str, pause: bool) -> Result<()> {
        self.namespaced(name)?.pause(pause)
    }

    /// A hollow host's power cut: its process dies and its run folder is lost.
    fn kill_hollow(&self, name: &str, agent: &Service, stay_down: bool) -> Result<()> {
        agent.halt(Signal::KILL)?;
        let run = self.folder.hollow(name).join("run");
        std::fs::remove_dir_all(&run).with_context(|| run.display().to_string())?;
        private_folder(&run)?;
        if stay_down { Ok(()) } else { agent.resume() }
    }

    fn management_port_of(&self, target: &str) -> Result<String> {
        if target == OPERATOR_PORT_NAME {
            return Ok(OPERATOR_PORT_NAME.to_owned());
        }
        Ok(management_port(self.namespaced(target)?.index))
    }

    fn cut(&self, port: String, direction: Direction) -> Result<()> {
        self.change_cuts(|cuts| {
            let before = cuts.get(&port).copied();
            cuts.insert(
                port,
                before.map_or(direction, |before| before.and(direction)),
            );
        })
    }

    fn change_cuts(&self, change: impl FnOnce(&mut crate::network::cuts::Cuts)) -> Result<()> {
        let mut cuts = lock(&self.cuts);
        let mut wanted = cuts.clone();
        change(&mut wanted);
        apply_cuts(&wanted)?;
        *cuts = wanted;
        Ok(())
    }
}
