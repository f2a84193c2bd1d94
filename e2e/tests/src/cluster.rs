//! The cluster as a user has it: `kubectl`.

use anyhow::{Context as _, Result, bail, ensure};
use paddock_lab::Lab;
use rustix::process::{Pid, Signal};
use serde_json::Value;
use std::{
    fs::File,
    io::Write,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

/// A reason to skip a scenario, as an error.
#[derive(Debug)]
pub struct Skip(pub String);

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// `kubectl` with one identity, in one namespace.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    /// The program `kubectl` of the control plane, with this kubeconfig.
    #[must_use]
    pub fn new(kubeconfig: &Path, namespace: &str) -> Self {
        let program = std::env::var_os("PADDOCK_CONTROL_PLANE").map_or_else(
            || PathBuf::from("kubectl"),
            |folder| PathBuf::from(folder).join("kubectl"),
        );
        Self {
            program,
            kubeconfig: kubeconfig.to_owned(),
            namespace: namespace.to_owned(),
        }
    }

    /// The same with another kubeconfig.
    #[must_use]
    pub fn as_identity(&self, kubeconfig: &Path) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            ..self.clone()
        }
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Runs it and returns everything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn output(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut child = Command::new(&self.program)
            .arg("--kubeconfig")
            .arg(&self.kubeconfig)
            .args(["--namespace", &self.namespace])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            // It may have refused its arguments before it read; its own message says so.
            let _ = stdin.write_all(input.as_bytes());
        }
        child.wait_with_output().context("kubectl")
    }

    /// Runs it and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with its messages.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, "")
    }

    /// As [`Kubectl::run`], with standard input.
    ///
    /// # Errors
    /// When it fails, with its messages.
    pub fn run_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.output(arguments, input)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kubectl {}: {}",
            arguments.join(" "),
            errors.trim()
        );
        String::from_utf8(output.stdout).context("kubectl's output")
    }

    /// Applies YAML.
    ///
    /// # Errors
    /// When it is refused, with the server's message.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.run_with(&["apply", "-f", "-"], yaml)
    }

    /// Expects that the server refuses this YAML with a message that holds all of `parts`.
    ///
    /// # Errors
    /// When it is accepted, or refused for something else.
    pub fn refused(&self, yaml: &str, parts: &[&str]) -> Result<()> {
        let output = self.output(&["apply", "-f", "-"], yaml)?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            !output.status.success(),
            "accepted, expected a refusal naming {parts:?}: {yaml}"
        );
        expect_parts(&message, parts)
    }

    /// An object as JSON.
    ///
    /// # Errors
    /// When it does not exist or cannot be read.
    pub fn get(&self, object: &str) -> Result<Value> {
        let text = self.run(&["get", object, "-o", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("JSON of {object}"))
    }

    /// A text of an object by JSON pointer; empty when absent.
    ///
    /// # Errors
    /// When the object cannot be read.
    pub fn text(&self, object: &str, pointer: &str) -> Result<String> {
        let value = self.get(object)?;
        Ok(match value.pointer(pointer) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(other) => other.to_string(),
        })
    }

    /// A merge patch of an object.
    ///
    /// # Errors
    /// When it is refused.
    pub fn patch(&self, object: &str, patch: &Value) -> Result<()> {
        self.run(&["patch", object, "--type=merge", "-p", &patch.to_string()])
            .map(drop)
    }

    /// Waits for a condition of an object to be `True`.
    ///
    /// # Errors
    /// Past the deadline, with the object's conditions.
    pub fn wait_condition(&self, object: &str, condition: &str, deadline: Duration) -> Result<()> {
        self.wait_for(object, &format!("condition={condition}"), deadline)
    }

    /// Waits for a field, by kubectl's JSONPath, to have a value.
    ///
    /// # Errors
    /// Past the deadline, with what it is.
    pub fn wait_field(
        &self,
        object: &str,
        path: &str,
        value: &str,
        deadline: Duration,
    ) -> Result<()> {
        self.wait_for(object, &format!("jsonpath={{{path}}}={value}"), deadline)
    }

    /// Waits until an object is gone.
    ///
    /// # Errors
    /// Past the deadline, with its conditions.
    pub fn wait_gone(&self, object: &str, deadline: Duration) -> Result<()> {
        let output = self.output(&["get", object], "")?;
        if String::from_utf8_lossy(&output.stderr).contains("NotFound") {
            return Ok(());
        }
        self.wait_for(object, "delete", deadline)
    }

    fn wait_for(&self, object: &str, wanted: &str, deadline: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", deadline.as_secs().max(1));
        if let Err(error) = self.run(&["wait", object, &format!("--for={wanted}"), &timeout]) {
            let status = self
                .get(object)
                .map(|o| o["status"].to_string())
                .unwrap_or_default();
            bail!("{object} {wanted}: {error:#}; its status: {status}");
        }
        Ok(())
    }

    /// Waits until a condition has this status and reason and a message that holds all of `parts`.
    ///
    /// # Errors
    /// Past the deadline, with what the condition says.
    pub fn wait_reason(
        &self,
        object: &str,
        condition: &str,
        status: &str,
        reason: &str,
        parts: &[&str],
        deadline: Duration,
    ) -> Result<()> {
        crate::wait::until(
            &format!("{object} {condition}={status} {reason}"),
            deadline,
            || {
                let value = self.get(object)?;
                let conditions = value
                    .pointer("/status/conditions")
                    .and_then(Value::as_array);
                let found = conditions.and_then(|all| all.iter().find(|c| c["type"] == condition));
                let Some(found) = found else {
                    bail!("no such condition: {}", value["status"])
                };
                ensure!(
                    found["status"] == status && found["reason"] == reason,
                    "it is {found}"
                );
                expect_parts(found["message"].as_str().unwrap_or_default(), parts)
            },
        )
    }
}

