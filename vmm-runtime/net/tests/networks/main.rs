//! Networks on a real kernel, each test in network, mount and pid namespaces
//! of its own. Needs root; otherwise prints why it was skipped.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dhcp;
mod frames;
mod guest;
mod kinds;
mod lifecycle;
mod namespace;
mod spoofing;
mod wishes;
