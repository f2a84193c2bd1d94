//! End-to-end tests of Paddock.
