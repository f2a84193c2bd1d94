//! `paddock-lab`: a cluster of hosts on one machine. See the library for what a lab is.

use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use paddock_lab::client::Client;
use paddock_lab::folder::LabFolder;
use paddock_lab::protocol::{Backend, HostRequest, UpRequest};
use paddock_lab::start::{self, UpOptions};
use paddock_lab::{
    Fault, HostStatus, LabStatus, ServiceStatus, console, doctor, host_init, logs, namespaces,
    supervisor,
};

const EXAMPLES: &str = "Examples:
  paddock-lab doctor --install            see what the machine lacks, and install it
  paddock-lab up                          API server, operator, host-a and host-b
  export KUBECONFIG=$(paddock-lab kubeconfig)
  paddock-lab kubectl -- apply -f manifests/quickstart
  paddock-lab console web -n default      Ctrl-] leaves it
  paddock-lab exec host-a -- ip address
  paddock-lab fault kill-host host-a --stay-down
  paddock-lab fault cut host-b --direction to-api
  paddock-lab fault heal
  paddock-lab down";

/// A cluster of Paddock hosts on one machine, to try it and to test it
#[derive(Parser)]
#[command(name = "paddock-lab", version, after_help = EXAMPLES)]
struct Cli {
    /// The lab's folder; labs in different folders may run side by side
    #[arg(
        long,
        global = true,
        default_value = ".lab",
        env = "PADDOCK_LAB_DIR",
        value_name = "DIR"
    )]
    dir: PathBuf,
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start a lab, or what is missing of it, and wait until it is ready
    Up(Box<UpOptions>),
    /// End a lab and remove everything of it, its folder too
    Down,
    /// Say what runs
    Status {
        /// Form of the answer
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Run a command on a host, or in the network of `lab`, `api`, `operator` or `hollow`; its exit code is passed on
    Exec {
        /// The host
        host: String,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Connect the terminal to a VM's console; Ctrl-] leaves it
    Console {
        /// The VM
        vm: String,
        /// Its namespace
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Print the path of the kubeconfig
    Kubeconfig,
    /// Run the control plane's kubectl on the lab
    Kubectl {
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Show logs: of supervisor, etcd, apiserver, controller-manager, operator or a host; of all without a name
    Logs {
        /// Whose
        name: Option<String>,
        /// Go on with what is added
        #[arg(short, long)]
        follow: bool,
        /// Old lines to show of each
        #[arg(long, default_value_t = 200)]
        tail: usize,
    },
    /// Break something, or mend it
    Fault {
        #[command(subcommand)]
        fault: Fault,
    },
    /// Add a host to a running lab
    AddHost {
        /// Its name
        name: String,
        /// Memory it believes it has, in MiB; default: a quarter of the machine's
        #[arg(long, value_name = "MIB")]
        memory: Option<u64>,
        /// How its agent runs guests
        #[arg(long, value_enum, default_value_t)]
        backend: Backend,
        /// Seconds to wait for its lease
        #[arg(long, default_value_t = 60, value_name = "SECONDS")]
        timeout: u64,
    },
    /// Say what the machine lacks for a lab; exit code 1 if anything
    Doctor {
        /// Install the missing packages with apt-get
        #[arg(long)]
        install: bool,
    },
    #[command(hide = true)]
    Supervise(InitArguments),
    #[command(hide = true)]
    Serve {
        #[arg(long)]
        machine_network: i32,
    },
    #[command(hide = true)]
    HostInit(InitArguments),
}

#[derive(Args)]
struct InitArguments {
    #[arg(long)]
    cgroup: PathBuf,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("paddock-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let folder = LabFolder::new(&cli.dir)?;
    match cli.command {
        Action::Up(options) => {
            let executable = std::env::current_exe().context("path of this executable")?;
            let mut progress = timed();
            let missing = start::up(&folder, &options, &executable, &mut progress)?;
            return report(&missing, &mut progress, &folder);
        }
        Action::Down => start::down(&folder, &mut timed())?,
        Action::Status { output } => print_status(&Client::existing(&folder)?.status()?, output)?,
        Action::Exec { host, command } => return exec(&folder, &host, &command),
        Action::Console { vm, namespace } => {
            let (host, stream, log) = Client::existing(&folder)?.console(&namespace, &vm)?;
            eprintln!("console of {namespace}/{vm} on {host}; Ctrl-] leaves it");
            console::attach(stream, log)?;
        }
        Action::Kubeconfig => println!("{}", start::kubeconfig(&folder)?.display()),
        Action::Kubectl { arguments } => {
            let marker = folder.existing()?;
            let program = marker
                .control_plane
                .map_or_else(|| PathBuf::from("kubectl"), |folder| folder.join("kubectl"));
            let error = Command::new(&program)
                .args(arguments)
                .env("KUBECONFIG", start::kubeconfig(&folder)?)
                .exec();
            bail!("{}: {error}", program.display());
        }
        Action::Logs { name, follow, tail } => {
            folder.existing()?;
            match logs::show(
                &folder,
                name.as_deref(),
                tail,
                follow,
                &mut io::stdout().lock(),
            ) {
                // The reader has seen enough, as with `| head`.
                Err(error)
                    if error
                        .downcast_ref::<io::Error>()
                        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => {}
                result => result?,
            }
        }
        Action::Fault { fault } => println!("{}", Client::existing(&folder)?.fault(fault)?),
        Action::AddHost {
            name,
            memory,
            backend,
            timeout,
        } => {
            let memory_mib = memory.map_or_else(|| start::default_memory(2), Ok)?;
            let request = UpRequest {
                hosts: vec![HostRequest {
                    name,
                    memory_mib,
                    backend,
                }],
                timeout_seconds: timeout,
                ..UpRequest::default()
            };
            let mut progress = timed();
            let missing = Client::existing(&folder)?.up(request, &mut progress)?;
            return report(&missing, &mut progress, &folder);
        }
        Action::Doctor { install } => return examine(&folder, install),
        Action::Supervise(InitArguments { cgroup }) => supervisor::run(&cgroup)?,
        Action::Serve { machine_network } => supervisor::serve(machine_network)?,
        Action::HostInit(InitArguments { cgroup }) => host_init::run(&cgroup)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints each step with the seconds since the start.
fn timed() -> impl FnMut(&str) {
    let start = Instant::now();
    move |text: &str| eprintln!("[{:6.1} s] {text}", start.elapsed().as_secs_f32())
}

fn report(
    missing: &[String],
    progress: &mut dyn FnMut(&str),
    folder: &LabFolder,
) -> Result<ExitCode> {
    if missing.is_empty() {
        progress(&format!(
            "ready; export KUBECONFIG={}",
            start::kubeconfig(folder)?.display()
        ));
        return Ok(ExitCode::SUCCESS);
    }
    progress("the lab is up, but not all of it is as asked:");
    for sentence in missing {
        eprintln!("  - {sentence}");
    }
    Ok(ExitCode::FAILURE)
}

/// Runs a command in the namespaces of `target`. Nothing in this process may have started a thread before.
fn exec(folder: &LabFolder, target: &str, command: &[String]) -> Result<ExitCode> {
    let (process, descriptor) = Client::existing(folder)?.enter(target)?;
    if process {
        namespaces::enter_all(&descriptor).with_context(|| format!("entering {target}"))?;
        std::env::set_current_dir("/").context("/")?;
    } else {
        namespaces::enter_network_here(&descriptor)
            .with_context(|| format!("entering {target}"))?;
    }
    drop(descriptor);
    let (program, arguments) = command.split_first().context("no command")?;
    let status = match Command::new(program).args(arguments).status() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("paddock-lab: {program}: {error}");
            // As a shell says it: not found, or not to be run.
            return Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            }));
        }
    };
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

fn examine(folder: &LabFolder, install: bool) -> Result<ExitCode> {
    let mut findings = doctor::examine(folder);
    if install {
        doctor::install(&findings)?;
        findings = doctor::examine(folder);
    }
    for finding in &findings {
        match &finding.problem {
            None => println!("ok       {}", finding.what),
            Some(problem) => println!("MISSING  {}: {problem}", finding.what),
        }
    }
    let healthy = findings.iter().all(|finding| finding.problem.is_none());
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn print_status(status: &LabStatus, output: Output) -> Result<()> {
    let mut out = io::stdout().lock();
    if matches!(output, Output::Json) {
        serde_json::to_writer_pretty(&mut out, status)?;
        writeln!(out)?;
        return Ok(());
    }
    let api = if status.api_ready {
        "ready"
    } else {
        "not ready"
    };
    writeln!(
        out,
        "lab {} in {} on {}, API server {api}",
        status.id,
        status.directory.display(),
        status.subnet
    )?;
    let services = status.services.iter().map(service_row).collect::<Vec<_>>();
    if !services.is_empty() {
        write_table(
            &mut out,
            &["PROCESS", "STATE", "RESTARTS", "PID", "NOTES"],
            &services,
        )?;
    }
    let hosts = status.hosts.iter().map(host_row).collect::<Vec<_>>();
    if !hosts.is_empty() {
        write_table(
            &mut out,
            &[
                "HOST", "STATE", "LEASE", "AGENT", "BOOTS", "ADDRESS", "NOTES",
            ],
            &hosts,
        )?;
    }
    Ok(())
}

fn service_row(service: &ServiceStatus) -> Vec<String> {
    let cut = service
        .cut
        .map(|direction| format!("cut {}", name_of(&direction)));
    let exit = service
        .last_exit
        .as_ref()
        .map(|exit| format!("last end: {exit}"));
    vec![
        service.name.clone(),
        format!("{:?}", service.state),
        service.restarts.to_string(),
        service
            .pid
            .map_or_else(|| "-".into(), |pid| pid.to_string()),
        cut.into_iter().chain(exit).collect::<Vec<_>>().join(", "),
    ]
}

fn host_row(host: &HostStatus) -> Vec<String> {
    let cut = host
        .cut
        .map(|direction| format!("cut {}", name_of(&direction)));
    let lan = host.lan_cut.then(|| "LAN cut".to_owned());
    let hollow = host.hollow.then(|| "hollow".to_owned());
    vec![
        host.name.clone(),
        format!("{:?}", host.state),
        match host.lease_held {
            Some(true) => "Held".into(),
            Some(false) => "-".into(),
            None => "?".into(),
        },
        format!("{:?}", host.agent.state),
        host.boots.to_string(),
        host.address.to_string(),
        cut.into_iter()
            .chain(lan)
            .chain(hollow)
            .collect::<Vec<_>>()
            .join(", "),
    ]
}

fn name_of(direction: &paddock_lab::Direction) -> String {
    direction
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Columns as wide as their longest cell, two spaces apart.
fn write_table(out: &mut impl Write, head: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let width = |column: usize| {
        std::iter::once(&head)
            .chain(rows)
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for row in std::iter::once(&head).chain(rows) {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use paddock_lab::Direction;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["paddock-lab"], arguments].concat())
    }

    fn fault(arguments: &[&str]) -> Fault {
        match parse(&[&["fault"], arguments].concat()).unwrap().command {
            Action::Fault { fault } => fault,
            _ => panic!("not a fault"),
        }
    }

    #[test]
    fn up_has_defaults() {
        let cli = parse(&["up"]).unwrap();
        assert_eq!(cli.dir, PathBuf::from(".lab"));
        let Action::Up(options) = cli.command else {
            panic!("not up")
        };
        assert_eq!(
            (options.hosts, options.hollow_hosts, options.backend),
            (2, 0, Backend::Qemu)
        );
        assert!(!options.no_operator && !options.control_plane_only);
        assert!(parse(&["up", "--kubeconfig", "x", "--control-plane-only"]).is_err());
        assert!(parse(&["up", "--hosts", "201"]).is_err());
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let Action::Exec { host, command } =
            parse(&["exec", "--dir", "x", "host-a", "--", "ls", "-l", "--dir"])
                .unwrap()
                .command
        else {
            panic!("not exec")
        };
        assert_eq!(
            (host.as_str(), command),
            ("host-a", ["ls", "-l", "--dir"].map(str::to_owned).to_vec())
        );
        assert!(parse(&["exec", "host-a"]).is_err());
    }

    #[test]
    fn faults() {
        assert_eq!(
            fault(&["cut", "host-a"]),
            Fault::Cut {
                target: "host-a".into(),
                direction: Direction::Both
            }
        );
        assert_eq!(
            fault(&["cut", "host-a", "--direction", "from-api"]),
            Fault::Cut {
                target: "host-a".into(),
                direction: Direction::FromApi
            }
        );
        assert_eq!(
            fault(&["kill-host", "host-a", "--stay-down"]),
            Fault::KillHost {
                host: "host-a".into(),
                stay_down: true
            }
        );
        assert_eq!(
            fault(&["kill-vmm", "web", "-n", "shop"]),
            Fault::KillVmm {
                vm: "web".into(),
                namespace: "shop".into()
            }
        );
        assert_eq!(fault(&["heal"]), Fault::Heal { target: None });
        assert_eq!(fault(&["kill-apiserver"]), Fault::KillApiserver);
    }

    #[test]
    fn tables_line_up() {
        let mut out = Vec::new();
        write_table(
            &mut out,
            &["A", "LONG"],
            &[
                vec!["wide one".into(), "x".into()],
                vec!["b".into(), String::new()],
            ],
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "A         LONG\nwide one  x\nb\n"
        );
    }
}
