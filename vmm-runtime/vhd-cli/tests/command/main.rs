//! The command, as people and scripts run it.

#![allow(clippy::unwrap_used)] // In the functions that tests share, too.

mod chains;
mod children;
mod convert;
mod disks;
mod documentation;
mod free_space;
mod mount;
mod mount_ends;
mod refusals;
mod serve;
mod sizes;
mod support;
mod walk;
