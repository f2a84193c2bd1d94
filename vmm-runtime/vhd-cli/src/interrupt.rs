//! Ctrl-C, and its like.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::failure::Failure;

/// The signals by which people and systems end programs.
pub(crate) const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Whether one of those signals came since [`Interrupt::listen`]. Only who
/// asks now and then listens: nothing else ends the program any more.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn listen() -> Result<Interrupt, Failure> {
        let came = Arc::new(AtomicBool::new(false));
        for signal in ENDING {
            signal_hook::flag::register(signal, came.clone())
                .map_err(|error| no_handler(&error))?;
        }
        Ok(Interrupt(came))
    }

    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Signals can't be listened to.
pub(crate) fn no_handler(error: &io::Error) -> Failure {
    Failure::io(Path::new("Ctrl-C"), "listen to signals", error)
}
