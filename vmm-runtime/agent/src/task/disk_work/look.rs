//! Tasks that change nothing.

use super::{
    Job, bytes,
    failure::{from_open, from_operation, refused},
    pools::At,
};
use crate::instance::{core::Failure, status::shorten};
use paddock_crds::{virtual_hard_disk, virtual_hard_disk_task::TaskResult};
use paddock_vhd::{DiskType, Finding, Severity, VhdInfo, check as check_disk, inspect};

/// The most findings that are told.
const MAX_FINDINGS: usize = 16;
/// Longest finding, in bytes: the CRD's bound is in characters, which are no shorter.
const MAX_FINDING: usize = 256;

/// The highest disk epoch that is believed of a lock file: no disk comes so far, and more can follow it.
const MAX_EPOCH: u64 = 1 << 48;

pub(super) fn adopt(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let found = inspect(&at.pool, at.path).map_err(|error| at.named(from_open(&error)))?;
    let epoch = found.lock.disk_epoch;
    if let Some(epoch) = epoch.filter(|epoch| *epoch > MAX_EPOCH) {
        let path = at.path.display();
        return Err(at.named(refused(format!(
            "{path}: its lock file says that it was opened in disk epoch {epoch}, expected at most {MAX_EPOCH}: if no host has the disk, remove {path}.lock"
        ))));
    }
    Ok(TaskResult {
        disk_epoch: epoch.and_then(bytes),
        ..describe(&found)
    })
}

/// What the file of a disk is now.
pub(super) fn look(at: &At<'_>) -> Result<TaskResult, Failure> {
    match inspect(&at.pool, at.path) {
        Ok(found) => Ok(describe(&found)),
        Err(error) => Err(at.named(from_open(&error))),
    }
}

pub(super) fn describe(found: &VhdInfo) -> TaskResult {
    TaskResult {
        // A linked disk has no identity of its own.
        uuid: Some(found.unique_id.to_string()).filter(|_| found.linked.is_none()),
        size_bytes: bytes(found.virtual_size),
        allocated_bytes: bytes(found.allocated),
        serial: found.linked.as_ref().map(|linked| linked.serial.clone()),
        disk_type: Some(match found.disk_type {
            _ if found.linked.is_some() => virtual_hard_disk::DiskType::Linked,
            DiskType::Fixed => virtual_hard_disk::DiskType::Fixed,
            DiskType::Differencing => virtual_hard_disk::DiskType::Differencing,
            _ => virtual_hard_disk::DiskType::Dynamic,
        }),
        findings: None,
        disk_epoch: None,
        begun: None,
    }
}

pub(super) fn check(job: &Job<'_>) -> Result<TaskResult, Failure> {
    let at = job.pools.at(&job.order.file)?;
    let search = job.pools.search(&job.order.parents)?;
    let report = check_disk(&at.pool, at.path, &search, &mut job.progress())
        .map_err(|error| at.named(from_operation(&error)))?;
    // One that is too damaged to say what it is has findings all the same.
    let described = look(&at).unwrap_or_default();
    Ok(TaskResult {
        findings: Some(tell(report.findings)),
        begun: super::left::is_merge_begun(job).ok(),
        ..described
    })
}

/// The gravest first, in the order of the file; what there is no room for is counted.
fn tell(mut findings: Vec<Finding>) -> Vec<String> {
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let more = findings.len().saturating_sub(MAX_FINDINGS);
    let shown = if more == 0 {
        MAX_FINDINGS
    } else {
        MAX_FINDINGS - 1
    };
    let mut told: Vec<_> = findings
        .iter()
        .take(shown)
        .map(|finding| {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            shorten(&format!("{severity}: {}", finding.message), MAX_FINDING)
        })
        .collect();
    if more > 0 {
        told.push(format!("and {} more", more + 1));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use paddock_vhd::FindingKind;

    fn finding(severity: Severity, message: &str) -> Finding {
        Finding {
            kind: FindingKind::BlockPastEnd,
            severity,
            offset: None,
            block: None,
            message: message.into(),
        }
    }

    #[test]
    fn the_gravest_findings_come_first_and_are_bounded() {
        assert_eq!(tell(vec![]), [""; 0]);
        let mut findings = vec![
            finding(Severity::Note, "n"),
            finding(Severity::Error, "e1"),
            finding(Severity::Warning, &"w".repeat(300)),
            finding(Severity::Error, "e2"),
        ];
        let told = tell(findings.clone());
        assert_eq!(
            (told[0].as_str(), told[1].as_str()),
            ("error: e1", "error: e2")
        );
        assert_eq!((told[2].len(), told[3].as_str()), (256, "note: n"));
        findings.extend(vec![finding(Severity::Note, "n"); 12]);
        assert_eq!(tell(findings.clone()).len(), 16);
        findings.push(finding(Severity::Note, "n"));
        let told = tell(findings);
        assert_eq!((told.len(), told[15].as_str()), (16, "and 2 more"));
    }
}
