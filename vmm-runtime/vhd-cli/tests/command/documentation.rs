//! Help, manual pages, completions, and progress.

use std::fs::File;
use std::io::Read;

use rustix::pty::OpenptFlags;

use crate::support::{Folder, MIB, wait};

const COMMANDS: [&str; 18] = [
    "create",
    "info",
    "check",
    "repair",
    "convert",
    "merge",
    "reparent",
    "undo",
    "serve",
    "map",
    "compare",
    "compact",
    "resize",
    "clone",
    "mount",
    "unmount",
    "mounts",
    "completions",
];

#[test]
fn every_command_has_help_with_examples() {
    let folder = Folder::new();
    let help = folder.vhd(&["--help"]).ends(0).stdout;
    assert!(help.contains("  2    damaged: "), "{help}");
    for command in COMMANDS {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
        let text = folder.vhd(&[command, "--help"]).ends(0).stdout;
        assert!(
            text.contains(&format!("Examples:\n  vhd {command}")),
            "{text}"
        );
    }
    assert!(!help.contains("generate"), "{help}");
}

#[test]
fn manual_and_completions_are_written() {
    let folder = Folder::new();
    folder.vhd(&["generate", "share"]).ends(0);
    let read = |name: &str| std::fs::read_to_string(folder.path(name)).unwrap();
    let manual = read("share/man/man1/vhd.1");
    assert!(
        manual.contains("damaged: a disk or its chain of parents"),
        "{manual}"
    );
    for command in COMMANDS {
        let manual = read(&format!("share/man/man1/vhd-{command}.1"));
        assert!(manual.contains("Examples:"), "{manual}");
        for shell in ["vhd.bash", "vhd.fish", "_vhd"] {
            let completions = read(&format!("share/completions/{shell}"));
            assert!(completions.contains(command), "{shell}: {command}");
        }
    }
    let said = folder.vhd(&["completions", "bash"]).ends(0);
    assert_eq!(said.stdout, read("share/completions/vhd.bash"));
    if let Some(said) = folder.other("bash", &["-n", "share/completions/vhd.bash"]) {
        assert_eq!(said.ends(0).stderr, "");
    }
}

#[test]
fn progress_is_shown_on_a_terminal_alone() {
    let folder = Folder::new();
    let pieces: Vec<_> = (0..64).map(|n| (n * MIB, 1)).collect();
    folder.raw("disk.raw", 64 * MIB, &pieces);
    let convert = [
        "convert", "--from", "raw", "--to", "dynamic", "--force", "disk.raw", "disk.vhd",
    ];
    for (options, shown) in [(&[][..], true), (&["--quiet"], false), (&["--json"], false)] {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let pty = rustix::pty::openpt(flags).unwrap();
        rustix::pty::grantpt(&pty).unwrap();
        rustix::pty::unlockpt(&pty).unwrap();
        let name = rustix::pty::ptsname(&pty, Vec::new()).unwrap();
        let terminal = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        let mut child = folder
            .command(&[options, &convert].concat())
            .env("TERM", "xterm")
            .stderr(terminal)
            .spawn()
            .unwrap();
        // The terminal ends with the last one who has it open: an error here.
        let mut said = Vec::new();
        let _ = File::from(pty).read_to_end(&mut said);
        assert_eq!(wait(&mut child).code(), Some(0));
        let said = String::from_utf8_lossy(&said);
        assert_eq!(said.contains("convert ["), shown, "{said}");
        assert!(shown || said.is_empty(), "{said}");
    }
    let said = folder.vhd(&convert).ends(0);
    assert_eq!(said.stderr, "");
}
