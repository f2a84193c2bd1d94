//! Help, manual pages and completions.

use crate::support::Folder;

const COMMANDS: [&str; 17] = [
    "create", "info", "check", "repair", "convert", "merge", "reparent", "undo", "serve", "map",
    "compare", "compact", "resize", "clone", "mount", "unmount", "mounts",
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
    if let Some(said) = folder.other("bash", &["-n", "share/completions/vhd.bash"]) {
        assert_eq!(said.ends(0).stderr, "");
    }
}
