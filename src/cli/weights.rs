//! Strengths of parts of the adapters, as flags.

use clap::Args;

use crate::error::{Error, Kind, Result};
use crate::ops::shares::Shares;

/// How strong which part of the adapters is.
#[derive(Clone, Debug, Default, Args)]
pub struct Weights {
    /// Strength of adapters without one, or of the modules that a pattern names
    ///
    /// A number is for all adapters that have none of their own [default: 1]. PATTERN=X is for the modules whose name has
    /// the regular expression in it, times the adapter's; of several that fit, the last one counts.
    #[arg(long, value_name = "X|PATTERN=X", allow_hyphen_values = true)]
    strength: Vec<String>,
    /// Strengths block by block
    ///
    /// 12 or 20 numbers for SDXL, 17 or 26 for SD 1 and 2, 61 for FLUX.1, or the name of a preset of 17: ALL, NONE, INS, IND,
    /// INALL, MIDD, OUTD, OUTS, OUTALL, ALL0.5.
    #[arg(long, value_name = "LIST", allow_hyphen_values = true, hide_short_help = true)]
    block_weights: Option<String>,
}

impl Weights {
    /// The strength of a whole adapter; none where none was given.
    pub fn strength(&self) -> Result<Option<f64>> {
        let plain: Vec<_> = self.strength.iter().filter(|word| !word.contains('=')).collect();
        let read = |word: &str| match word.parse::<f64>() {
            Ok(strength) if strength.is_finite() => Ok(strength),
            _ => Err(Error::new(Kind::Usage, format!("--strength {word}: expected a number or PATTERN=X"))),
        };
        match plain.as_slice() {
            [] => Ok(None),
            [one] => read(one).map(Some),
            _ => Err(Error::new(Kind::Usage, "--strength: two numbers without a pattern")),
        }
    }

    /// The strengths of parts.
    pub fn shares(&self) -> Result<Shares> {
        let mut words: Vec<String> = self.strength.iter().filter(|word| word.contains('=')).cloned().collect();
        words.extend(self.block_weights.as_deref().map(Shares::word_of_blocks));
        Shares::of(&words)
    }
}
