//! Sparse differences: some elements of the weight, each with a number added.
//!
//! SHiRA (Bhardwaj et al., <https://arxiv.org/abs/2406.13175>) stores rows and columns. Super-Tuning
//! (<https://arxiv.org/abs/2607.09287>) stores flat positions, or none where they are those of the base's largest
//! elements. WaveFT (Bilican et al., <https://arxiv.org/abs/2505.12532>) stores the seed they were drawn with; its values
//! may be coefficients of a wavelet transform, each of which touches a few neighbouring elements. Source:
//! huggingface/peft, `src/peft/tuners/{shira,supertuning,waveft}`. LyCORIS keeps what an extraction left over beside the
//! factors, in 16-bit integers (KohakuBlueleaf/LyCORIS, `lycoris/utils/__init__.py`).

use std::ops::Range;

use ndarray::ArrayViewMut2;

use super::check::{length_is, matrix_only};
use super::wavelet::Wavelet;
use super::{Act, Action, Before, Inverse, Reversal, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Dtype, Rows, Tensor, TorchRng};

/// Values and where they go.
#[derive(Clone, Debug, PartialEq)]
pub struct Sparse {
    /// `[n]`.
    pub values: Tensor,
    /// Their positions.
    pub positions: Positions,
    /// Multiplier of the values.
    pub scaling: f64,
}

/// How positions are given.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// `[2, n]`: rows, then columns (SHiRA).
    Pairs(Tensor),
    /// The same of a weight of any number of axes as a matrix, beside its rows and columns `[2]` (LyCORIS). In 16-bit
    /// integers numbers above 32767 are the negative ones.
    Sized {
        /// `[2, n]`.
        indices: Tensor,
        /// `[2]`.
        size: Tensor,
    },
    /// `[n]`: row · in + column (Super-Tuning).
    Flat(Tensor),
    /// Those of the elements of largest magnitude, from the largest on (Super-Tuning).
    Largest,
    /// Those of the elements of smallest magnitude, from the smallest on (Super-Tuning).
    Smallest,
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
            Positions::Sized { .. } => "sparse residual",
            Positions::Flat(_) | Positions::Largest | Positions::Smallest => "Super-Tuning",
            Positions::Drawn { .. } => "WaveFT",
        }
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out = vec![("values", &self.values)];
        match &self.positions {
            Positions::Pairs(positions) | Positions::Flat(positions) => out.push(("positions", positions)),
            Positions::Sized { indices, size } => out.extend([("positions", indices), ("size", size)]),
            Positions::Largest | Positions::Smallest | Positions::Drawn { .. } => {}
        }
        out
    }

    /// Every position has to lie inside the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = match self.positions {
            Positions::Sized { .. } => site.matrix(),
            _ => matrix_only(self.kind(), site)?,
        };
        let values = self.values.to_f32()?;
        let count = values.len();
        if let Positions::Largest | Positions::Smallest = self.positions {
            let values = values.into_iter().map(|v| (self.scaling * f64::from(v)) as f32).collect();
            return Found::prepare(values, matches!(self.positions, Positions::Largest), (rows, cols));
        }
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
            Positions::Sized { indices, size } => {
                length_is("positions", indices, count.saturating_mul(2))?;
                length_is("size", size, 2)?;
                let wide = 1 << 16;
                let fits =
                    |(found, n): (&usize, usize)| *found == n || (size.dtype == Dtype::I16 && *found == n % wide);
                let found = unwrapped(size)?;
                if !found.iter().zip([rows, cols]).all(fits) {
                    let what = format!("a residual of {found:?} for the base weight {}", site.shape);
                    return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
                }
                if indices.dtype == Dtype::I16 && rows.max(cols) > wide {
                    let what = format!("positions in 16 bits for the base weight {}, which has more", site.shape);
                    return Err(Error::unsupported(what));
                }
                let indices = unwrapped(indices)?;
                let (first, second) = indices.split_at(count);
                first.iter().copied().zip(second.iter().copied()).collect()
            }
            Positions::Largest | Positions::Smallest => Vec::new(), // settled above
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

/// Values whose positions are those of the weight's most extreme elements.
struct Found {
    values: Vec<f32>,
    largest: bool,
}

impl Found {
    fn prepare(values: Vec<f32>, largest: bool, (rows, cols): (usize, usize)) -> Result<Action> {
        if rows.checked_mul(cols).is_none_or(|n| values.len() > n || n > u32::MAX as usize) {
            return Err(Error::mismatch(format!("{} values for a weight [{rows}, {cols}]", values.len())));
        }
        Ok(Action::Act(Box::new(Found { values, largest })))
    }

    /// Positions from the most extreme element on, one more than there are values where the weight has it.
    fn positions(&self, magnitudes: &[f32]) -> Vec<u32> {
        let order = |&i: &u32, &j: &u32| {
            let order = magnitudes[i as usize].total_cmp(&magnitudes[j as usize]);
            if self.largest { order.reverse() } else { order }
        };
        let mut positions: Vec<u32> = (0..magnitudes.len() as u32).collect();
        let wanted = (self.values.len() + 1).min(positions.len());
        if wanted < positions.len() {
            positions.select_nth_unstable_by(wanted, order);
            positions.truncate(wanted);
        }
        positions.sort_unstable_by(order);
        positions
    }
}

impl Act for Found {
    fn inverse(&self) -> Inverse {
        Inverse::Never("which elements it changes is found in the weight as it was")
    }

    fn rows(&self) -> Rows {
        Rows::Whole
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        8 * (rows * cols) as u64
    }

    fn act(&self, _: &dyn Kernels, _: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let magnitudes: Vec<f32> = w.iter().map(|v| v.abs()).collect();
        let positions = self.positions(&magnitudes);
        let equal = |pair: &[u32]| magnitudes[pair[0] as usize] == magnitudes[pair[1] as usize];
        if positions.windows(2).any(equal) {
            return Err(Error::unsupported(
                "Super-Tuning without saved positions: elements of the base have the same magnitude, and the file does \
                 not say which of them comes first",
            )
            .hint("save the adapter again with save_precomputed_indices"));
        }
        let cols = w.ncols();
        for (&position, &value) in positions.iter().zip(&self.values) {
            let position = position as usize;
            w[[position / cols, position % cols]] += value;
        }
        Ok(())
    }
}

/// Indices whose 16-bit integers may have gone over their end.
fn unwrapped(tensor: &Tensor) -> Result<Vec<usize>> {
    if tensor.dtype != Dtype::I16 {
        return indices(tensor);
    }
    let whole = |v: i64| usize::try_from(if v < 0 { v + (1 << 16) } else { v });
    let wrong = |_| Error::malformed("a position that is no 16-bit number");
    tensor.to_integers()?.into_iter().map(|v| whole(v).map_err(wrong)).collect()
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
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

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
