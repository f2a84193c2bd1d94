//! The packet filter: one nftables table, `bridge paddock`, owned by this
//! crate.
//!
//! [`ruleset`] holds what should be there and how to get there, as pure
//! functions; the rest reads and writes through the `nft` program. What is
//! there is read first and only what differs is written, in one transaction,
//! so no frame ever meets half a change.

pub(crate) mod nft;
pub mod ruleset;
