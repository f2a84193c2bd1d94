//! The operator of Paddock.
