//! Progress: a bar on a terminal, nothing elsewhere; and Ctrl-C.

use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};
use paddock_vhd::Progress;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::output::Output;

/// Follows one long operation, and cancels it on Ctrl-C.
pub(crate) struct Meter {
    bar: ProgressBar,
    interrupt: Interrupt,
}

impl Meter {
    /// `what` is being done, in a word or two.
    pub(crate) fn start(what: &'static str, out: &Output) -> Result<Meter, Failure> {
        let bar = if out.shows_progress() {
            // Draws on standard error, at most 20 times a second.
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let template = "{msg} [{bar:40}] {percent}% of {binary_total_bytes}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what);
        Ok(Meter {
            bar,
            interrupt: Interrupt::listen()?,
        })
    }

    /// As [`Meter::start`], where nobody knows how long it takes.
    pub(crate) fn walk(what: &'static str, out: &Output) -> Result<Meter, Failure> {
        let meter = Meter::start(what, out)?;
        if let Ok(style) = ProgressStyle::with_template("{msg}: {binary_bytes} read") {
            meter.bar.set_style(style);
        }
        Ok(meter)
    }

    /// To be called with how many bytes were read so far.
    pub(crate) fn tick(&self, read: u64) -> ControlFlow<()> {
        self.bar.set_position(read);
        match self.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.interrupt.came()
    }

    /// To be called with how far it has come.
    pub(crate) fn step(&self, progress: Progress) -> ControlFlow<()> {
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
        if self.interrupt.came() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
