//! The command without a lab.

use std::fs;
use std::process::Command;

use paddock_lab::folder::LabFolder;

#[test]
fn a_lab_that_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_paddock-lab");
    let run = |arguments: &[&str]| {
        Command::new(program)
            .arg("--dir")
            .arg(directory.path())
            .args(arguments)
            .output()
            .unwrap()
    };
    for command in [
        &["status"][..],
        &["kubeconfig"],
        &["logs"],
        &["exec", "host-a", "true"],
        &["fault", "heal"],
    ] {
        let output = run(command);
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("no lab in"),
            "{command:?}"
        );
    }
    assert!(run(&["down"]).status.success());
    fs::write(directory.path().join("file"), "x").unwrap();
    assert!(!run(&["down"]).status.success());
    assert!(directory.path().join("file").exists());
    assert!(
        LabFolder::new(directory.path())
            .unwrap()
            .marker()
            .unwrap()
            .is_none()
    );
}
