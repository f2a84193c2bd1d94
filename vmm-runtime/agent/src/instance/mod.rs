//! One machine on this host: what it should be, what it is, and the way from one to the other.
//!
//! [`core`] decides and knows neither clock nor client nor process; [`actor`] carries out, one task per instance;
//! [`supervisor`] makes an actor for each instance that the API or the run folder shows.

pub mod actor;
pub mod backoff;
pub mod core;
mod disk_uses;
pub mod status;
pub mod supervisor;
pub mod vocabulary;

#[cfg(test)]
mod core_tests;
#[cfg(test)]
mod model_tests;
