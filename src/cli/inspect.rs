//! `lora-tool inspect`.

use std::path::PathBuf;

use crate::error::Result;

/// Show what is in adapters and base models
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Adapters or base models: folders or files
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Print the answer as one JSON document
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub fn run(_args: &Args) -> Result<()> {
    Ok(())
}
