//! Words in, words out: the command line. Only this room prints, reads the environment, or decides how a run ends.

mod approximation;
mod args;
mod batch;
mod compare;
mod convert;
mod exit;
mod extract;
mod flatten;
mod inspect;
mod lint;
mod loaded;
mod merge;
mod output;
mod progress;
mod ranks;
mod registry;
mod resize;
mod shell;
mod signals;
mod undo;
mod undo_record;
mod unmerge;
mod verify;
mod weights;

use clap::{CommandFactory, Parser, Subcommand};

use crate::error::{Error, Result};
use crate::tensor::size;
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
    /// Make an adapter from a base model and a model tuned from it
    Extract(extract::Args),
    /// Give an adapter other ranks
    Resize(resize::Args),
    /// Write adapters in another layout
    Convert(convert::Args),
    /// Run the jobs of a file
    Batch(batch::Args),
    /// Show what is in adapters and base models
    Inspect(inspect::Args),
    /// Say what is wrong with adapters, and repair what can be
    Lint(lint::Args),
    /// Show how far two adapters, or two models, are apart
    Compare(compare::Args),
    /// List the adapter layouts this build reads and writes
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
    if asks_for_limits() {
        return registry::limits().map_or_else(|e| exit::failed(&e, false), |()| exit::DONE);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return exit::usage(&e),
    };
    output::set_up(&cli.verbosity);
    let json = cli.command.answers_in_json();
    if matches!(&cli.command, Command::Batch(args) if args.json_lines) {
        output::documents_are_lines();
    }
    signals::prepare(json);
    match perform(&cli.command) {
        Ok(None) => exit::DONE,
        Ok(Some(after)) => exit::failed(&after, false), // the answer is on stdout already
        Err(e) => exit::failed(&e, json),
    }
}

/// `help limits` or `--help limits`: what no command has, and so no help of clap's.
fn asks_for_limits() -> bool {
    let mut words = std::env::args_os().skip(1);
    let (first, second) = (words.next(), words.next());
    first.is_some_and(|w| w == "help" || w == "--help")
        && second.is_some_and(|w| w == "limits")
        && words.next().is_none()
}

impl Command {
    fn answers_in_json(&self) -> bool {
        match self {
            Command::Merge(args) => args.common.json,
            Command::Unmerge(args) => args.common.json,
            Command::UndoRecord(args) => args.common.json,
            Command::Verify(args) => args.json,
            Command::Extract(args) => args.common.json,
            Command::Resize(args) => args.common.json,
            Command::Convert(args) => args.common.json,
            Command::Batch(args) => args.json || args.json_lines,
            Command::Inspect(args) => args.json,
            Command::Lint(args) => args.json,
            Command::Compare(args) => args.json,
            Command::Layouts(args) => args.json,
            Command::Kernels(args) => args.json,
            Command::Completions(_) | Command::Man(_) => false,
        }
    }
}

/// Runs one command. An error inside comes after the answer, and is no part of it.
fn perform(command: &Command) -> Result<Option<Error>> {
    match command {
        Command::Merge(args) => merge::run(args),
        Command::Unmerge(args) => unmerge::run(args),
        Command::UndoRecord(args) => undo_record::run(args),
        Command::Verify(args) => return verify::run(args),
        Command::Extract(args) => extract::run(args),
        Command::Resize(args) => resize::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Batch(args) => batch::run(args, Cli::command(), &Jobs),
        Command::Inspect(args) => inspect::run(args),
        Command::Lint(args) => return lint::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Layouts(args) => registry::layouts(args),
        Command::Kernels(args) => registry::kernels(args),
        Command::Completions(args) => shell::completions(args),
        Command::Man(args) => shell::man(args),
    }
    .map(|()| None)
}

/// The jobs of a batch: command lines like any other.
struct Jobs;

impl batch::Commands for Jobs {
    fn check(&self, line: &[String]) -> std::result::Result<(), clap::Error> {
        Cli::try_parse_from(line).map(drop)
    }

    fn run(&self, line: &[String]) -> Result<Option<Error>> {
        let cli = Cli::try_parse_from(line).map_err(|e| Error::new(crate::error::Kind::Usage, e.to_string()))?;
        perform(&cli.command)
    }
}
