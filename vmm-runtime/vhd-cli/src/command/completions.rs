//! `vhd completions`

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::failure::{Exit, Failure};

/// Write completions for a shell
///
/// The shell reads them from a file in a folder of its own, or at its start.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  vhd completions bash > ~/.local/share/bash-completion/completions/vhd
  vhd completions fish > ~/.config/fish/completions/vhd.fish
  vhd completions zsh > ~/.zfunc/_vhd")]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    let mut command = crate::arguments::Arguments::command();
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "vhd", &mut text);
    // Who closes the pipe has read enough.
    let _ = std::io::stdout().write_all(&text);
    Ok(Exit::Good)
}
