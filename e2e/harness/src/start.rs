//! Starting and ending a lab, from the machine's side.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cgroup::Cgroup;
use crate::client::Client;
use crate::cluster::Cluster;
use crate::folder::{LabFolder, Marker, private_folder};
use crate::logs::open_log;
use crate::namespaces::spawn_as_init;
use crate::network::links::{ip, remove_link, run};
use crate::network::subnet::{SubnetLock, choose, parse_routes};
use crate::programs;
use crate::protocol::{Backend, HostRequest, UpRequest};
use crate::supervisor::StartConfig;

/// Address of the LAN bridge in the lab, with its prefix length, unless said otherwise.
pub const LAN_ADDRESS: &str = "192.168.77.254/24";

/// What a lab should consist of.
#[derive(Clone, Debug, clap::Args)]
pub struct UpOptions {
    /// Hosts: host-a, host-b, …
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=200))]
    pub hosts: u8,
    /// How the hosts' agents run guests
    #[arg(long, value_enum, default_value_t)]
    pub backend: Backend,
    /// Memory each host believes it has, in MiB; default: half of the machine's, shared out
    #[arg(long, value_name = "MIB")]
    pub memory: Option<u64>,
    /// Start the API server and apply CRDs and RBAC, nothing more
    #[arg(long)]
    pub control_plane_only: bool,
    /// Use this cluster instead of an own control plane
    #[arg(long, value_name = "FILE", conflicts_with = "control_plane_only")]
    pub kubeconfig: Option<PathBuf>,
    /// Further hosts that are one plain process each and pretend their guests, for tests of scale
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=2000))]
    pub hollow_hosts: u32,
    /// Do not run the operator in the lab
    #[arg(long)]
    pub no_operator: bool,
    /// Folder of etcd, kube-apiserver, kube-controller-manager; default: $PADDOCK_CONTROL_PLANE, else built
    #[arg(long, value_name = "DIR")]
    pub control_plane: Option<PathBuf>,
    /// Folder of the guest image; default: $PADDOCK_IMAGES, else built
    #[arg(long, value_name = "DIR")]
    pub image: Option<PathBuf>,
    /// The checkout to take CRDs and RBAC from; default: the one the working directory is in
    #[arg(long, value_name = "DIR")]
    pub checkout: Option<PathBuf>,
    /// Address and prefix length of the LAN's bridge inside the lab, so that `exec lab` can reach guests on the LAN
    #[arg(long, value_name = "CIDR", default_value = LAN_ADDRESS)]
    pub lan_address: ipnet::Ipv4Net,
    /// Seconds to wait for readiness
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    pub timeout: u64,
}

/// The name of the host with this index: host-a … host-z, host-aa, ….
pub fn host_name(index: u8) -> String {
    let letter = |number: u8| char::from(b'a' + number % 26);
    match index.checked_sub(26) {
        None => format!("host-{}", letter(index)),
        Some(rest) => format!("host-{}{}", letter(rest / 26), letter(rest)),
    }
}

/// Half of the machine's memory shared out to `hosts` hosts, in MiB, from the text of `/proc/meminfo`; at least 256.
pub fn memory_share(meminfo: &str, hosts: u8) -> Option<u64> {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    Some((kib / 1024 / 2 / u64::from(hosts.max(1))).max(256))
}

