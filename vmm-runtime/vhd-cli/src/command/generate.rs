//! `vhd generate`: for those who package the command.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::failure::{Exit, Failure};

/// Write manual pages and shell completions into a folder
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd generate share
  man ./share/man/man1/vhd.1")]
pub(crate) struct Arguments {
    /// The folder: `man/man1` and `completions` are made in it
    folder: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let man = folder(&arguments.folder.join("man/man1"))?;
    let completions = folder(&arguments.folder.join("completions"))?;
    let command = crate::arguments::Arguments::command();
    clap_mangen::generate_to(command.clone(), &man)
        .map_err(|error| Failure::io(&man, "write the manual", &error))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command.clone(), "vhd", &completions)
            .map_err(|error| Failure::io(&completions, "write the completions", &error))?;
    }
    Ok(Exit::Good)
}

fn folder(path: &Path) -> Result<PathBuf, Failure> {
    fs::create_dir_all(path).map_err(|error| Failure::io(path, "make the folder", &error))?;
    Ok(path.to_owned())
}
