//! What a check has found, as the disk's condition Healthy.

use super::Draft;
use crate::conditions::Answer;
use paddock_crds::{names::condition::HEALTHY, reference::PoolFile};

/// How a finding begins that makes a disk unhealthy; warnings and notes are mended by the next open.
const ERROR: &str = "error:";

impl Draft<'_> {
    /// Says what a check has found of a file.
    pub(super) fn say_healthy(&mut self, file: &PoolFile, findings: &[String]) {
        let (answer, reason) = match findings {
            [] => (Answer::True, "Checked"),
            _ if findings.iter().any(|f| f.starts_with(ERROR)) => (Answer::False, "Damaged"),
            _ => (Answer::True, "SlightFindings"),
        };
        let found = match findings {
            [] => "nothing is wrong with it".to_owned(),
            _ => findings.join("; "),
        };
        let message = format!(
            "file \"{}\" in pool \"{}\", checked at {}: {found}",
            file.path, file.pool, self.s.now.0
        );
        self.conditions().set(HEALTHY, answer, reason, message);
    }

    /// Forgets what was found: the disk has another file now, or none.
    pub(super) fn forget_health(&mut self) {
        self.conditions().remove(HEALTHY);
    }
}
