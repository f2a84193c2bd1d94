//! Which changes of what disks take are worth a write.

use super::core::DiskUse;
use paddock_crds::virtual_machine_instance::InstanceDiskStatus;

/// A change of this many bytes is told.
const STEP_BYTES: u64 = 64 << 20;
/// A change of this part of the file is told: a twentieth.
const STEP_PART: u64 = 20;

/// Whether any disk takes so much more or less than was told, or was not told of.
pub(super) fn is_worth_telling(told: &[InstanceDiskStatus], uses: &[DiskUse]) -> bool {
    uses.iter().any(|used| {
        let same = |told: &&InstanceDiskStatus| told.name == used.name && told.path == used.path;
        let before = told.iter().find(same);
        before.is_none_or(|before| {
            let step = (used.length / STEP_PART).clamp(1, STEP_BYTES);
            allocated(used).abs_diff(before.allocated_bytes) >= step
        })
    })
}

pub(super) fn statuses(uses: &[DiskUse]) -> Vec<InstanceDiskStatus> {
    uses.iter()
        .map(|used| InstanceDiskStatus {
            name: used.name.clone(),
            path: used.path.clone(),
            allocated_bytes: allocated(used),
        })
        .collect()
}

fn allocated(used: &DiskUse) -> i64 {
    i64::try_from(used.allocated).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_changes_are_not_worth_telling() {
        let used = |name: &str, allocated, length| DiskUse {
            name: name.into(),
            path: format!("ns/{name}.vhd"),
            allocated,
            length,
        };
        let gib = 1 << 30;
        let told = statuses(&[used("a", 100 << 20, 10 * gib), used("b", 0, 100)]);
        for (name, allocated, length, expected) in [
            ("a", 100 << 20, 10 * gib, false),
            ("a", 163 << 20, 10 * gib, false),
            ("a", 164 << 20, 10 * gib, true),
            ("a", 36 << 20, 10 * gib, true),
            ("b", 4, 100, false),
            ("b", 5, 100, true),
            ("new", 0, 0, true),
        ] {
            let now = [used(name, allocated, length)];
            assert_eq!(is_worth_telling(&told, &now), expected, "{now:?}");
        }
    }
}
