//! The command `vhd`: makes, looks at, changes, serves and mounts virtual hard
//! disks in the VHD format.
//!
//! What it does to disks is the library's; here are the words by which people
//! and scripts ask for it: arguments, exit codes, output for both, progress.

mod arguments;
mod command;
mod disk_path;
mod failure;
mod interrupt;
mod mounting;
mod output;
mod progress;
mod raw;
mod size;
mod source;
mod target;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::arguments::Arguments;
use crate::failure::Exit;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done if the terminal is gone.
            let _ = error.print();
            let asked_for = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            return if asked_for {
                Exit::Good
            } else {
                Exit::WrongUse
            }
            .into();
        }
    };
    let out = arguments.output();
    match command::run(&arguments.command, &out) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            out.failure(&failure);
            failure.exit.into()
        }
    }
}
