//! Starts hosts and a control plane on one machine.
