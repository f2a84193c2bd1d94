//! The command `vhd`: makes, looks at, changes, serves and mounts virtual hard
//! disks in the VHD format.
//!
//! What it does to disks is the library's; here are the words by which people
//! and scripts ask for it: arguments, exit codes, output for both, progress.

mod arguments;
mod children;
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
use crate::failure::{Exit, Failure};
use crate::output::Output;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return not_understood(&error).into(),
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

/// Says what is wrong with the arguments, or the help that they ask for.
fn not_understood(error: &clap::Error) -> Exit {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        // Nothing can be done if the terminal is gone.
        let _ = error.print();
        return Exit::Good;
    }
    if std::env::args_os()
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json")
    {
        let text = error.render().to_string();
        let text = text.trim().trim_start_matches("error: ");
        Output::new(true, false).failure(&Failure::wrong_use(text));
    } else {
        let _ = error.print();
    }
    Exit::WrongUse
}
