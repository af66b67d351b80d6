//! `lora-tool unmerge`: a merged model back to its base, by the record of the merge or by the adapters alone.

mod adapter;
mod record;

use std::path::PathBuf;

use super::args::{Common, ReadAs};
use super::weights::Weights;
use crate::error::Result;

/// Take adapters out of a merged model
///
/// With the undo record of the merge, the base comes back to the last bit: every file of tensors, its index and its
/// config. Record and model are checked by hash before and while anything is written. With --adapter as well, only that
/// adapter is taken out, and the result is what a merge of the others would have given.
///
/// Without a record, --adapter names what was merged: its change is taken off, and the answer says how many elements may
/// differ from the base's, and by how much at most. Kinds of adapters whose change depends on the base are refused.
/// With --base nothing is guessed: the model is compared with what merging into the base gives.
#[derive(Debug, clap::Args)]
#[command(
    group = clap::ArgGroup::new("what").args(["undo", "adapter"]).multiple(true).required(true),
    after_long_help = "\
Examples:
  lora-tool unmerge merged -o base --undo base.undo
  lora-tool unmerge merged -o without-style --undo base.undo --adapter style
  lora-tool unmerge merged -o base --adapter my-adapter@0.8
  lora-tool unmerge merged -o without --adapter my-adapter --base Llama-3.1-8B"
)]
pub struct Args {
    /// Merged model: a folder with shards, a pipeline, or one .safetensors file
    merged: PathBuf,
    /// Where the result goes: a folder if the model is one, else a file
    #[arg(short, long, value_name = "OUT")]
    out: PathBuf,
    /// The record that `merge --undo` or `undo-record` wrote
    #[arg(long, value_name = "FILE")]
    undo: Option<PathBuf>,
    /// The adapter to take out: with a record by its path or its name there, else its path, with its strength behind an @
    #[arg(long, value_name = "ADAPTER[@STRENGTH]")]
    adapter: Vec<PathBuf>,
    /// The base: the model is compared with what merging the adapters into it gives
    #[arg(long, value_name = "BASE", conflicts_with = "undo")]
    base: Option<PathBuf>,
    /// Where adapters are that the record names and that were moved
    #[arg(long, value_name = "PATH", requires = "undo")]
    look_in: Vec<PathBuf>,
    #[command(flatten)]
    weights: Weights,
    #[command(flatten)]
    read: ReadAs,
    /// Go on where the same command was cut short
    ///
    /// What is there is compared with a journal, and what is as it should be is not made again. If this run is asked to end,
    /// or the machine fails it, what it has done is kept for the next.
    #[arg(long, requires = "undo", conflicts_with = "adapter")]
    resume: bool,
    /// Leave out modules of the adapter that match nothing in the model
    #[arg(long, conflicts_with = "undo")]
    allow_unmatched: bool,
    #[command(flatten)]
    pub(super) common: Common,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    match &args.undo {
        Some(path) => record::run(args, path),
        None => adapter::run(args),
    }
}

pub(super) fn tensors(count: usize) -> String {
    format!("{count} tensor{}", if count == 1 { "" } else { "s" })
}
