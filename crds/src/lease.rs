//! The annotations of a host's Lease (`coordination.k8s.io/v1`, namespace [`crate::names::SYSTEM_NAMESPACE`], named as the host).
//!
//! Only the operator creates a Lease, as `Fenced`; only the agent of that host sets it `Held` and renews it;
//! only the operator's leader sets it `Fenced` again, with a higher epoch.

/// `Held` or `Fenced`.
pub const STATE: &str = "lease.paddock.dev/state";
/// The host epoch, a positive decimal; rises each time the host is fenced.
pub const EPOCH: &str = "lease.paddock.dev/epoch";
/// A new random value at each renewal. The operator times changes of this, never `renewTime`.
pub const NONCE: &str = "lease.paddock.dev/nonce";
/// Milliseconds from the sending of a renewal until the host fences itself (`D_fence`).
pub const FENCE_MILLISECONDS: &str = "lease.paddock.dev/fence-milliseconds";
/// Milliseconds the host needs to close its gates and kill (`K`).
pub const KILL_MILLISECONDS: &str = "lease.paddock.dev/kill-milliseconds";
/// The agent's session: random, kept in the host's run folder, gone after a reboot.
pub const SESSION: &str = "lease.paddock.dev/session";

/// Value of [`STATE`] while a host renews.
pub const HELD: &str = "Held";
/// Value of [`STATE`] from the operator's word on.
pub const FENCED: &str = "Fenced";
