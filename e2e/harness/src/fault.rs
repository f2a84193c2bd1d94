//! What can be broken, and mended again.

use serde::{Deserialize, Serialize};

use crate::network::cuts::Direction;

/// A fault, or its end. Kills are SIGKILL: nothing gets to say goodbye.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, clap::Subcommand)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Fault {
    /// Kill a host's agent; it is started again after a moment
    KillAgent {
        /// The host
        host: String,
    },
    /// Stop a host's agent as an upgrade would (SIGTERM) and leave it stopped
    StopAgent {
        /// The host
        host: String,
    },
    /// Start a host's agent that was stopped
    StartAgent {
        /// The host
        host: String,
    },
    /// Stop a host's agent from running (SIGSTOP) without its noticing
    PauseAgent {
        /// The host
        host: String,
    },
    /// Let a paused agent run on
    ResumeAgent {
        /// The host
        host: String,
    },
    /// Kill the operator; it is started again after a moment
    KillOperator,
    /// Kill the API server; it is started again after a moment
    KillApiserver,
    /// Kill etcd; it is started again after a moment
    KillEtcd,
    /// Kill the controller manager; it is started again after a moment
    KillControllerManager,
    /// Stop a process of the control plane or the operator and leave it stopped
    StopService {
        /// operator, etcd, apiserver or controller-manager
        name: String,
    },
    /// Start a process that was stopped
    StartService {
        /// operator, etcd, apiserver or controller-manager
        name: String,
    },
    /// Stop a process of the control plane or the operator from running (SIGSTOP)
    PauseService {
        /// operator, etcd, apiserver or controller-manager
        name: String,
    },
    /// Let a paused process run on
    ResumeService {
        /// operator, etcd, apiserver or controller-manager
        name: String,
    },
    /// Kill the paddock-vmm of a VM, and with it its QEMU
    KillVmm {
        /// The VM
        vm: String,
        /// The VM's namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Kill the QEMU of a VM
    KillQemu {
        /// The VM
        vm: String,
        /// The VM's namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Cut a host's power; it boots again unless told to stay down
    KillHost {
        /// The host
        host: String,
        /// Leave it off until start-host
        #[arg(long)]
        stay_down: bool,
    },
    /// Switch on a host that is down
    StartHost {
        /// The host
        host: String,
    },
    /// Freeze everything on a host, as a hypervisor pausing it would
    PauseHost {
        /// The host
        host: String,
    },
    /// Let a frozen host run on
    ResumeHost {
        /// The host
        host: String,
    },
    /// Drop what passes a management link, silently
    Cut {
        /// A host, or `operator`
        target: String,
        /// What is lost: what it sends (to-api), what it should receive (from-api), or both
        #[arg(long, value_enum, default_value_t)]
        direction: Direction,
    },
    /// Drop what passes a host's link to the LAN, silently
    CutLan {
        /// The host
        host: String,
    },
    /// Mend all cuts of one host (or of the operator), or of all
    Heal {
        /// A host, or `operator`; none: everything
        target: Option<String>,
    },
}
