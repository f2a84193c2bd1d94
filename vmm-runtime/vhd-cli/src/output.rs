//! What the command writes, for people or as JSON.

use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

use serde::Serialize;

use crate::failure::Failure;

/// How results are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Output {
        Output { json, quiet }
    }

    /// Writes what was asked for, quiet or not.
    pub(crate) fn answer<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) {
        if self.json {
            write_json(value);
        } else {
            write(&human(value));
        }
    }

    /// Writes what was done.
    pub(crate) fn done<T: Serialize>(&self, value: &T, human: impl FnOnce(&T) -> String) {
        if self.json || !self.quiet {
            self.answer(value, human);
        }
    }

    pub(crate) fn failure(&self, failure: &Failure) {
        let mut stderr = io::stderr().lock();
        // Nobody else could be told.
        let _ = if self.json {
            writeln!(stderr, "{}", failure.to_json())
        } else {
            writeln!(stderr, "{failure}")
        };
    }

    pub(crate) fn shows_progress(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }
}

fn write_json<T: Serialize>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => write(&text),
        // All types here have string keys.
        Err(error) => write(&format!("\"{error}\"")),
    }
}

/// Who closes the pipe has read enough.
fn write(text: &str) {
    let mut stdout = io::stdout().lock();
    let _ = stdout
        .write_all(text.trim_end_matches('\n').as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
}

/// A time as RFC 3339 has it, in UTC, to the second.
pub(crate) fn time(time: SystemTime) -> String {
    match jiff::Timestamp::try_from(time) {
        Ok(time) => jiff::Timestamp::from_second(time.as_second())
            .unwrap_or(time)
            .to_string(),
        Err(_) => "unknown".to_owned(),
    }
}
