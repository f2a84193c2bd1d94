//! The operator's program: reads the command line, sets up the log, runs. It must not decide anything.

use clap::Parser;
use paddock_operator::{
    operator,
    settings::{Cli, Command},
};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    keep_memory_small();
    let Command::Run(settings) = Cli::parse().command;
    let filter = EnvFilter::try_from_default_env()
        // What the client meets is told by those who asked it.
        .unwrap_or_else(|_| EnvFilter::new("info,kube_client=off,kube_runtime=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("paddock-operator: no threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(operator::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("paddock-operator: {error}");
            ExitCode::FAILURE
        }
    }
}

/// One arena, given back early: bursts of machines otherwise leave each thread's arena half empty for good, which
/// doubled what a machine costs. Two workers do not contend enough for an arena each.
fn keep_memory_small() {
    /// Bytes at the top of the heap that may stay unused.
    const TRIM_THRESHOLD: i32 = 128 << 10;
    // SAFETY: no other thread runs yet, so nothing allocates meanwhile; both are documented parameters of glibc's
    // allocator with values in range, and a refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
    }
}
