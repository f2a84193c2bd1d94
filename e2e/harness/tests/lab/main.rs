//! Labs as they really run: with an own control plane, and scripts in the place of operator and agent.
//! They need root and say so when they are skipped.

#![allow(clippy::unwrap_used)]

mod clusters;
mod command;
mod hosts;
mod links;
mod machines;
mod setup;
