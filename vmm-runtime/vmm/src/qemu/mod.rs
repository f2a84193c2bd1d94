//! The QEMU child: its command line and its start.

pub(crate) mod command_line;
pub(crate) mod process;
pub(crate) mod tap;
