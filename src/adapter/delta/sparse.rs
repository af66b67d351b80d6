//! Sparse differences: some elements of the weight, each with a number added.
//!
//! SHiRA (Bhardwaj et al., <https://arxiv.org/abs/2406.13175>) stores rows and columns, Super-Tuning flat positions,
//! WaveFT (Bilican et al., <https://arxiv.org/abs/2505.12532>) only the seed they were drawn with; its values may be
//! coefficients of a wavelet transform, each of which touches a few neighbouring elements. Source: huggingface/peft,
//! `src/peft/tuners/{shira,supertuning,waveft}`.

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::check::{length_is, matrix_only};
use super::wavelet::Wavelet;
use super::{Act, Action, Before, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Tensor, TorchRng};

/// Values and where they go.
#[derive(Clone, Debug)]
pub struct Sparse {
    /// `[n]`.
    pub values: Tensor,
    /// Their positions.
    pub positions: Positions,
    /// Multiplier of the values.
    pub scaling: f64,
}

/// How positions are given.
#[derive(Clone, Debug)]
pub enum Positions {
    /// `[2, n]`: rows, then columns (SHiRA).
    Pairs(Tensor),
    /// `[n]`: row · in + column (Super-Tuning).
    Flat(Tensor),
    /// Drawn with a seed; the values are elements, or coefficients of a wavelet (WaveFT).
    Drawn {
        /// The seed.
        seed: u64,
        /// The wavelet, none for plain elements.
        wavelet: Option<Wavelet>,
    },
}

/// One element: row, column, what is added.
type Entry = (usize, usize, f64);

struct Ready {
    entries: Vec<Entry>, // by row and column, every place once
}

impl Sparse {
    /// The name people use.
    pub fn kind(&self) -> &'static str {
        match self.positions {
            Positions::Pairs(_) => "SHiRA",
            Positions::Flat(_) => "Super-Tuning",
            Positions::Drawn { .. } => "WaveFT",
        }
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out = vec![("values", &self.values)];
        if let Positions::Pairs(positions) | Positions::Flat(positions) = &self.positions {
            out.push(("positions", positions));
        }
        out
    }

    /// Every position has to lie inside the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only(self.kind(), site)?;
        let values = self.values.to_f32()?;
        let count = values.len();
        let places: Vec<(usize, usize)> = match &self.positions {
            Positions::Pairs(tensor) => {
                length_is("positions", tensor, count.saturating_mul(2))?;
                let indices = indices(tensor)?;
                let (first, second) = indices.split_at(count);
                first.iter().copied().zip(second.iter().copied()).collect()
            }
            Positions::Flat(tensor) => {
                length_is("positions", tensor, count)?;
                indices(tensor)?.into_iter().map(|i| (i / cols, i % cols)).collect()
            }
            Positions::Drawn { seed, .. } => {
                let drawn = TorchRng::new(*seed).permutation_head(site.shape.elements()?, count)?;
                drawn.into_iter().map(|i| (i / cols, i % cols)).collect()
            }
        };
        if let Some((i, j)) = places.iter().find(|(i, j)| *i >= rows || *j >= cols) {
            return Err(Error::mismatch(format!("position [{i}, {j}] in the base weight {}", site.shape))
                .hint("is this the base model the adapter was trained on?"));
        }
        let scaled = places.into_iter().zip(values).map(|(place, v)| (place, self.scaling * f64::from(v)));
        let entries = match &self.positions {
            Positions::Drawn { wavelet: Some(wavelet), .. } => scaled
                .flat_map(|(place, v)| {
                    wavelet.spread(place, (rows, cols)).into_iter().map(move |(i, j, w)| (i, j, v * w))
                })
                .collect(),
            _ => scaled.map(|((i, j), v)| (i, j, v)).collect(),
        };
        Ok(Action::Act(Box::new(Ready { entries: gathered(entries) })))
    }
}

/// Indices as numbers. PEFT saves them as f32 on Windows.
fn indices(tensor: &Tensor) -> Result<Vec<usize>> {
    let wrong = |v: &dyn std::fmt::Display| Error::malformed(format!("position {v}, expected a whole number from 0"));
    if crate::tensor::dtype::is_float(tensor.dtype) {
        let whole = |v: f32| if v >= 0.0 && v.fract() == 0.0 { Ok(v as usize) } else { Err(wrong(&v)) };
        return tensor.to_f32()?.into_iter().map(whole).collect();
    }
    tensor.to_integers()?.into_iter().map(|v| usize::try_from(v).map_err(|_| wrong(&v))).collect()
}

/// Sorted, with entries of the same place added up.
fn gathered(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries.sort_by_key(|&(i, j, _)| (i, j));
    entries.dedup_by(|next, kept| {
        let same = (next.0, next.1) == (kept.0, kept.1);
        if same {
            kept.2 += next.2;
        }
        same
    });
    entries
}

impl Act for Ready {
    fn footprint(&self, _: usize, _: usize) -> u64 {
        0
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let first = self.entries.partition_point(|e| e.0 < rows.start);
        for &(i, j, v) in self.entries[first..].iter().take_while(|e| e.0 < rows.end) {
            w[[i - rows.start, j]] += v as f32;
        }
        Ok(())
    }
}