/// Starts what is missing of a lab, by the program `executable` (paddock-lab itself). Returns what is not as asked.
pub fn up(
    folder: &LabFolder,
    options: &UpOptions,
    executable: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<String>> {
    require_root()?;
    let kubeconfig = cluster_of(
        folder,
        folder.marker()?.as_ref(),
        options.kubeconfig.as_deref(),
    )?;
    let external = match kubeconfig {
        Some(path) => {
            let text =
                std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            Some((path, text))
        }
        None => None,
    };
    let mut marker = folder.create()?;
    let _lock = folder.lock()?;
    let checkout = programs::checkout(options.checkout.as_deref())?;
    let mut missing = Vec::new();
    let request = request(options, &checkout, &mut missing)?;
    let mut client = match Client::connect(folder)? {
        Some(client) => {
            progress("the lab runs already; starting what is missing");
            client
        }
        None => start_supervisor(
            folder,
            &mut marker,
            options,
            external,
            &checkout,
            executable,
            progress,
        )?,
    };
    missing.extend(client.up(request, progress)?);
    let variable = |name| std::env::var(name).ok();
    if let Some((user, group)) = sudo_caller(variable("SUDO_UID"), variable("SUDO_GID")) {
        folder.give(user, group)?;
    }
    Ok(missing)
}

/// The kubeconfig of somebody else's cluster that the lab in `folder` is to use: what was asked, or what it was started on.
fn cluster_of(
    folder: &LabFolder,
    marker: Option<&Marker>,
    asked: Option<&Path>,
) -> Result<Option<PathBuf>> {
    let asked = asked.map(std::path::absolute).transpose()?;
    if let Some(path) = &asked {
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if path.starts_with(folder.path()) || real(path).starts_with(real(folder.path())) {
            bail!(
                "{} is of the lab in {} itself, expected the kubeconfig of another cluster; leave --kubeconfig out",
                path.display(),
                folder.path().display()
            );
        }
    }
    let Some(marker) = marker.filter(|marker| marker.subnet.is_some()) else {
        return Ok(asked);
    };
    let started_on = marker.external_kubeconfig.clone();
    if asked.is_some() && asked != started_on {
        let name = |path: Option<PathBuf>| {
            path.map_or_else(
                || "a control plane of its own".to_owned(),
                |path| format!("the cluster of {}", path.display()),
            )
        };
        bail!(
            "the lab in {} was started on {}, not on {}; end it first (paddock-lab down)",
            folder.path().display(),
            name(started_on),
            name(asked)
        );
    }
    Ok(started_on)
}

/// User and group that called by sudo, from the variables it sets; root is nobody to give anything to.
fn sudo_caller(user: Option<String>, group: Option<String>) -> Option<(u32, u32)> {
    let (user, group) = (user?.parse().ok()?, group?.parse().ok()?);
    (user != 0).then_some((user, group))
}

fn request(options: &UpOptions, checkout: &Path, missing: &mut Vec<String>) -> Result<UpRequest> {
    let timeout_seconds = options.timeout;
    if options.control_plane_only {
        return Ok(UpRequest {
            timeout_seconds,
            ..UpRequest::default()
        });
    }
    let memory_mib = match options.memory {
        Some(memory) => memory,
        None => default_memory(options.hosts)?,
    };
    let hosts: Vec<HostRequest> = (0..options.hosts)
        .map(|index| HostRequest {
            name: host_name(index),
            memory_mib,
            backend: options.backend,
        })
        .collect();
    let guests = !hosts.is_empty() && options.backend == Backend::Qemu;
    let image = match programs::image(options.image.as_deref(), checkout) {
        _ if !guests && options.image.is_none() => None,
        Ok(image) => Some(image),
        Err(error) => {
            missing.push(format!("guest image: {error:#}"));
            None
        }
    };
    Ok(UpRequest {
        hosts,
        hollow_hosts: options.hollow_hosts,
        operator: !options.no_operator,
        image,
        timeout_seconds,
    })
}

/// The memory that each of `hosts` hosts gets unless said otherwise.
pub fn default_memory(hosts: u8) -> Result<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    memory_share(&meminfo, hosts).context("/proc/meminfo has no MemTotal")
}

