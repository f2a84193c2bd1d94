//! What the command writes, for people or as JSON.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::ops::ControlFlow;
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

    /// Begins a list that was asked for and may be too long to be kept.
    pub(crate) fn list(&self, title: &str) -> List {
        let mut list = List {
            json: self.json,
            stdout: BufWriter::new(io::stdout()),
            items: 0,
        };
        let title = if self.json { "[" } else { title };
        // Who closes the pipe has read enough: the first item tells.
        let _ = write!(list.stdout, "{title}");
        list
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

    /// Says what the user should know though it is no error.
    pub(crate) fn note(&self, text: &str) {
        if !self.json && !self.quiet {
            let _ = writeln!(io::stderr().lock(), "vhd: note: {text}");
        }
    }

    /// Shows from now on what the parts of the program report by themselves:
    /// warnings and errors, on standard error.
    pub(crate) fn log(&self) {
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false);
        // There is one already: good enough.
        let _ = if self.json {
            log.json().try_init()
        } else {
            log.try_init()
        };
    }

    pub(crate) fn shows_progress(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }
}

/// A list that is being written.
pub(crate) struct List {
    json: bool,
    stdout: BufWriter<io::Stdout>,
    items: u64,
}

impl List {
    /// Writes an item; a break if nobody reads it.
    pub(crate) fn item<T: Serialize>(
        &mut self,
        value: &T,
        human: impl FnOnce(&T) -> String,
    ) -> ControlFlow<()> {
        let (separator, text) = if self.json {
            let separator = if self.items == 0 { "\n  " } else { ",\n  " };
            // All types here have string keys.
            (separator, serde_json::to_string(value).unwrap_or_default())
        } else {
            ("\n", human(value))
        };
        self.items += 1;
        match write!(self.stdout, "{separator}{text}") {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    pub(crate) fn end(mut self) {
        let end = match (self.json, self.items) {
            (true, 0) => "]\n",
            (true, _) => "\n]\n",
            (false, _) => "\n",
        };
        let _ = write!(self.stdout, "{end}").and_then(|()| self.stdout.flush());
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
