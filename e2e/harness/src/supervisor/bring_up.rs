//! What `paddock-lab up` asks for, step by step; each step does only what is missing.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::control_plane::require_program;
use super::host::Host;
use super::service::Service;
use super::{Supervisor, lock};
use crate::cluster::host_object;
use crate::folder::{private_folder, write_private};
use crate::host_init::{Boot, LAB_RUN, STATE};
use crate::network::subnet::MAX_HOSTS;
use crate::protocol::{Backend, HostRequest, UpRequest};

/// Port of the operator's health and metrics.
const OPERATOR_PORT: u16 = 8080;
/// Files of the guest image.
const IMAGE_FILES: [&str; 4] = [
    "tiny-linux.img",
    "tiny-linux.vmlinuz",
    "tiny-linux.initrd",
    "SHA256SUMS",
];

type Progress<'a> = &'a mut dyn FnMut(String);

impl Supervisor {
    /// Starts what is missing and waits for it. Returns what is not as asked, a sentence each.
    pub fn bring_up(&self, request: &UpRequest, progress: Progress<'_>) -> Result<Vec<String>> {
        let _one_at_a_time = lock(&self.bringing_up);
        let mut missing = Vec::new();
        self.open_access()?;
        let cluster = &self.access()?.cluster;
        let limit = Duration::from_secs(request.timeout_seconds);
        self.runtime.block_on(cluster.wait_ready(limit))?;
        progress("API server is ready".into());
        self.apply_cluster_files(&mut missing, progress)?;
        if self.config.control_plane.is_some() {
            self.start_controller_manager()?;
            progress("controller manager started".into());
        }
        if let Some(image) = &request.image {
            attempt(
                &mut missing,
                "guest image",
                self.copy_image(image, progress),
            );
        }
        if request.operator {
            attempt(&mut missing, "operator", self.start_operator(progress));
        }
        for host in &request.hosts {
            attempt(&mut missing, &host.name, self.start_host(host, progress));
        }
        self.start_hollow_hosts(request.hollow_hosts, &mut missing, progress);
        let deadline = Instant::now() + limit;
        if lock(&self.services).contains_key("operator") {
            self.wait_for_operator(deadline, &mut missing, progress);
        }
        // Without an operator nobody makes leases.
        if lock(&self.services).contains_key("operator") {
            self.wait_for_leases(deadline, &mut missing, progress);
        }
        Ok(missing)
    }

    fn apply_cluster_files(&self, missing: &mut Vec<String>, progress: Progress<'_>) -> Result<()> {
        let cluster = &self.access()?.cluster;
        let crds = self.config.checkout.join("crds/generated");
        match yaml_files(&crds) {
            Ok(files) if !files.is_empty() => {
                let count = self.runtime.block_on(cluster.apply_files(&files))?;
                progress(format!("{count} CustomResourceDefinitions applied"));
            }
            Ok(_) => missing.push(format!(
                "CustomResourceDefinitions: no YAML in {}",
                crds.display()
            )),
            Err(error) => missing.push(format!("CustomResourceDefinitions: {error:#}")),
        }
        let folder = self.config.checkout.join("charts/paddock/files");
        for name in ["namespace.yaml", "rbac.yaml", "policies.yaml"] {
            let file = folder.join(name);
            if file.is_file() {
                let count = self
                    .runtime
                    .block_on(cluster.apply_files(std::slice::from_ref(&file)))?;
                progress(format!("{name}: {count} objects applied"));
            } else {
                missing.push(format!("{} does not exist", file.display()));
            }
        }
        Ok(())
    }

    fn copy_image(&self, image: &Path, progress: Progress<'_>) -> Result<()> {
        let pool = self.folder.pool("images");
        shared_folder(&pool)?;
        let mut copied = 0;
        for file in IMAGE_FILES {
            let (from, to) = (image.join(file), pool.join(file));
            let stamp = |path: &Path| {
                fs::metadata(path)
                    .and_then(|meta| Ok((meta.len(), meta.modified()?)))
                    .ok()
            };
            if stamp(&to).is_some() && stamp(&to) == stamp(&from) {
                continue;
            }
            let new = pool.join(format!(".{file}.new"));
            let copy = || -> std::io::Result<()> {
                fs::copy(&from, &new)?;
                fs::File::open(&new)?.set_modified(fs::metadata(&from)?.modified()?)?;
                fs::rename(&new, &to)
            };
            copy().with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
            copied += 1;
        }
        if copied > 0 {
            progress("guest image copied to the pool images".into());
        }
        Ok(())
    }