fn start_supervisor(
    folder: &LabFolder,
    marker: &mut Marker,
    options: &UpOptions,
    external: Option<(PathBuf, String)>,
    checkout: &Path,
    executable: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<Client> {
    let control_plane = match &external {
        Some(_) => None,
        None => Some(programs::control_plane(
            options.control_plane.as_deref(),
            checkout,
        )?),
    };
    let (external_path, external_kubeconfig) = external.unzip();
    let programs = programs::programs(executable)?;
    // What a lab that ended without `down` left in the kernel.
    let cgroup = Cgroup::of_lab(&marker.id)?;
    cgroup.destroy()?;
    cgroup.create()?;
    let own = cgroup.create_child("lab")?;
    private_folder(&folder.logs())?;
    let link = marker.machine_link();
    remove_link(&link);

    let lock = SubnetLock::take()?;
    let routes = parse_routes(&run("ip", &["-j", "-4", "route", "show", "table", "all"])?)?;
    let Some(subnet) = choose(&routes) else {
        bail!(
            "every network in 10.213.0.0/16 and 10.214.0.0/16 is routed on this machine already; end a lab or remove a route"
        );
    };
    let log = folder.log("supervisor");
    let mut command = Command::new(executable);
    command
        .arg("supervise")
        .arg("--cgroup")
        .arg(own.path())
        .current_dir("/");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(open_log(&log)?);
    let mut child = spawn_as_init(command).with_context(|| executable.display().to_string())?;
    let begin = || -> Result<()> {
        let mut word = String::new();
        BufReader::new(child.stdout.take().context("no pipe")?)
            .read_line(&mut word)
            .context("first word of the supervisor")?;
        if word != "ready\n" {
            bail!("the supervisor said {word:?} instead of ready");
        }
        ip(&format!(
            "link add {link} type veth peer name machine netns {}",
            child.id()
        ))?;
        ip(&format!(
            "address add {} dev {link}",
            subnet.with_prefix(subnet.machine())
        ))?;
        ip(&format!("link set {link} up"))?;
        let config = StartConfig {
            folder: folder.path().to_owned(),
            id: marker.id.clone(),
            subnet,
            lan_address: lan_address(options.lan_address)?,
            programs,
            control_plane: control_plane.clone(),
            checkout: checkout.to_owned(),
            external_kubeconfig,
        };
        child
            .stdin
            .take()
            .context("no pipe")?
            .write_all(&serde_json::to_vec(&config)?)
            .context("configuration of the supervisor")?;
        marker.subnet = Some(subnet);
        marker.control_plane = control_plane;
        marker.external_kubeconfig = external_path;
        folder.write_marker(marker)
    };
    let begun = begin();
    drop(lock);
    let connected = begun.and_then(|()| {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(client) = Client::connect(folder)? {
                return Ok(client);
            }
            if let Some(status) = child.try_wait().context("supervisor")? {
                bail!("the supervisor ended: {status}");
            }
            if Instant::now() > deadline {
                bail!("the supervisor did not listen within 15 s");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    match connected {
        Ok(client) => {
            progress(&format!("supervisor started, management network {subnet}"));
            Ok(client)
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let _ = cgroup.destroy();
            Err(error.context(format!("starting the lab; see {}", log.display())))
        }
    }
}

fn lan_address(net: ipnet::Ipv4Net) -> Result<String> {
    if net.addr() == Ipv4Addr::UNSPECIFIED || (net.addr() == net.network() && net.prefix_len() < 31)
    {
        bail!(
            "--lan-address: expected an address in its network, such as {LAN_ADDRESS}, found {net}"
        );
    }
    Ok(net.to_string())
}

/// Ends a lab: its processes, namespaces and control groups, what it put into somebody else's cluster, and its folder.
pub fn down(folder: &LabFolder, progress: &mut dyn FnMut(&str)) -> Result<()> {
    let Some(marker) = folder.marker()? else {
        if folder.path().exists()
            && std::fs::read_dir(folder.path()).is_ok_and(|mut entries| entries.next().is_some())
        {
            folder.existing()?;
        }
        progress("no lab there");
        return Ok(());
    };
    require_root()?;
    let lock = folder.lock()?;
    Cgroup::of_lab(&marker.id)?.destroy()?;
    remove_link(&marker.machine_link());
    progress("all processes of the lab have ended");
    if let Some(kubeconfig) = &marker.external_kubeconfig {
        let count = clean_cluster(kubeconfig, &marker.id).with_context(|| {
            format!(
                "removing the lab's hosts from the cluster of {}; mend that and run `paddock-lab down` again",
                kubeconfig.display()
            )
        })?;
        progress(&format!(
            "{count} objects of the lab removed from the cluster"
        ));
    }
    folder.remove()?;
    drop(lock);
    progress(&format!("{} removed", folder.path().display()));
    Ok(())
}

fn clean_cluster(kubeconfig: &Path, id: &str) -> Result<usize> {
    let text =
        std::fs::read_to_string(kubeconfig).with_context(|| kubeconfig.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        Cluster::connect(&text, None)
            .await?
            .remove_lab_objects(id)
            .await
    })
}

/// The administrator's kubeconfig of the lab in `folder`.
pub fn kubeconfig(folder: &LabFolder) -> Result<PathBuf> {
    let marker = folder.existing()?;
    Ok(marker
        .external_kubeconfig
        .unwrap_or_else(|| folder.kubeconfig()))
}

fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("a lab is made of namespaces, bridges and control groups: run this as root (sudo)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        assert_eq!(
            [0, 1, 25, 26, 51, 52, 199].map(host_name),
            [
                "host-a", "host-b", "host-z", "host-aa", "host-az", "host-ba", "host-gr"
            ]
        );
    }

    #[test]
    fn a_lab_stays_on_the_cluster_it_was_started_on() {
        let folder = LabFolder::new(Path::new("/nowhere/.lab")).unwrap();
        let theirs = PathBuf::from("/nowhere/theirs");
        let marker = |external: Option<&PathBuf>| Marker {
            version: 1,
            id: "01234567".into(),
            subnet: choose(&[]),
            external_kubeconfig: external.cloned(),
            control_plane: None,
        };
        let found = |marker: Option<Marker>, asked: Option<&Path>| {
            cluster_of(&folder, marker.as_ref(), asked).map_err(|error| error.to_string())
        };
        assert_eq!(found(None, None), Ok(None));
        assert_eq!(found(None, Some(&theirs)), Ok(Some(theirs.clone())));
        let (own, external) = (marker(None), marker(Some(&theirs)));
        let never_started = Marker {
            subnet: None,
            ..own.clone()
        };
        assert_eq!(
            found(Some(never_started), Some(&theirs)),
            Ok(Some(theirs.clone()))
        );
        assert_eq!(found(Some(own.clone()), None), Ok(None));
        for asked in [None, Some(&*theirs)] {
            assert_eq!(
                found(Some(external.clone()), asked),
                Ok(Some(theirs.clone()))
            );
        }
        assert_eq!(
            found(Some(own), Some(&theirs)).unwrap_err(),
            "the lab in /nowhere/.lab was started on a control plane of its own, not on the cluster of /nowhere/theirs; end it first (paddock-lab down)"
        );
        assert_eq!(
            found(None, Some(&folder.kubeconfig())).unwrap_err(),
            "/nowhere/.lab/kubeconfig is of the lab in /nowhere/.lab itself, expected the kubeconfig of another cluster; leave --kubeconfig out"
        );
    }

    #[test]
    fn who_called_by_sudo() {
        let caller = |user: &str, group: &str| sudo_caller(Some(user.into()), Some(group.into()));
        assert_eq!(caller("1000", "1001"), Some((1000, 1001)));
        assert_eq!(caller("0", "0"), None);
        assert_eq!(caller("1000", "-1"), None);
        assert_eq!(sudo_caller(None, None), None);
    }

    #[test]
    fn memory_is_shared_out() {
        let meminfo = "MemTotal:       24669368 kB\nMemFree: 1 kB\n";
        assert_eq!(memory_share(meminfo, 2), Some(6022));
        assert_eq!(memory_share(meminfo, 0), Some(12045));
        assert_eq!(memory_share(meminfo, 200), Some(256));
        assert_eq!(memory_share("MemFree: 1 kB\n", 2), None);
    }

    #[test]
    fn lan_addresses() {
        assert_eq!(
            lan_address("192.168.77.254/24".parse().unwrap()).unwrap(),
            "192.168.77.254/24"
        );
        assert!(lan_address("192.168.77.0/24".parse().unwrap()).is_err());
    }
}
