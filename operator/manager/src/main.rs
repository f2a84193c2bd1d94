//! The operator's program: reads the command line, sets up the log, runs. It must not decide anything.

use clap::Parser;
use paddock_operator::{
    operator,
    settings::{Cli, Command},
};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
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
