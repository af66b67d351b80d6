//! Completion scripts and manual pages, made from the same definition as the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory};

use super::{Cli, output};
use crate::error::{Error, Result};

/// Print a completion script for a shell.
#[derive(Debug, Args)]
#[command(
    after_long_help = "Example:\n  lora-tool completions bash > ~/.local/share/bash-completion/completions/lora-tool"
)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// Write manual pages, one for each command.
#[derive(Debug, Args)]
#[command(after_long_help = "Example:\n  lora-tool man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The folder they go into, which has to exist
    folder: PathBuf,
}

/// Runs `completions`.
pub fn completions(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lora-tool", &mut script);
    output::answer(String::from_utf8_lossy(&script).trim_end())
}

/// Runs `man`.
pub fn man(args: &ManArgs) -> Result<()> {
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .map_err(|e| Error::io("cannot write manual pages", e).in_file(&args.folder))
}
