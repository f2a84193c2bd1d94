//! Virtual hard disks in the VHD format: create, open, import, export, inspect,
//! check, repair, convert, merge, resize, and serve them as block devices without losing
//! an acknowledged write.
//!
//! The crate reads and writes fixed, dynamic and differencing VHDs. A
//! differencing disk is opened with its chain of parents, at most
//! [`MAX_CHAIN`] disks; parents are opened for reading. Every write passes a
//! [`Gate`], so that a fenced host stops writing whatever else hangs. Files
//! live in a [`Pool`], a folder that no path can leave, and are locked such
//! that neither a second opener of ours nor QEMU writes to them.
//!
//! Who has many requests in flight submits them to a [`Queue`], which leaves
//! to io_uring what the kernel can do by itself.
//!
//! It knows files and threads. It must not know Kubernetes, KVM, an async
//! runtime, or the protocol by which a disk is served.
//!
//! ```no_run
//! use paddock_vhd::{Access, BlockDevice, CreateOptions, DiskSize, DiskType, Gate, Pool, Vhd};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = Pool::open("/var/lib/paddock/pools/default")?;
//! let size = DiskSize::from_bytes(8 << 30)?;
//! Vhd::create(&pool, "web/root.vhd", &CreateOptions::new(DiskType::Dynamic, size))?.close()?;
//!
//! let gate = Gate::open();
//! let disk = Vhd::open(&pool, "web/root.vhd", Access::ReadWrite, gate.clone())?;
//! disk.write_at(b"hello", 4096)?;
//! disk.flush()?;
//! # Ok(())
//! # }
//! ```

mod block;
mod chain;
mod check;
mod child;
mod children;
mod claim;
mod clone;
mod compact;
mod convert;
mod copying;
mod create;
mod error;
#[cfg(test)]
mod folder_tests;
mod format;
#[cfg(fuzzing)]
#[doc(hidden)]
#[allow(clippy::expect_used)] // A panic is how a fuzz target tells.
pub mod fuzzing;
mod gate;
mod image;
mod import;
mod inspect;
mod linked;
mod lock;
mod merge;
mod modified;
mod operation;
mod pool;
mod queue;
mod raw;
mod remove;
mod repair;
mod reparent;
mod replace;
mod resize;
mod room;
mod scratch;
mod sidefile;
mod size;
#[cfg(test)]
#[path = "../tests/skipped/mod.rs"]
mod skipped;
#[cfg(test)]
mod space_tests;
mod storage;
#[cfg(test)]
mod survey;
mod tidy;
mod undo;
mod vhd;

pub use block::{BlockDevice, Extent, ExtentKind, IoError, IoErrorKind};
pub use chain::{MAX_CHAIN, ParentSearch};
pub use check::{CheckReport, Finding, FindingKind, Severity, check};
pub use child::ChildOptions;
pub use children::{Children, children, children_in, look_for_children};
pub use claim::claim;
pub use clone::{CloneOptions, CloneReport, clone_disk};
pub use compact::{CompactOptions, CompactReport, FreeRanges, compact};
pub use convert::{ConvertOptions, CopyReport, convert, export_raw};
pub use create::{CreateError, CreateOptions};
pub use error::{OpenError, OpenErrorKind};
pub use format::DiskType;
pub use gate::{Gate, GatePass};
pub use import::{ImportError, ImportOptions, ImportReport, Progress, check_raw, import_raw};
pub use inspect::{DiskGeometry, FooterState, ParentInfo, VhdInfo, inspect, inspect_chain};
pub use linked::{Linked, LinkedInfo, import_linked, link};
pub use lock::{LockInfo, LockOwner, LockOwnerError};
pub use merge::{MergeOptions, MergeReport, merge};
pub use operation::OperationError;
pub use pool::{Pool, PoolError, PoolSpace};
pub use queue::{Backend, Buffer, Intent, Place, Queue, QueueOptions, Reply, Request};
pub use raw::{RawDisk, RawImage};
pub use remove::{RemoveError, remove};
pub use repair::{RepairReport, discard_repair_journal, repair, repair_in_place, undo_repair};
pub use reparent::reparent;
pub use replace::replace;
pub use resize::{ResizeOptions, ResizeReport, resize};
pub use scratch::Scratch;
pub use size::{DiskSize, DiskSizeError};
pub use undo::{commit_undo, discard_undo, is_merge_begun, start_undo};
pub use vhd::{Access, OpenOptions, Vhd};
