//! How many processor cores there are. Threads of one core share its units and are no capacity.

use std::{collections::BTreeSet, fs, path::Path};

/// The number of distinct cores among the online processors under `cpus` (`/sys/devices/system/cpu`), counted by
/// `topology/physical_package_id` and `topology/core_id`; `None` when the kernel does not say.
#[must_use]
pub fn physical_cores(cpus: &Path) -> Option<usize> {
    let online = parse_list(&fs::read_to_string(cpus.join("online")).ok()?)?;
    let mut cores = BTreeSet::new();
    for cpu in online {
        let topology = cpus.join(format!("cpu{cpu}/topology"));
        let number = |name: &str| -> Option<i64> {
            fs::read_to_string(topology.join(name))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        // Dies and clusters number their cores anew on some machines.
        let die = number("die_id").unwrap_or(0);
        cores.insert((number("physical_package_id")?, die, number("core_id")?));
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// A list as sysfs writes it: `0-3,8`. At most 8192 entries, the most processors that Linux is built for.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last < first || last >= 8192 {
            return None;
        }
        numbers.extend(first..=last);
    }
    (numbers.len() <= 8192).then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(online: &str, cpus: &[(u32, i64, i64)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("online"), online).unwrap();
        for (cpu, package, core) in cpus {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            fs::create_dir_all(&topology).unwrap();
            fs::write(topology.join("physical_package_id"), format!("{package}\n")).unwrap();
            fs::write(topology.join("core_id"), format!("{core}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn threads_of_a_core_count_once() {
        let dir = machine("0-3\n", &[(0, 0, 0), (1, 0, 1), (2, 0, 0), (3, 0, 1)]);
        assert_eq!(physical_cores(dir.path()), Some(2));
    }

    #[test]
    fn packages_number_their_cores_anew() {
        let dir = machine("0,2\n", &[(0, 0, 0), (2, 1, 0)]);
        assert_eq!(physical_cores(dir.path()), Some(2));
    }

    #[test]
    fn offline_processors_do_not_count() {
        let dir = machine("0\n", &[(0, 0, 0), (1, 0, 1)]);
        assert_eq!(physical_cores(dir.path()), Some(1));
    }

    #[test]
    fn says_nothing_where_the_kernel_does_not() {
        let dir = machine("0-1\n", &[(0, 0, 0)]);
        assert_eq!(physical_cores(dir.path()), None);
        assert_eq!(physical_cores(&dir.path().join("none")), None);
    }

    #[test]
    fn lists_are_bounded() {
        assert_eq!(parse_list("0-2,7\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_list("0-4294967295"), None);
        assert_eq!(parse_list("3-1"), None);
        assert_eq!(parse_list("x"), None);
    }
}
