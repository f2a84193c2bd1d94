//! Disks as devices of this machine: a file by FUSE, which a server of ours
//! holds, and loop devices over it.

pub(crate) mod disk_file;
pub(crate) mod loop_device;
pub(crate) mod server;
pub(crate) mod state;
pub(crate) mod teardown;
pub(crate) mod volumes;
