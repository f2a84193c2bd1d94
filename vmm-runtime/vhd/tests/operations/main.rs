//! Converting, exporting, merging and resizing disks in real folders.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

mod copies;
mod dependents;
mod folder;
mod merging;
mod resizing;
#[path = "../skipped/mod.rs"]
mod skipped;
mod undo;
