//! Where the parts come from that a lab puts together.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The folder of paddock-operator, paddock-agent and paddock-vmm: `PADDOCK_BIN_DIR`, else that of `executable`.
pub fn programs(executable: &Path) -> Result<PathBuf> {
    match std::env::var_os("PADDOCK_BIN_DIR") {
        Some(folder) => existing(Path::new(&folder)),
        None => existing(executable.parent().context("path of the executable")?),
    }
}

/// The checkout: `given`, else the one that the working directory lies in. Not the one that this was built from: checkouts may
/// share a target folder, and then that is any of them.
pub fn checkout(given: Option<&Path>) -> Result<PathBuf> {
    let is_checkout = |folder: &Path| folder.join("charts/paddock").is_dir();
    let here = std::env::current_dir().context("working directory")?;
    match given {
        Some(folder) if is_checkout(folder) => existing(folder),
        Some(folder) => bail!(
            "{} is not a checkout of Paddock (it has no charts/paddock); name one with --checkout",
            folder.display()
        ),
        None => match here.ancestors().find(|folder| is_checkout(folder)) {
            Some(folder) => existing(folder),
            None => bail!(
                "{} is in no checkout of Paddock (no folder above it has charts/paddock); name one with --checkout",
                here.display()
            ),
        },
    }
}

/// The folder of the control plane's programs: `given`, else `PADDOCK_CONTROL_PLANE`, else what `e2e/control-plane/build.sh` makes.
pub fn control_plane(given: Option<&Path>, checkout: &Path) -> Result<PathBuf> {
    let folder = find(
        given,
        "PADDOCK_CONTROL_PLANE",
        &checkout.join("e2e/control-plane/build.sh"),
    )?;
    for program in ["etcd", "kube-apiserver", "kube-controller-manager"] {
        if !folder.join(program).is_file() {
            bail!(
                "{} has no {program}; build it with e2e/control-plane/build.sh",
                folder.display()
            );
        }
    }
    Ok(folder)
}

/// The folder of the guest image: `given`, else `PADDOCK_IMAGES`, else what `e2e/harness/image/build.sh` makes.
pub fn image(given: Option<&Path>, checkout: &Path) -> Result<PathBuf> {
    let folder = find(
        given,
        "PADDOCK_IMAGES",
        &checkout.join("e2e/harness/image/build.sh"),
    )?;
    if !folder.join("tiny-linux.img").is_file() {
        bail!(
            "{} has no tiny-linux.img; build it with e2e/harness/image/build.sh",
            folder.display()
        );
    }
    Ok(folder)
}

fn find(given: Option<&Path>, variable: &str, script: &Path) -> Result<PathBuf> {
    match (given, std::env::var_os(variable)) {
        (Some(folder), _) => existing(folder),
        (None, Some(folder)) => {
            existing(Path::new(&folder)).with_context(|| format!("${variable}"))
        }
        (None, None) => build(script),
    }
}

/// Runs a build script; the last line of its output is the folder it made.
fn build(script: &Path) -> Result<PathBuf> {
    let output = Command::new(script)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("{} could not be run", script.display()))?;
    if !output.status.success() {
        bail!(
            "{}: {}; its messages are above",
            script.display(),
            output.status
        );
    }
    let text = String::from_utf8(output.stdout).context("output of a build script")?;
    let folder = text.lines().last().unwrap_or_default();
    existing(Path::new(folder))
        .with_context(|| format!("{} said its result is in {folder:?}", script.display()))
}

fn existing(folder: &Path) -> Result<PathBuf> {
    let folder = folder
        .canonicalize()
        .with_context(|| folder.display().to_string())?;
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_build_script_names_its_result_last() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("build.sh");
        std::fs::write(
            &script,
            format!("#!/bin/sh\necho building\necho {}\n", dir.path().display()),
        )
        .unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(build(&script).unwrap(), dir.path().canonicalize().unwrap());
        let absent = image(Some(dir.path()), dir.path()).unwrap_err().to_string();
        assert!(absent.contains("has no tiny-linux.img"), "{absent}");
    }

    #[test]
    fn this_checkout_is_one() {
        assert!(checkout(None).unwrap().join("e2e/harness").is_dir());
        assert!(checkout(Some(Path::new("/usr"))).is_err());
    }
}
