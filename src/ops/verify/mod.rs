//! Merged model + base + adapters → whether the one is the other two, and at what strength each adapter is in it.
//!
//! The merge is planned as [`crate::ops::merge`] plans it, and nothing is written. Both models are read once, some rows
//! at a time. For each changed tensor, with W the base, W' the file and Δₖ the change of adapter k at strength 1, three
//! things are found:
//!
//! * how far each element of W' is from the correctly rounded merge at the claimed strengths ([`Off`]);
//! * the strengths sₖ that make `‖W' − W − Σ sₖ·Δₖ‖` least, each element measured in units of its own rounding, with
//!   what rounding leaves uncertain ([`Estimate`]);
//! * what is left of `W' − W` when the changes are taken out, beside what rounding alone would leave.
//!
//! Tensors that no adapter changes have to be equal bit for bit. Sums are taken in f64, in an order that does not depend
//! on the threads.

mod fit;
mod kept;
mod pair;
mod report;
mod sums;
mod tile;
mod unit;

pub use fit::{Estimate, Standing};
pub use kept::Kept;
pub use pair::Problem;
pub use report::{AdapterReport, Changed, Finding, KeptReport, Report, State, Verdict};
pub use sums::Off;

use std::ops::Range;

use crate::adapter::Note;
use crate::error::{Context, Result};
use crate::kernels::Kernels;
use crate::model::BaseModel;
use crate::ops::merge::{self, Applied, Merged};
use crate::stream::{Budget, Limits, Produce, Progress, each};
use crate::tensor::{Rows, Tensor};

use pair::{Check, Pair};
use sums::Sums;

/// Elements of one piece of a changed tensor, which has sums of its own.
const PIECE_ELEMENTS: usize = 1 << 20;
/// Elements of it that are worked on at a time: rows, change and expected values stay in cache near the core.
const TILE_ELEMENTS: usize = 1 << 15;
/// Bytes of one piece of a tensor that has to be as it was.
const KEPT_BYTES: usize = 8 << 20;

/// Everything that will be compared.
pub struct Verification {
    /// Remarks on the adapters and how they fit the base.
    pub notes: Vec<Note>,
    /// Bytes of the merged model that will be read.
    pub bytes: u64,
    labels: Vec<String>,
    claimed: Vec<f64>,
    pairs: Vec<Pair>,
    problems: Vec<Problem>,
}

/// One piece of work.
enum Piece {
    /// Rows of a changed tensor, by the number of its pair.
    Rows(usize, Range<usize>),
    /// Elements of one that has to be as it was; rows, where it has scales.
    Kept(usize, Range<usize>),
}

/// What came of it.
enum Found {
    Rows(Box<Sums>),
    Kept(Kept),
}

/// Plans the comparison of `merged` with the merge of `adapters` into `base`; modules of an adapter that match nothing
/// in the base are an error unless `allow_unmatched`.
pub fn verify(
    merged: &BaseModel,
    base: &BaseModel,
    adapters: &[Applied],
    allow_unmatched: bool,
) -> Result<Verification> {
    let options = merge::Options { allow_unmatched, allow_nonfinite: true, ..merge::Options::default() };
    let planned = merge::merge(base, adapters, &options)?;
    let (pairs, problems) = pair::pairs(base, merged, &planned);
    // What is said of the files beside the weights is about writing them.
    let side = base.side_files()?;
    let beside: Vec<_> =
        side.left.iter().chain(&side.broken).chain(&side.elsewhere).map(|path| path.to_string_lossy()).collect();
    let notes = planned.notes.into_iter().filter(|note| !beside.iter().any(|path| *path == note.key)).collect();
    Ok(Verification {
        notes,
        bytes: pairs.iter().map(|p| p.found.bytes.len() as u64).sum(),
        labels: adapters.iter().map(|a| a.label.clone()).collect(),
        claimed: adapters.iter().map(|a| a.strength).collect(),
        pairs,
        problems,
    })
}

impl Verification {
    /// Reads both models and says what was found.
    pub fn run(self, kernels: &dyn Kernels, limits: Limits, progress: &dyn Progress) -> Result<Report> {
        let pieces = self.cut();
        let budget = Budget::new(limits.memory);
        let found = each(pieces.len(), limits.threads, progress, |number| {
            let piece = &pieces[number];
            let (pair, result) = match piece {
                Piece::Rows(pair, rows) => (&self.pairs[*pair], self.rows(*pair, rows.clone(), kernels, &budget)),
                Piece::Kept(pair, part) => (&self.pairs[*pair], self.kept(*pair, part.clone(), kernels, &budget)),
            };
            let result = result.at_key(&pair.key)?;
            progress.advance(piece.bytes(pair));
            Ok(result)
        })?;
        Ok(self.report(&pieces, found))
    }

