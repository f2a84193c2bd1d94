//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{net::SocketAddr, path::PathBuf};

/// The agent of one Paddock host.
#[derive(Debug, Parser)]
#[command(name = "paddock-agent", version, about)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run until SIGTERM or SIGINT. Guests go on without it.
    Run(Options),
}

/// How guests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendKind {
    /// Real guests in QEMU.
    Qemu,
    /// Pretended guests, for tests of scale.
    Hollow,
}

/// Options of `run`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Name of this host's Host object.
    #[arg(long, env = "PADDOCK_HOST", value_parser = host_name)]
    pub host: String,
    /// Kubeconfig file. Without it: the service account of the pod.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the leases.
    #[arg(long, default_value = paddock_crds::names::SYSTEM_NAMESPACE)]
    pub namespace: String,
    /// Folder that outlives a boot; the pool `default` is made in it.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/paddock")]
    pub state_dir: PathBuf,
    /// Folder on a tmpfs that does not outlive a boot.
    #[arg(long, value_name = "DIR", default_value = "/run/paddock")]
    pub run_dir: PathBuf,
    /// How guests are run.
    #[arg(long, value_enum, default_value = "qemu")]
    pub backend: BackendKind,
    /// The paddock-vmm program. Default: beside this program, else in PATH.
    #[arg(long, value_name = "FILE")]
    pub vmm: Option<PathBuf>,
    /// The QEMU program.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/usr/bin/qemu-system-x86_64"
    )]
    pub qemu: PathBuf,
    /// Longest time for finding out what runs guests here, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    pub probe_deadline: u32,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// With --backend hollow: cores to tell of.
    #[arg(long, value_name = "COUNT", default_value_t = 4096, value_parser = clap::value_parser!(i32).range(1..))]
    pub hollow_cores: i32,
    /// With --backend hollow: memory to tell of, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 16 << 20, value_parser = clap::value_parser!(i64).range(1..=(1 << 40)))]
    pub hollow_memory_mib: i64,
}

/// The names that Kubernetes takes, and that fit an identity: RFC 1123 subdomains of at most 63 characters.
fn host_name(text: &str) -> Result<String, String> {
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if text.len() <= 63 && text.split('.').all(label) {
        Ok(text.to_owned())
    } else {
        Err("expected 1 to 63 lower-case letters, digits, '-' and '.', as in host-a".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_a_host() {
        let arguments =
            Arguments::try_parse_from(["paddock-agent", "run", "--host", "host-a"]).unwrap();
        let Command::Run(options) = arguments.command;
        assert_eq!(options.state_dir, PathBuf::from("/var/lib/paddock"));
        assert_eq!(options.run_dir, PathBuf::from("/run/paddock"));
        assert_eq!(options.namespace, "paddock-system");
        assert_eq!(options.listen.to_string(), "127.0.0.1:8081");
        assert_eq!(options.backend, BackendKind::Qemu);
    }

    #[test]
    fn host_names_are_those_of_kubernetes() {
        for good in ["a", "host-a", "host-1.example.org"] {
            assert!(host_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "Host", "a_b", "-a", "a-", "a..b", "a/b", &long] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
    }
}
