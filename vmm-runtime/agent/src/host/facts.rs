//! What this machine has, gathered without a decision.

use super::{topology, uplinks};
use paddock_crds::{
    HostSpec,
    host::{Accelerator, Backend, Capacity},
};
use paddock_vhd::Pool;
use std::{collections::BTreeMap, fs, path::Path};

/// What does not change while the agent runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores and memory.
    pub capacity: Capacity,
    /// The boot's id.
    pub boot_id: String,
    /// The agent's version.
    pub agent_version: String,
    /// How guests are run.
    pub backend: Backend,
}

/// How much room a pool has, in bytes, or why it cannot be used.
pub type PoolFact = Result<Space, String>;

/// Room in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Of the whole file system.
    pub capacity: i64,
    /// Of that, free.
    pub free: i64,
}

/// What may change at any time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Pools of the spec, by name.
    pub pools: BTreeMap<String, PoolFact>,
    /// Uplinks of the spec, by name: usable, or why not.
    pub uplinks: BTreeMap<String, Result<(), String>>,
    /// What the probe found.
    pub accelerator: Option<(Accelerator, String)>,
}

/// Cores and memory of this machine.
///
/// # Errors
/// When the kernel does not say how much memory there is.
pub fn capacity() -> Result<Capacity, String> {
    let cores = topology::physical_cores(Path::new("/sys/devices/system/cpu"))
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1);
    let text =
        fs::read_to_string("/proc/meminfo").map_err(|error| format!("/proc/meminfo: {error}"))?;
    let memory_bytes =
        memory_total(&text).ok_or("/proc/meminfo: expected a line MemTotal: N kB, found none")?;
    Ok(Capacity {
        cores: i32::try_from(cores).unwrap_or(i32::MAX),
        memory_bytes,
    })
}

fn memory_total(meminfo: &str) -> Option<i64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Looks at the uplinks that `spec` names.
#[must_use]
pub fn look_at_uplinks(spec: &HostSpec) -> BTreeMap<String, Result<(), String>> {
    spec.uplinks
        .iter()
        .map(|uplink| (uplink.name.clone(), uplink_fact(&uplink.interface)))
        .collect()
}

/// Looks at the pool at `path`. Blocks: a network file system may take its time, or for ever.
///
/// # Errors
/// When it cannot be used, why.
pub fn pool_fact(path: &str) -> PoolFact {
    let pool = Pool::open(path).map_err(|error| error.to_string())?;
    let space = pool.space().map_err(|error| error.to_string())?;
    let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    Ok(Space {
        capacity: bytes(space.total),
        free: bytes(space.available),
    })
}

fn uplink_fact(interface: &str) -> Result<(), String> {
    match uplinks::look(interface) {
        uplinks::Interface::Present { address: None } => Ok(()),
        uplinks::Interface::Present {
            address: Some(address),
        } => Err(format!(
            "interface {interface} carries the host's address {address}: an uplink belongs to guests alone; take the address away or name another interface"
        )),
        uplinks::Interface::Missing => Err(format!(
            "there is no interface {interface} on this host: name one that exists"
        )),
        uplinks::Interface::Unknown(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes() {
        let text = "MemTotal:       24576000 kB\nMemFree:  1 kB\n";
        assert_eq!(memory_total(text), Some(24_576_000 * 1024));
        assert_eq!(memory_total("MemFree: 1 kB\n"), None);
        assert_eq!(memory_total("MemTotal: many kB\n"), None);
    }

    #[test]
    fn a_missing_pool_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("no-such-folder");
        let error = pool_fact(missing.to_str().unwrap()).unwrap_err();
        assert!(error.contains("no-such-folder"), "{error}");
        assert!(!missing.exists());
        let space = pool_fact(dir.path().to_str().unwrap()).unwrap();
        assert!(
            space.capacity > 0 && space.free <= space.capacity,
            "{space:?}"
        );
    }
}
