//! How a test says that it can't run here.

/// Tells that a test can't run here, and why: past the test harness, which keeps
/// what a test prints that passes, while `e2e/test.sh` counts these lines.
pub fn skipped(why: impl std::fmt::Display) {
    // In one piece, among those of other tests.
    let line = format!("skipped: {why}\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes());
}
