//! End-to-end tests of Paddock: a real API server, real processes, real guests.
//!
//! A scenario drives the lab the way a user does, by `kubectl` and by pulling plugs, and asserts what a user sees: objects'
//! status and conditions, and what guests answer. It must not know how the parts under test are built.
//!
//! [`runner`] starts one lab for all scenarios. Those that disturb nobody run beside each other, each in a namespace of its own;
//! the others run alone, one after another.

pub mod cluster;
pub mod guest;
pub mod runner;
pub mod scenarios;
pub mod wait;
