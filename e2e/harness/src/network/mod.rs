//! The lab's links: which subnet it takes, how bridges and cables are made, and which of them are cut.

pub mod cuts;
pub mod links;
pub mod subnet;