fn expect_parts(message: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(message.contains(part), "expected {part:?} in {message:?}");
    }
    Ok(())
}

/// A program of the product: in `$PADDOCK_BIN_DIR`, else where Cargo puts it beside the tests.
///
/// # Errors
/// When it is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("PADDOCK_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let own = std::env::current_exe().context("path of this executable")?;
            let folder = own.ancestors().nth(2);
            folder.context("no folder above the tests")?.to_owned()
        }
    };
    let program = folder.join(name);
    ensure!(program.is_file(), "{} does not exist", program.display());
    Ok(program)
}

/// A command on a host of the lab that runs until this is dropped: then it is told to end. What it says is in the lab's
/// `logs/background.log`.
#[derive(Debug)]
pub struct Background(Child);

impl Background {
    /// Starts it on `host`, or in the network of `operator`.
    ///
    /// # Errors
    /// When it or its log cannot be opened.
    pub fn start(lab: &Lab, host: &str, command: &[&str]) -> Result<Self> {
        let log = lab.directory().join("logs/background.log");
        let log = File::options().create(true).append(true).open(log)?;
        let mut exec = lab.command("exec");
        exec.arg(host).arg("--").args(command).stdin(Stdio::null());
        exec.stdout(log.try_clone()?).stderr(log);
        // A group of its own: what it starts is told to end with it.
        let child = exec.process_group(0).spawn();
        child
            .map(Self)
            .with_context(|| format!("starting {command:?} on {host}"))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; its group lasts until it is waited for.
            let _ = rustix::process::kill_process_group(group, Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

/// What a scenario works with.
pub struct Context<'a> {
    /// The lab that all scenarios share.
    pub lab: &'a Lab,
    /// The administrator, in the scenario's namespace.
    pub kubectl: Kubectl,
}

impl Context<'_> {
    /// The scenario's namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.kubectl.namespace()
    }

    /// The checkout whose tests these are.
    pub fn checkout(&self) -> Result<PathBuf> {
        paddock_lab::programs::checkout(None)
    }
}
