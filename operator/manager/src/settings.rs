//! The command line.

use clap::{Args, Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf};

/// The operator of Paddock.
#[derive(Debug, Parser)]
#[command(name = "paddock-operator", version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the operator until it is told to stop.
    Run(Run),
}

/// How to run.
#[derive(Args, Clone, Debug)]
pub struct Run {
    /// How to reach the API. Default: the service account of the pod.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the leases.
    #[arg(long, default_value = paddock_crds::names::SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Name of this process in the leader's lease: one that a restart keeps leads again at once, any other waits until
    /// the lease has run out. Two processes with one identity would both believe to lead. Default: the pod's name in a
    /// pod, else the host's name and a random suffix.
    #[arg(long, value_name = "ID")]
    pub identity: Option<String>,
    /// Objects that are worked on at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: u16,
}