    fn rows(&self, pair: usize, rows: Range<usize>, kernels: &dyn Kernels, budget: &Budget) -> Result<Found> {
        let Pair { found, check, .. } = &self.pairs[pair];
        let Check::Changed(merged) = check else { return Ok(Found::Kept(Kept::default())) };
        let step = rows_of(merged, TILE_ELEMENTS);
        let _ticket = budget.admit(tile::footprint(merged, step.min(rows.len())));
        let bytes = |tensor: &Tensor| {
            let row = merged.matrix().1 * tensor.dtype.bitsize() / 8;
            rows.start * row..rows.end * row
        };
        let tensors = || merged.base().into_iter().chain([found]);
        tensors().for_each(|tensor| tensor.bytes.fetch(bytes(tensor)));
        let mut sums = Sums::new(merged.adapters().len());
        for start in rows.clone().step_by(step) {
            let tile = start..(start + step).min(rows.end);
            sums.add(&tile::compare(merged, found, &self.claimed, kernels, tile)?);
        }
        found.bytes.release(bytes(found));
        merged.release(rows);
        Ok(Found::Rows(Box::new(sums)))
    }

    fn kept(&self, pair: usize, part: Range<usize>, kernels: &dyn Kernels, budget: &Budget) -> Result<Found> {
        let Pair { found, check, .. } = &self.pairs[pair];
        Ok(Found::Kept(match check {
            Check::Kept(expected) => kept::compare(expected, found, part)?,
            Check::Stored(expected) => {
                let _ticket = budget.admit(expected.footprint(part.len()));
                let kept = kept::compare_rows(expected, found, part.clone(), kernels)?;
                expected.release(part);
                kept
            }
            Check::Changed(_) => Kept::default(),
        }))
    }

    /// All pieces, in the order of the pairs. Where they are cut depends on nothing but the tensor.
    fn cut(&self) -> Vec<Piece> {
        let mut out = Vec::new();
        for (number, pair) in self.pairs.iter().enumerate() {
            match &pair.check {
                Check::Changed(merged) => {
                    let (rows, _) = merged.matrix();
                    let step = rows_of(merged, PIECE_ELEMENTS);
                    let starts = (0..rows).step_by(step);
                    out.extend(starts.map(|start| Piece::Rows(number, start..(start + step).min(rows))));
                }
                Check::Stored(merged) => {
                    let (rows, _) = merged.matrix();
                    let step = rows_of(merged, PIECE_ELEMENTS);
                    let starts = (0..rows).step_by(step);
                    out.extend(starts.map(|start| Piece::Kept(number, start..(start + step).min(rows))));
                }
                Check::Kept(_) => {
                    let elements = kept::elements(&pair.found);
                    let step = (KEPT_BYTES * elements).checked_div(pair.found.bytes.len()).unwrap_or(0).max(1);
                    let starts = (0..elements).step_by(step);
                    out.extend(starts.map(|start| Piece::Kept(number, start..(start + step).min(elements))));
                }
            }
        }
        out
    }

    /// Sums up the pieces of each tensor, in order.
    fn report(self, pieces: &[Piece], found: Vec<Found>) -> Report {
        let mut changed: Vec<Option<Sums>> = self.pairs.iter().map(Pair::new_sums).collect();
        let mut kept = vec![Kept::default(); self.pairs.len()];
        for (piece, found) in pieces.iter().zip(found) {
            match (piece, found) {
                (Piece::Rows(pair, _), Found::Rows(sums)) => {
                    if let Some(all) = &mut changed[*pair] {
                        all.add(&sums);
                    }
                }
                (Piece::Kept(pair, _), Found::Kept(part)) => kept[*pair].add(&part),
                _ => {}
            }
        }
        report::Gathered {
            labels: self.labels,
            claimed: self.claimed,
            pairs: self.pairs,
            problems: self.problems,
            changed,
            kept,
        }
        .report()
    }
}

/// How many rows are about `elements`, as the kinds of change allow.
fn rows_of(merged: &Merged, elements: usize) -> usize {
    let (rows, cols) = merged.matrix();
    let wanted = (elements / cols.max(1)).max(1);
    match merged.rows() {
        Rows::Any => wanted,
        Rows::Multiple(n) => wanted.next_multiple_of(n.max(1)),
        Rows::Whole => rows.max(1),
    }
}

impl Piece {
    /// Bytes of the merged model in it.
    fn bytes(&self, pair: &Pair) -> u64 {
        let (part, all) = match (self, &pair.check) {
            (Piece::Rows(_, rows), Check::Changed(merged)) => (rows.len(), merged.matrix().0),
            (Piece::Kept(_, rows), Check::Stored(merged)) => (rows.len(), merged.matrix().0),
            (Piece::Kept(_, elements), _) => (elements.len(), kept::elements(&pair.found)),
            _ => return 0,
        };
        (part as u128 * pair.found.bytes.len() as u128 / all.max(1) as u128) as u64
    }
}
