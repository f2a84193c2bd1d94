//! Entering and leaving Linux namespaces. All `unsafe` code of the crate is here.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;

use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space,
    move_into_thread_name_spaces, unshare_unsafe,
};

/// What a host has of its own, besides its process ids.
pub const HOST_NAMESPACES: UnshareFlags = LAB_NAMESPACES.union(UnshareFlags::NEWCGROUP);

/// What a lab has of its own, besides its process ids.
pub const LAB_NAMESPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWIPC);

/// Gives the calling thread namespaces of its own. A process with one thread moves as a whole.
pub fn leave(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: the call is unsafe because of CLONE_FILES alone (file descriptors that other threads hold would dangle); it is not
    // among the flags that this crate passes.
    unsafe { unshare_unsafe(flags) }?;
    Ok(())
}

/// Spawns `command` as the first process of a new process-id namespace.
///
/// On a thread of its own, because the kernel remembers "children go there" per thread. Do not combine with a parent-death
/// signal: that thread ends at once.
pub fn spawn_as_init(mut command: Command) -> io::Result<Child> {
    std::thread::Builder::new()
        .name("spawn".into())
        .spawn(move || {
            leave(UnshareFlags::NEWPID)?;
            command.spawn()
        })?
        .join()
        .map_err(|_| io::Error::other("the spawning thread panicked"))?
}

/// Makes the child of `command` enter a network namespace before it runs its program.
pub fn enter_network(command: &mut Command, namespace: Arc<OwnedFd>) -> &mut Command {
    let enter = move || {
        Ok(move_into_link_name_space(
            namespace.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed; the closure makes one system call and allocates
    // nothing, also when it fails.
    unsafe { command.pre_exec(enter) }
}

/// Makes a network namespace that lives as long as the descriptor.
pub fn new_network() -> io::Result<OwnedFd> {
    std::thread::spawn(|| {
        leave(UnshareFlags::NEWNET)?;
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
    })
    .join()
    .map_err(|_| io::Error::other("the thread panicked"))?
}

/// Runs `work` on a thread inside a network namespace.
pub fn run_in_network<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            })
            .join()
            .map_err(|_| io::Error::other("the thread panicked"))?
    })
}

/// Moves the calling process into all namespaces of the process behind `pidfd`; its *children* get process ids there.
///
/// The process must have one thread, else the kernel refuses the mount namespace.
pub fn enter_all(pidfd: &OwnedFd) -> io::Result<()> {
    let all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::NETWORK;
    Ok(move_into_thread_name_spaces(pidfd.as_fd(), all)?)
}

/// Moves the calling thread into a network namespace.
pub fn enter_network_here(namespace: &OwnedFd) -> io::Result<()> {
    Ok(move_into_link_name_space(
        namespace.as_fd(),
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Takes a descriptor that the parent process left open for this one, by its number; no later child inherits it. Call it once, before
/// anything else opens a descriptor.
pub fn take_inherited(number: i32) -> io::Result<OwnedFd> {
    std::fs::symlink_metadata(format!("/proc/self/fd/{number}"))?;
    // SAFETY: the descriptor is open, as just seen, and nobody else in this process owns it: the process was started with it and
    // has opened nothing yet that could have its number.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}
