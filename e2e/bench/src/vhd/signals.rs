//! Ctrl-C, and its like: what was begun is given up in good order, so that servers stop and the disks go.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static CAME: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Listens from now on. The second signal ends the bench at once.
pub(crate) fn listen() -> Result<()> {
    let came = CAME.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, came.clone())
            .and_then(|_| signal_hook::flag::register(signal, came.clone()))
            .context("listening to signals")?;
    }
    Ok(())
}

/// An error once one came.
pub(crate) fn check() -> Result<()> {
    let came = CAME.get().is_some_and(|came| came.load(Ordering::Relaxed));
    ensure!(!came, "interrupted");
    Ok(())
}
