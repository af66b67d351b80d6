//! How far two adapters, or two models, are apart.

pub mod adapters;
mod alone;
pub mod elements;
pub mod models;
mod on_base;

pub use adapters::Adapters;
pub use elements::Apart;
pub use models::{Differing, Form, Models, Unlike};

use std::ops::Range;

use crate::linalg::pair::{Overlap, Sums};
use crate::tensor::Rows;

/// Bytes of the f32 rows that a change is formed in.
const TILE_BYTES: usize = 2 << 20;

/// Rows of a matrix that a change is formed in at a time.
fn tiles(rule: Rows, rows: usize, cols: usize) -> impl Iterator<Item = Range<usize>> {
    let step = tile_rows(rule, rows, cols);
    (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
}

fn tile_rows(rule: Rows, rows: usize, cols: usize) -> usize {
    let wanted = (TILE_BYTES / cols.max(1) / 4).max(1);
    let step = match rule {
        Rows::Any => wanted,
        Rows::Multiple(n) => wanted.next_multiple_of(n.max(1)),
        Rows::Whole => rows,
    };
    step.clamp(1, rows.max(1))
}

/// One changed tensor.
#[derive(Clone, Debug)]
pub struct Module {
    /// Module path, with `.bias` for its bias; the key on disk where a base was given.
    pub name: String,
    /// What the first adapter does to it; none where it leaves it alone.
    pub first: Option<&'static str>,
    /// What the second one does.
    pub second: Option<&'static str>,
    /// Sizes and angle. None where both say the same and how much that is depends on the base.
    pub sums: Option<Sums>,
    /// How far the spaces agree, where both changes are products.
    pub overlap: Option<Overlap>,
}

impl Module {
    /// ‖ΔW₁ − ΔW₂‖ / ‖ΔW₁‖.
    pub fn relative(&self) -> f64 {
        self.sums.map_or(0.0, |sums| sums.relative())
    }
}

/// How far apart two things may be and still count as the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Largest relative difference in Frobenius norm. Zero asks for the same bits.
    Relative(f64),
    /// Largest distance of two elements in units in the last place; models only.
    Ulps(u64),
}

/// What lies beyond a tolerance, in words.
#[derive(Clone, Debug, PartialEq)]
pub struct Beyond {
    /// The tensor or module; empty where it concerns the whole.
    pub key: String,
    /// What was found.
    pub what: String,
}
