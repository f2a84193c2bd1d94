//! `vhd info`

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use paddock_vhd::{
    Access, DiskGeometry, DiskType, FooterState, LinkedInfo, LockInfo, VhdInfo, inspect,
    inspect_chain,
};
use serde::Serialize;
use uuid::Uuid;

use crate::children::{known, note_skipped};
use crate::disk_path::{DiskPath, Search};
use crate::failure::{Exit, Failure};
use crate::output::{Output, time};
use crate::size::{exact, human};

/// Tell what a disk says of itself
///
/// Takes no lock, so it works while the disk is in use. A damaged disk is
/// looked at with `vhd check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd info disk.vhd
  vhd info --chain child.vhd
  vhd info --children base.vhd
  vhd --json info disk.vhd | jq .virtualSize")]
pub(crate) struct Arguments {
    /// The disk
    file: PathBuf,
    /// Tell of all of its parents, too, the nearest first
    #[arg(long)]
    chain: bool,
    /// Look for its children, too: in its folder, in those below it, and in
    /// those that --search names
    #[arg(long, conflicts_with = "chain")]
    children: bool,
    #[command(flatten)]
    search: Search,
}

/// A disk, as it is told in JSON.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Description {
    file: PathBuf,
    disk_type: DiskType,
    virtual_size: u64,
    file_size: u64,
    allocated: u64,
    unique_id: Uuid,
    original_size: u64,
    geometry: DiskGeometry,
    creator: String,
    creator_version: String,
    created: String,
    saved_state: bool,
    tail_footer: FooterState,
    #[serde(skip_serializing_if = "Option::is_none")]
    head_footer: Option<FooterState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    block_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocated_blocks: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fragments: Option<u32>,
    lock: LockInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    linked: Option<LinkedInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Parent>,
    /// The disks whose parent it is, if they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    children: Option<Vec<PathBuf>>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Parent {
    unique_id: Uuid,
    modified: String,
    name: String,
    relative: Option<String>,
    absolute: Option<String>,
}

#[derive(Serialize)]
struct Chain {
    chain: Vec<Description>,
}

impl Description {
    fn new(file: &Path, info: VhdInfo) -> Description {
        Description {
            file: file.to_owned(),
            disk_type: info.disk_type,
            virtual_size: info.virtual_size,
            file_size: info.file_size,
            allocated: info.allocated,
            unique_id: info.unique_id,
            original_size: info.original_size,
            geometry: info.geometry,
            creator: info.creator,
            creator_version: info.creator_version,
            created: time(info.created),
            saved_state: info.saved_state,
            tail_footer: info.tail_footer,
            head_footer: info.head_footer,
            block_size: info.block_size,
            allocated_blocks: info.allocated_blocks,
            fragments: info.fragments,
            lock: info.lock,
            linked: info.linked,
            parent: info.parent.map(|parent| Parent {
                unique_id: parent.unique_id,
                modified: time(parent.modified),
                name: parent.name,
                relative: parent.relative,
                absolute: parent.absolute,
            }),
            children: None,
        }
    }

    /// Of a disk that is there.
    pub(crate) fn of(disk: &DiskPath) -> Result<Description, Failure> {
        let info = inspect(&disk.pool, &disk.name)?;
        Ok(Description::new(disk.path(), info))
    }

    pub(crate) fn human(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string can't fail. What a file says is shown
            // without what would move the cursor.
            let label = if name.is_empty() {
                String::new()
            } else {
                format!("{name}:")
            };
            let _ = writeln!(text, "{label:<10} {}", clean(value));
        };
        line("file", &self.file.to_string_lossy());
        if let Some(linked) = &self.linked {
            line("type", "linked: stands for a physical disk");
            line("device", &linked.device.to_string_lossy());
            line("serial", &linked.serial);
            line("size", &exact(self.virtual_size));
            return text;
        }
        line("type", &self.disk_type.to_string());
        line("size", &exact(self.virtual_size));
        if self.original_size != self.virtual_size {
            line("", &format!("{} at first", exact(self.original_size)));
        }
        let DiskGeometry {
            cylinders,
            heads,
            sectors,
        } = self.geometry;
        line(
            "",
            &format!("{cylinders} cylinders, {heads} heads, {sectors} sectors"),
        );
        line(
            "file size",
            &format!(
                "{}, {} on disk",
                human(self.file_size),
                human(self.allocated)
            ),
        );
        if let (Some(size), Some(count)) = (self.block_size, self.allocated_blocks)
            && size > 0
        {
            let all = self.virtual_size.div_ceil(size.into());
            let runs = match self.fragments {
                Some(runs) if runs > 1 => format!(", in {runs} runs"),
                _ => String::new(),
            };
            line(
                "blocks",
                &format!("{count} of {all}, {} each{runs}", human(size.into())),
            );
        }
        line("id", &self.unique_id.to_string());
        line(
            "created",
            &format!(
                "{} by {} {}",
                self.created, self.creator, self.creator_version
            ),
        );
        if self.tail_footer != FooterState::Good {
            line(
                "footer",
                "the one at the end is lost; opening the disk for writing restores it",
            );
        }
        if self
            .head_footer
            .is_some_and(|footer| footer != FooterState::Good)
        {
            line(
                "footer",
                "the copy at the beginning is lost; opening the disk for writing restores it",
            );
        }
        if let Some(access) = self.lock.open {
            let how = match access {
                Access::ReadOnly => "for reading",
                Access::ReadWrite => "for writing",
            };
            let by = match &self.lock.by {
                Some(by) => format!(", by {by}"),
                None => String::new(),
            };
            line("open", &format!("{how}{by}"));
        }
        if let (Some(host), Some(epoch)) = (&self.lock.host, self.lock.disk_epoch) {
            line("owner", &format!("{host}, in epoch {epoch}"));
        }
        if self.saved_state {
            line("state", "belongs to a saved state");
        }
        if let Some(parent) = &self.parent {
            line("parent", &parent.name);
            line("", &format!("id {}", parent.unique_id));
            line("", &format!("modified {}", parent.modified));
            for path in [&parent.relative, &parent.absolute].into_iter().flatten() {
                line("", &format!("at {path}"));
            }
        }
        if let Some(children) = &self.children {
            let mut name = "children";
            if children.is_empty() {
                line(name, "none that is known");
            }
            for child in children {
                line(name, &child.to_string_lossy());
                name = "";
            }
        }
        text
    }
}

/// Without control characters.
fn clean(value: &str) -> String {
    value
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

pub(crate) fn run(arguments: &Arguments, out: &Output) -> Result<Exit, Failure> {
    let disk = DiskPath::existing(&arguments.file)?;
    if !arguments.chain {
        let mut description = Description::of(&disk)?;
        if arguments.children {
            let children = known(&disk, &arguments.search)?;
            note_skipped(&children, out);
            description.children = Some(children.found);
        }
        out.answer(&description, Description::human);
        return Ok(Exit::Good);
    }
    let search = arguments.search.resolve()?;
    let chain = inspect_chain(&disk.pool, &disk.name, &search)?
        .into_iter()
        .map(|(pool, rel, info)| Description::new(&pool.path().join(rel), info))
        .collect();
    out.answer(&Chain { chain }, |Chain { chain }| {
        let texts: Vec<_> = chain.iter().map(Description::human).collect();
        texts.join("\n")
    });
    Ok(Exit::Good)
}
