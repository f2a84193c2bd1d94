//! Work on disks' files: create, import, look at, remove.
//!
//! [`core`] decides whether a task may be worked on; [`runner`] carries tasks out, a few at a time; [`disk_work`] does
//! the work itself with `paddock-vhd`, in a thread that may block.

pub mod core;
pub mod disk_work;
pub mod hollow;
pub mod runner;
