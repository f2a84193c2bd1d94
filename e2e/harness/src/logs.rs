//! Log files: opened by the supervisor, shown by the command.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::folder::LabFolder;

/// A log larger than this is set aside as `NAME.log.1` at the next start of what writes it.
const SET_ASIDE_BYTES: u64 = 64 << 20;

/// Opens a log to append to.
pub fn open_log(path: &Path) -> Result<File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > SET_ASIDE_BYTES) {
        fs::rename(path, path.with_extension("log.1"))
            .with_context(|| path.display().to_string())?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| path.display().to_string())
}

/// The name of a log as people may write it.
pub fn log_name(name: &str) -> &str {
    match name {
        "apiserver" | "api" => "kube-apiserver",
        "controller-manager" => "kube-controller-manager",
        "lab" => "supervisor",
        other => other,
    }
}

/// Writes the logs of `names` (all, each line with its log's name, when empty) to `out`, at most `lines` old ones each; goes on
/// with what is added if `follow`.
pub fn show(
    folder: &LabFolder,
    name: Option<&str>,
    lines: usize,
    follow: bool,
    out: &mut impl Write,
) -> Result<()> {
    let mut open: Vec<OpenLog> = Vec::new();
    match name {
        Some(name) => {
            let name = log_name(name);
            let known = logs(folder)?;
            if !known.iter().any(|known| known == name) {
                bail!("no log of {name:?}; there are: {}", known.join(", "));
            }
            open.push(OpenLog::new(folder.log(name), None)?);
        }
        None => {
            for name in logs(folder)? {
                open.push(OpenLog::new(folder.log(&name), Some(name))?);
            }
        }
    }
    for log in &mut open {
        log.skip_to_last(lines)?;
        log.copy(out)?;
    }
    if !follow {
        return Ok(());
    }
    loop {
        out.flush()?;
        std::thread::sleep(Duration::from_millis(200));
        for log in &mut open {
            log.reopen_if_replaced()?;
            log.copy(out)?;
        }
    }
}

fn logs(folder: &LabFolder) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder.logs()).with_context(|| folder.logs().display().to_string())? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(".log")) {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

struct OpenLog {
    path: PathBuf,
    label: Option<String>,
    file: File,
    unfinished: Vec<u8>,
}

impl OpenLog {
    fn new(path: PathBuf, label: Option<String>) -> Result<Self> {
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(Self {
            path,
            label,
            file,
            unfinished: Vec::new(),
        })
    }

    /// Moves to the last `lines` lines, looking at no more than the last 4 MiB.
    fn skip_to_last(&mut self, lines: usize) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        let start = length.saturating_sub(4 << 20);
        self.file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        (&self.file).take(4 << 20).read_to_end(&mut tail)?;
        let keep = tail_of(&tail, lines).len() as u64;
        self.file
            .seek(SeekFrom::Start(start + tail.len() as u64 - keep))?;
        Ok(())
    }

    fn copy(&mut self, out: &mut impl Write) -> io::Result<()> {
        let Some(label) = &self.label else {
            io::copy(&mut self.file, out)?;
            return Ok(());
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = self.file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            for piece in buffer[..count].split_inclusive(|b| *b == b'\n') {
                self.unfinished.extend_from_slice(piece);
                if self.unfinished.ends_with(b"\n") {
                    write!(out, "{label} | ")?;
                    out.write_all(&self.unfinished)?;
                    self.unfinished.clear();
                }
            }
        }
    }

    fn reopen_if_replaced(&mut self) -> io::Result<()> {
        match fs::metadata(&self.path) {
            Ok(meta) if meta.ino() != self.file.metadata()?.ino() => {
                self.file = File::open(&self.path)?
            }
            _ => {}
        }
        Ok(())
    }
}

/// The last `lines` lines.
fn tail_of(text: &[u8], lines: usize) -> &[u8] {
    let body = text.strip_suffix(b"\n").unwrap_or(text);
    let mut starts = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, b)| **b == b'\n')
        .map(|(at, _)| at + 1);
    match lines {
        0 => &[],
        n => &text[starts.nth(n - 1).unwrap_or(0)..],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines() {
        assert_eq!(tail_of(b"a\nb\nc\n", 2), b"b\nc\n");
        assert_eq!(tail_of(b"a\nb\nc", 2), b"b\nc");
        assert_eq!(tail_of(b"a\n", 5), b"a\n");
        assert_eq!(tail_of(b"a\n", 0), b"");
        assert_eq!(tail_of(b"", 3), b"");
    }

    #[test]
    fn shows_one_or_all() {
        let dir = tempfile::tempdir().unwrap();
        let folder = LabFolder::new(dir.path()).unwrap();
        fs::create_dir(folder.logs()).unwrap();
        fs::write(folder.log("kube-apiserver"), "one\ntwo\n").unwrap();
        fs::write(folder.log("etcd"), "three\n").unwrap();
        let mut out = Vec::new();
        show(&folder, Some("apiserver"), 1, false, &mut out).unwrap();
        assert_eq!(out, b"two\n");
        out.clear();
        show(&folder, None, 10, false, &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "etcd | three\nkube-apiserver | one\nkube-apiserver | two\n"
        );
        let error = show(&folder, Some("x"), 1, false, &mut Vec::new())
            .unwrap_err()
            .to_string();
        assert_eq!(error, "no log of \"x\"; there are: etcd, kube-apiserver");
    }
}
