//! Running `nft`: a transaction in, a listing out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::ruleset::{Element, Found, REMOVAL, parse_listing, structure, transaction};
use crate::error::FirewallError;

/// The `nft` program.
#[derive(Debug, Clone)]
pub(crate) struct Nft {
    pub program: PathBuf,
    pub limit: Duration,
}

impl Nft {
    /// Checks that the structure would be accepted; changes nothing.
    pub async fn probe(&self) -> Result<(), FirewallError> {
        self.run(&["-c", "-f", "-"], &structure(), "check the rules")
            .await
            .map(|_| ())
    }

    /// Leaves exactly `wished` of all elements of the `interfaces`.
    pub async fn ensure(
        &self,
        interfaces: &[&str],
        wished: &BTreeSet<Element>,
    ) -> Result<(), FirewallError> {
        let found = self.list().await?.unwrap_or_default();
        if let Some(text) = transaction(&found, interfaces, wished) {
            self.run(&["-f", "-"], &text, "change table bridge paddock")
                .await?;
        }
        Ok(())
    }

    /// Removes the elements of an interface, without making a table for it.
    pub async fn forget(&self, interface: &str) -> Result<(), FirewallError> {
        let Some(found) = self.list().await? else {
            return Ok(());
        };
        // Whatever the structure is, nothing has to be protected here.
        let found = Found {
            structure: true,
            ..found
        };
        if let Some(text) = transaction(&found, &[interface], &BTreeSet::new()) {
            self.run(&["-f", "-"], &text, "change table bridge paddock")
                .await?;
        }
        Ok(())
    }

    /// Removes the table, if there is one.
    pub async fn remove(&self) -> Result<(), FirewallError> {
        if self.list().await?.is_some() {
            self.run(&["-f", "-"], REMOVAL, "delete table bridge paddock")
                .await?;
        }
        Ok(())
    }

    /// The table as it is; `None` when there is none.
    async fn list(&self) -> Result<Option<Found>, FirewallError> {
        match self
            .run(
                &["-j", "list", "table", "bridge", "paddock"],
                "",
                "list table bridge paddock",
            )
            .await
        {
            Ok(json) => parse_listing(&json)
                .map(Some)
                .map_err(FirewallError::Listing),
            Err(FirewallError::Refused { message, .. })
                if message.contains("No such file or directory") =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn run(
        &self,
        arguments: &[&str],
        input: &str,
        action: &'static str,
    ) -> Result<String, FirewallError> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            // Its messages are told apart by their English words.
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| FirewallError::Start {
                program: self.program.clone(),
                source,
            })?;
        let stdin = child.stdin.take();
        let talk = async {
            let write = async {
                if let Some(mut stdin) = stdin {
                    // It may exit before it has read all; its message says why.
                    let _ = stdin.write_all(input.as_bytes()).await;
                }
            };
            tokio::join!(write, child.wait_with_output()).1
        };
        let output = tokio::time::timeout(self.limit, talk)
            .await
            .map_err(|_| FirewallError::Timeout {
                action,
                limit: self.limit,
            })?
            .map_err(FirewallError::Io)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(refusal(action, &String::from_utf8_lossy(&output.stderr)))
    }
}

/// What `nft` meant. Bounded: one wrong line can be repeated for each rule.
fn refusal(action: &'static str, stderr: &str) -> FirewallError {
    let message: String = stderr.trim().chars().take(600).collect();
    let says = |words: &str| message.contains(words);
    if says("Operation not permitted") {
        FirewallError::Permission(message)
    } else if says("Operation not supported")
        || says("Protocol not supported")
        || says("Address family not supported")
    {
        FirewallError::NoBridgeFamily(message)
    } else {
        FirewallError::Refused { action, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let none =
            "Error: Could not process rule: Operation not supported\nadd table bridge paddock\n";
        assert!(
            matches!(refusal("x", none), FirewallError::NoBridgeFamily(m) if m.contains("add table"))
        );
        let permission = "Operation not permitted (you must be root)\n";
        assert!(matches!(
            refusal("x", permission),
            FirewallError::Permission(_)
        ));
        assert!(matches!(
            refusal("x", "syntax error"),
            FirewallError::Refused { action: "x", message } if message == "syntax error"
        ));
        let FirewallError::Refused { message, .. } = refusal("x", &"y".repeat(10_000)) else {
            panic!()
        };
        assert_eq!(message.len(), 600);
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let nft = Nft {
            program: "/nonexistent/nft".into(),
            limit: Duration::from_secs(5),
        };
        let error = nft.probe().await.unwrap_err().to_string();
        assert!(
            error.starts_with("cannot start /nonexistent/nft"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_stopped() {
        let nft = Nft {
            program: "sleep".into(),
            limit: Duration::from_millis(50),
        };
        let error = nft.run(&["600"], "", "list").await.unwrap_err();
        assert!(
            matches!(error, FirewallError::Timeout { action: "list", .. }),
            "{error}"
        );
    }
}