    fn start_operator(&self, progress: Progress<'_>) -> Result<()> {
        if lock(&self.services).contains_key("operator") {
            return Ok(());
        }
        let program = self.config.programs.join("paddock-operator");
        require_program(&program)?;
        private_folder(&self.folder.pki())?;
        let kubeconfig = self.folder.pki().join("operator.kubeconfig");
        write_private(&kubeconfig, &self.operator_kubeconfig()?)?;
        let arguments = vec![
            "run".into(),
            "--kubeconfig".into(),
            kubeconfig.display().to_string(),
            "--listen".into(),
            format!("{}:{OPERATOR_PORT}", Ipv4Addr::UNSPECIFIED),
            "--identity".into(),
            format!("lab-{}", self.config.id),
        ];
        self.add_service("operator", &self.networks.operator, program, arguments)?;
        progress("operator started".into());
        Ok(())
    }

    /// Applies the Host object of a host and boots it; that it is there already is fine.
    fn start_host(&self, request: &HostRequest, progress: Progress<'_>) -> Result<()> {
        if lock(&self.hosts).contains_key(&request.name) {
            return Ok(());
        }
        check_host_name(&request.name)?;
        let programs = &self.config.programs;
        require_program(&programs.join("paddock-agent"))?;
        if request.backend == Backend::Qemu {
            require_program(&programs.join("paddock-vmm"))?;
        }
        let index = {
            let hosts = lock(&self.hosts);
            let free = (0..MAX_HOSTS).find(|index| hosts.values().all(|host| host.index != *index));
            free.with_context(|| {
                format!("a lab has at most {MAX_HOSTS} hosts with namespaces; use hollow hosts")
            })?
        };
        let object = host_object(
            &request.name,
            &self.config.id,
            Path::new(STATE),
            true,
            Some("lan0"),
        );
        self.runtime
            .block_on(self.access()?.cluster.apply_host(&object))?;
        let (shared, images) = (self.folder.pool("shared"), self.folder.pool("images"));
        for folder in [&shared, &images, &self.folder.host(&request.name)] {
            shared_folder(folder)?;
        }
        let program = |name: &str| format!("{LAB_RUN}/bin/{name}");
        let mut agent = vec![
            program("paddock-agent"),
            "run".into(),
            "--host".into(),
            request.name.clone(),
            "--kubeconfig".into(),
            format!("{LAB_RUN}/kubeconfig"),
            "--backend".into(),
            request.backend.as_str().into(),
            "--vmm".into(),
            program("paddock-vmm"),
        ];
        if request.backend == Backend::Hollow {
            agent.extend(["--hollow-memory-mib".into(), request.memory_mib.to_string()]);
        }
        let subnet = self.config.subnet;
        let boot = Boot {
            name: request.name.clone(),
            boot_id: String::new(),
            address: subnet.with_prefix(subnet.host(index)),
            state: self.folder.host(&request.name),
            shared,
            images,
            programs: programs.clone(),
            memory_mib: request.memory_mib,
            kubeconfig: self.agent_kubeconfig(&request.name)?,
            agent,
        };
        let cgroup = self.cgroup.create_child("hosts")?;
        let host = Host::start(&self.folder, index, boot, cgroup)?;
        lock(&self.hosts).insert(request.name.clone(), std::sync::Arc::clone(&host));
        host.switch_on()?;
        progress(format!("{} booted at {}", request.name, subnet.host(index)));
        Ok(())
    }

    fn start_hollow_hosts(&self, wanted: u32, missing: &mut Vec<String>, progress: Progress<'_>) {
        let have = lock(&self.hollow).len();
        for number in 1..=wanted {
            let name = hollow_name(number);
            if let Err(error) = self.start_hollow_host(&name) {
                missing.push(format!("{name}: {error:#}"));
                break;
            }
        }
        let now = lock(&self.hollow).len();
        if now > have {
            progress(format!("{} hollow hosts started", now - have));
        }
    }

