//! `vhd mounts`

use clap::Args;
use serde::Serialize;

use crate::command::mount::human_text;
use crate::failure::{Exit, Failure};
use crate::mounting::state::{self, Mounted};
use crate::output::Output;

/// List the disks that are mounted
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd mounts
  vhd --json mounts | jq '.[].device'")]
pub(crate) struct Arguments {}

#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    mounted: Mounted,
    /// Whether its server still runs.
    served: bool,
    /// Whether it is unmounted, and only its changes wait to be committed,
    /// discarded or kept.
    closed: bool,
}

pub(crate) fn run(out: &Output) -> Result<Exit, Failure> {
    let list: Vec<_> = state::all()?
        .into_iter()
        .map(|(folder, mounted)| Entry {
            served: folder.is_served(),
            closed: folder.is_closed(),
            mounted,
        })
        .collect();
    out.answer(&list, |list| {
        if list.is_empty() {
            return "no disk is mounted".to_owned();
        }
        let texts: Vec<_> = list
            .iter()
            .map(|entry| {
                let dead = if entry.served {
                    ""
                } else if entry.closed {
                    "\n  it is closed, but its changes wait: `vhd unmount` it with --commit, --discard or --keep"
                } else {
                    "\n  its server is gone: `vhd unmount` it"
                };
                format!("{}{dead}", human_text(&entry.mounted))
            })
            .collect();
        texts.join("\n")
    });
    Ok(Exit::Good)
}
