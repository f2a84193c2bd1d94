//! Figures of Paddock.