    fn start_hollow_host(&self, name: &str) -> Result<()> {
        if lock(&self.hollow).contains_key(name) {
            return Ok(());
        }
        let folder = self.folder.hollow(name);
        let (state, run) = (folder.join("state"), folder.join("run"));
        shared_folder(&state.join("pools/default"))?;
        private_folder(&run)?;
        let kubeconfig = folder.join("kubeconfig");
        write_private(&kubeconfig, &self.agent_kubeconfig(name)?)?;
        let object = host_object(name, &self.config.id, &state, false, None);
        self.runtime
            .block_on(self.access()?.cluster.apply_host(&object))?;
        let arguments = [
            "run",
            "--host",
            name,
            "--backend",
            "hollow",
            "--listen",
            "127.0.0.1:0",
        ]
        .map(str::to_owned)
        .into_iter()
        .chain(
            [
                ("--kubeconfig", &kubeconfig),
                ("--state-dir", &state),
                ("--run-dir", &run),
            ]
            .into_iter()
            .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()]),
        )
        .collect();
        let spawn = self.spawner(
            name,
            &self.networks.hollow,
            self.config.programs.join("paddock-agent"),
            arguments,
        )?;
        lock(&self.hollow).insert(name.to_owned(), Service::start(name, spawn)?);
        Ok(())
    }

    fn wait_for_operator(
        &self,
        deadline: Instant,
        missing: &mut Vec<String>,
        progress: Progress<'_>,
    ) {
        let address = self.config.subnet.operator();
        loop {
            match readiness(address, OPERATOR_PORT) {
                Ok(()) => return progress("operator is ready".into()),
                Err(error) if Instant::now() > deadline => {
                    missing.push(format!(
                        "operator is not ready: {error:#}; see `paddock-lab logs operator`"
                    ));
                    return;
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    fn wait_for_leases(
        &self,
        deadline: Instant,
        missing: &mut Vec<String>,
        progress: Progress<'_>,
    ) {
        let wanted: Vec<String> = lock(&self.hosts)
            .keys()
            .chain(lock(&self.hollow).keys())
            .cloned()
            .collect();
        if wanted.is_empty() {
            return;
        }
        let Ok(access) = self.access() else { return };
        loop {
            let held = self.runtime.block_on(access.cluster.held_leases());
            let waiting: Vec<&String> = wanted
                .iter()
                .filter(|host| !held.as_ref().is_ok_and(|held| held.contains(*host)))
                .collect();
            if waiting.is_empty() {
                return progress(format!(
                    "{} of {} hosts hold their lease",
                    wanted.len(),
                    wanted.len()
                ));
            }
            if Instant::now() > deadline {
                let error = held
                    .err()
                    .map(|error| format!(" ({error:#})"))
                    .unwrap_or_default();
                let (shown, more) = (waiting.len().min(10), waiting.len().saturating_sub(10));
                let names: Vec<&str> = waiting[..shown].iter().map(|name| name.as_str()).collect();
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                missing.push(format!(
                    "without a lease: {}{more}{error}; see `paddock-lab logs {}`",
                    names.join(", "),
                    names[0]
                ));
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// The name of the hollow host with this number, from 1.
pub fn hollow_name(number: u32) -> String {
    format!("hollow-{number:04}")
}

fn attempt(missing: &mut Vec<String>, what: &str, result: Result<()>) {
    if let Err(error) = result {
        missing.push(format!("{what}: {error:#}"));
    }
}

/// A DNS label that can be a link's, a folder's and an object's name, and is none of the lab's own.
fn check_host_name(name: &str) -> Result<()> {
    let label = !name.is_empty()
        && name.len() <= 63
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    if !label {
        bail!(
            "a host's name has 1 to 63 lower-case letters, digits and inner hyphens, found {name:?}"
        );
    }
    let taken = [
        "lab",
        "api",
        "operator",
        "hollow",
        "supervisor",
        "etcd",
        "apiserver",
        "controller-manager",
    ];
    if taken.contains(&name) || name.starts_with("kube-") || name.starts_with("hollow-") {
        bail!("{name:?} is a name of the lab itself; choose another for the host");
    }
    Ok(())
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A folder that the hosts' unprivileged processes may pass through. The lab's folder around it keeps others out.
fn shared_folder(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .with_context(|| format!("folder {}", path.display()))
}

/// Whether `GET /readyz` answers 200.
fn readiness(address: Ipv4Addr, port: u16) -> Result<()> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), limit)
        .with_context(|| format!("{address}:{port}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream
        .take(4096)
        .read_to_end(&mut answer)
        .context("/readyz")?;
    let first = String::from_utf8_lossy(&answer)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned();
    if first.split(' ').nth(1) != Some("200") {
        bail!("/readyz: expected status 200, found {first:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names() {
        for good in ["host-a", "a", "x1"] {
            check_host_name(good).unwrap();
        }
        for bad in [
            "",
            "Host",
            "a_b",
            "-a",
            "a-",
            "../x",
            "lab",
            "kube-apiserver",
            "hollow-0001",
            &"a".repeat(64),
        ] {
            assert!(check_host_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn readiness_is_status_200() {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            for answer in [
                "HTTP/1.1 200 OK\r\n\r\nok",
                "HTTP/1.1 503 Service Unavailable\r\n\r\n",
                "junk",
            ] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let count = stream.read(&mut request).unwrap();
                assert!(request[..count].starts_with(b"GET /readyz HTTP/1.1\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        readiness(Ipv4Addr::LOCALHOST, port).unwrap();
        assert!(
            readiness(Ipv4Addr::LOCALHOST, port)
                .unwrap_err()
                .to_string()
                .contains("503")
        );
        assert!(readiness(Ipv4Addr::LOCALHOST, port).is_err());
        server.join().unwrap();
    }
}
