//! How far two adapters, or two models, are apart.

pub mod adapters;
mod alone;
pub mod elements;
pub mod models;
mod on_base;

pub use adapters::{Adapters, Module};
pub use elements::Apart;
pub use models::{Differing, Form, Models, Unlike};

use std::ops::Range;

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
