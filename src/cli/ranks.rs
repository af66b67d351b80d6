//! Flags of the commands that give changes a rank.

use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::linalg::rank::{Bounds, Rule};
use crate::ops::approximate::Balance;

/// The rules, for the long help.
pub const HELP: &str = "\
Ranks:
  16            this rank everywhere
  energy=0.95   the least rank that keeps this share of the squared Frobenius norm of each change
  error=0.1     the least rank with at most this relative error, for each change
  ratio=0.02    all singular values of at least this share of the largest, for each change
  mp            all singular values that stand out of noise (Marchenko-Pastur), for each change
  params=10M    so many parameters, dealt out so that all changes together lose the least
  size=50MB     the same in bytes
";

/// How ranks are bounded, and how changes are decomposed.
#[derive(Clone, Debug, Args)]
pub struct Ranks {
    /// No rank above this one
    #[arg(long, value_name = "N")]
    max_rank: Option<usize>,
    /// No rank below this one
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    min_rank: usize,
    /// Ranks that are multiples of this number
    #[arg(long, value_name = "N", default_value = "1", hide_default_value = true)]
    rank_multiple: usize,
    /// Where the singular values go: into A, into B, or their roots into both
    #[arg(long, value_enum, value_name = "SIDE", default_value = "even")]
    balance: Side,
    /// Decompose in full: the least error there is, and many times slower
    #[arg(long)]
    pub exact: bool,
    /// By what share an error may exceed the least possible at its rank
    #[arg(long, value_name = "X", default_value = "0.01", value_parser = share, conflicts_with = "exact")]
    pub tolerance: f64,
    /// Seed of the random starts; the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value = "0", hide_default_value = true)]
    pub seed: u64,
}

/// Words of `--balance`.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Side {
    /// Roots into both
    Even,
    /// All into A
    A,
    /// All into B
    B,
}

impl Ranks {
    /// The bounds; an error where no rank is within them.
    pub fn bounds(&self) -> Result<Bounds> {
        let bounds = Bounds { min: self.min_rank, max: self.max_rank, multiple: self.rank_multiple };
        bounds.check().map(|()| bounds)
    }

    /// Where the singular values go.
    pub fn balance(&self) -> Balance {
        match self.balance {
            Side::Even => Balance::Even,
            Side::A => Balance::A,
            Side::B => Balance::B,
        }
    }
}

/// A value of `--rank`.
pub fn rule(text: &str) -> std::result::Result<Rule, String> {
    text.parse().map_err(|e: Error| e.what().to_string())
}

fn share(text: &str) -> std::result::Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|&v| v > 0.0 && v <= 1.0);
    number.ok_or_else(|| "expected a number above 0 and at most 1".to_string())
}
