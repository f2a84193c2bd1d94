//! The agent on each host.
