//! Work on disks' files: make, import, clone, convert, compact, merge, resize, check, export, remove.
//!
//! [`core`] decides whether a task may be worked on; [`runner`] carries tasks out, a few at a time in each pool
//! ([`lanes`]), and tells how far they are ([`progress`]); [`disk_work`] does the work itself with `paddock-vhd`, in
//! threads that may block.

pub mod core;
pub mod disk_work;
pub mod hollow;
pub mod lanes;
pub mod progress;
pub mod runner;
