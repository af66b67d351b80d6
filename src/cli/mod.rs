//! Words in, words out: the command line. Only this room prints, reads the environment, or decides how a run ends.

mod args;
mod compare;
mod exit;
mod inspect;
mod loaded;
mod merge;
mod output;
mod progress;
mod registry;
mod shell;
mod signals;
mod size;
mod undo;
mod undo_record;
mod unmerge;
mod verify;

use clap::{Parser, Subcommand};

use args::Verbosity;

/// Reads, checks, applies, removes, makes, shrinks, converts and compares adapters (LoRA and its kin).
#[derive(Debug, Parser)]
#[command(name = "lora-tool", version, max_term_width = 100, subcommand_required = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    verbosity: Verbosity,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Apply adapters to a base model
    Merge(merge::Args),
    /// Take adapters out of a merged model
    Unmerge(unmerge::Args),
    /// Make an undo record for a base and a model made from it
    UndoRecord(undo_record::Args),
    /// Say what is in a merged model, and at what strength
    Verify(verify::Args),
    /// Show what is in adapters and base models
    Inspect(inspect::Args),
    /// Show how far two adapters, or two models, are apart
    Compare(compare::Args),
    /// List the adapter layouts this build reads
    Layouts(registry::LayoutsArgs),
    /// List the compute backends of this machine
    Kernels(registry::KernelsArgs),
    /// Print a completion script for a shell
    Completions(shell::CompletionsArgs),
    /// Write manual pages into a folder
    Man(shell::ManArgs),
}

/// Runs the command line and ends the process.
pub fn main() -> ! {
    crate::tensor::heap::keep_freed_memory();
    exit::at_once(run())
}

fn run() -> u8 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return exit::usage(&e),
    };
    output::set_up(&cli.verbosity);
    let json = match &cli.command {
        Command::Merge(args) => args.common.json,
        Command::Unmerge(args) => args.common.json,
        Command::UndoRecord(args) => args.common.json,
        Command::Verify(args) => args.json,
        Command::Inspect(args) => args.json,
        Command::Compare(args) => args.json,
        Command::Layouts(args) => args.json,
        Command::Kernels(args) => args.json,
        Command::Completions(_) | Command::Man(_) => false,
    };
    signals::prepare(json);
    let result = match &cli.command {
        Command::Merge(args) => merge::run(args),
        Command::Unmerge(args) => unmerge::run(args),
        Command::UndoRecord(args) => undo_record::run(args),
        Command::Verify(args) => match verify::run(args) {
            Ok(None) => Ok(()),
            Ok(Some(refuted)) => return exit::failed(&refuted, false), // the answer is on stdout already
            Err(e) => Err(e),
        },
        Command::Inspect(args) => inspect::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Layouts(args) => registry::layouts(args),
        Command::Kernels(args) => registry::kernels(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
    };
    match result {
        Ok(()) => exit::DONE,
        Err(e) => exit::failed(&e, json),
    }
}
