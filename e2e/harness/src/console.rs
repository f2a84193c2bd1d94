//! A VM's console on this terminal.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ctrl-].
const ESCAPE: u8 = 0x1d;
/// How much of the log is shown first, in bytes.
const RECENT: u64 = 8 << 10;

/// Shows the recent log, then connects terminal and console until either ends or Ctrl-] is typed.
pub fn attach(console: OwnedFd, log: Option<OwnedFd>) -> Result<()> {
    let mut out = io::stdout().lock();
    if let Some(log) = log {
        out.write_all(&recent(&mut File::from(log))?)?;
        out.flush()?;
    }
    let stdin = io::stdin();
    let _raw = stdin
        .is_terminal()
        .then(|| RawTerminal::new(&stdin))
        .transpose()?;
    let mut console = UnixStream::from(console);
    let mut input = File::from(
        stdin
            .as_fd()
            .try_clone_to_owned()
            .context("standard input")?,
    );
    let mut typing = true;
    let mut buffer = [0; 4096];
    loop {
        let console_in = PollFd::new(&console, PollFlags::IN);
        let mut watched = if typing {
            vec![console_in, PollFd::new(&input, PollFlags::IN)]
        } else {
            vec![console_in]
        };
        match poll(&mut watched, None) {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.context("poll")?,
        };
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(watched);
        if ready[0] {
            let count = console.read(&mut buffer).context("console")?;
            if count == 0 {
                return Ok(());
            }
            out.write_all(&buffer[..count])?;
            out.flush()?;
        }
        if ready.get(1) == Some(&true) {
            let count = input.read(&mut buffer).context("standard input")?;
            let (typed, end) = until_escape(&buffer[..count]);
            console.write_all(typed).context("console")?;
            if end {
                return Ok(());
            }
            // The end of a file or pipe is not the end of the console: what it answers is still shown.
            typing = count > 0;
        }
    }
}

/// What was typed before Ctrl-], and whether that was typed.
fn until_escape(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == ESCAPE) {
        Some(at) => (&typed[..at], true),
        None => (typed, false),
    }
}

fn recent(log: &mut File) -> io::Result<Vec<u8>> {
    let length = log.metadata()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(RECENT)))?;
    let mut text = Vec::new();
    log.take(RECENT).read_to_end(&mut text)?;
    Ok(text)
}

/// The terminal passes every key on while this lives.
struct RawTerminal<'a> {
    terminal: &'a io::Stdin,
    before: Termios,
}

impl<'a> RawTerminal<'a> {
    fn new(terminal: &'a io::Stdin) -> Result<Self> {
        let before = tcgetattr(terminal).context("terminal")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Now, &raw).context("terminal")?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
        eprintln!();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_bracket_ends_it() {
        assert_eq!(until_escape(b"ls\r"), (&b"ls\r"[..], false));
        assert_eq!(until_escape(b"ls\x1d\r"), (&b"ls"[..], true));
        assert_eq!(until_escape(b"\x1d"), (&b""[..], true));
    }

    #[test]
    fn shows_the_end_of_the_log() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![b'x'; 10_000]).unwrap();
        file.write_all(b"end").unwrap();
        let text = recent(&mut file).unwrap();
        assert_eq!(text.len(), 8192);
        assert!(text.ends_with(b"xend"));
    }
}
