//! Virtual networks on a host.
