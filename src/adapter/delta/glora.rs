//! GLoRA: scale and shift of weight and bias (Chavan et al., <https://arxiv.org/abs/2306.07967>; huggingface/peft,
//! `src/peft/tuners/glora`).
//!
//! `W + W ∘ A + B`, and `b + b ∘ D + E + W · C` with the weight as it was. Each letter is a product `Xd · Xu`, a vector
//! or a single number.

use std::ops::Range;

use ndarray::{Array1, Array2, ArrayViewMut2, Axis, s};

use super::check::matrix_only;
use super::{Act, Action, Before, Inverse, Reversal, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// Bytes of the weight that are read at a time for the bias.
const TILE_BYTES: usize = 1 << 20;

/// The change of a weight or of a bias.
#[derive(Clone, Debug, PartialEq)]
pub enum Glora {
    /// Letters A and B.
    Weight {
        /// Scale, less one.
        a: Option<Letter>,
        /// Shift.
        b: Option<Letter>,
    },
    /// Letters C, D and E.
    Bias {
        /// Turns the weight into a shift: `[in, 1]`.
        c: Option<Letter>,
        /// Scale, less one.
        d: Option<Letter>,
        /// Shift.
        e: Option<Letter>,
    },
}

/// One letter.
#[derive(Clone, Debug, PartialEq)]
pub enum Letter {
    /// Xd: [rows, r], Xu: [r, cols].
    Product(Tensor, Tensor),
    /// One number, one for each row, or all of them.
    Plain(Tensor),
}

impl Glora {
    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let letters = match self {
            Glora::Weight { a, b } => vec![("a", a), ("b", b)],
            Glora::Bias { c, d, e } => vec![("c", c), ("d", d), ("e", e)],
        };
        letters
            .into_iter()
            .filter_map(|(name, letter)| letter.as_ref().map(|l| (name, l)))
            .flat_map(|(name, letter)| match letter {
                Letter::Plain(x) => vec![(name, x)],
                Letter::Product(d, u) => vec![(name, d), (name, u)],
            })
            .collect()
    }

    /// Every letter has to cover the weight or the bias.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        match self {
            Glora::Weight { a, b } => {
                let size = matrix_only("GLoRA", site)?;
                let ready =
                    |name: &str, letter: &Option<Letter>| letter.as_ref().map(|l| l.ready(name, size)).transpose();
                Ok(Action::Act(Box::new(ReadyWeight { a: ready("A", a)?, b: ready("B", b)? })))
            }
            Glora::Bias { c, d, e } => {
                let (n, _) = site.matrix();
                let vector =
                    |name: &str, letter: &Option<Letter>| letter.as_ref().map(|l| l.vector(name, n)).transpose();
                let (d, e) = (vector("D", d)?, vector("E", e)?);
                let c = c.as_ref().map(|c| beside(c, site, n)).transpose()?;
                Ok(Action::Act(Box::new(ReadyBias { c, d, e })))
            }
        }
    }
}

/// The weight beside the bias, and the vector it is multiplied with.
fn beside(c: &Letter, site: &Site, n: usize) -> Result<(Tensor, Array1<f64>)> {
    let weight = site
        .companion
        .ok_or_else(|| Error::missing("the weight beside this bias, which GLoRA multiplies with its letter C"))?;
    let &[rows, cols] = weight.shape.dims() else {
        return Err(Error::mismatch(format!("GLoRA on a weight {}, expected a matrix", weight.shape)));
    };
    if rows != n {
        return Err(Error::mismatch(format!("a bias of {n} beside a weight {}", weight.shape)));
    }
    Ok((weight.clone(), c.vector("C", cols)?.mapv(f64::from)))
}

enum Dense {
    Product(Array2<f32>, Array2<f32>),
    Full(Array2<f32>),
    Rows(Array1<f32>),
    One(f32),
}

impl Letter {
    fn ready(&self, name: &str, (rows, cols): (usize, usize)) -> Result<Dense> {
        let wrong = |what: String| Error::mismatch(format!("{name} {what} for the base weight [{rows}, {cols}]"));
        match self {
            Letter::Product(d, u) => {
                let (d_values, u_values) = (d.to_matrix()?, u.to_matrix()?);
                if d_values.nrows() != rows || u_values.ncols() != cols || d_values.ncols() != u_values.nrows() {
                    return Err(wrong(format!("{} · {}", d.shape, u.shape)));
                }
                Ok(Dense::Product(d_values, u_values))
            }
            Letter::Plain(x) => match *x.shape.dims() {
                [] | [1] => Ok(Dense::One(x.to_f32()?[0])),
                [r, 1] if r == rows => Ok(Dense::Rows(Array1::from_vec(x.to_f32()?))),
                [r, c] if (r, c) == (rows, cols) => Ok(Dense::Full(x.to_matrix()?)),
                _ => Err(wrong(x.shape.to_string())),
            },
        }
    }

    /// The letter as a vector of `n` numbers.
    fn vector(&self, name: &str, n: usize) -> Result<Array1<f32>> {
        let values = match self {
            Letter::Product(d, u) => {
                let (down, up) = (d.to_matrix()?, u.to_matrix()?);
                if up.ncols() != 1 || down.ncols() != up.nrows() {
                    let what = format!("{name} {} · {}, expected a vector of {n}", d.shape, u.shape);
                    return Err(Error::mismatch(what));
                }
                let product = down.mapv(f64::from).dot(&up.mapv(f64::from));
                product.iter().map(|&v| v as f32).collect()
            }
            Letter::Plain(x) if x.elements() == 1 => vec![x.to_f32()?[0]; n],
            Letter::Plain(x) => x.to_f32()?,
        };
        if values.len() != n {
            return Err(Error::mismatch(format!("{name} has {} values, expected {n}", values.len())));
        }
        Ok(Array1::from_vec(values))
    }
}

impl Dense {
    /// Rows of the letter as a matrix with `cols` columns.
    fn rows(&self, kernels: &dyn Kernels, rows: Range<usize>, cols: usize) -> Result<Array2<f32>> {
        match self {
            Dense::Product(d, u) => {
                let mut out = Array2::zeros((rows.len(), cols));
                kernels.add_product(1.0, d.slice(s![rows, ..]), u.view(), out.view_mut())?;
                Ok(out)
            }
            Dense::Full(x) => Ok(x.slice(s![rows, ..]).to_owned()),
            Dense::Rows(x) => Ok(Array2::from_shape_fn((rows.len(), cols), |(i, _)| x[rows.start + i])),
            Dense::One(x) => Ok(Array2::from_elem((rows.len(), cols), *x)),
        }
    }
}

struct ReadyWeight {
    a: Option<Dense>,
    b: Option<Dense>,
}

impl Act for ReadyWeight {
    fn reversal(&self) -> Reversal {
        Reversal::Steps
    }

    fn inverse(&self) -> Inverse {
        Inverse::Pointwise
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let cols = w.ncols();
        if let Some(a) = &self.a {
            w.zip_mut_with(&a.rows(kernels, rows.clone(), cols)?, |w, &a| *w += *w * a);
        }
        if let Some(b) = &self.b {
            w += &b.rows(kernels, rows, cols)?;
        }
        Ok(())
    }
}

struct ReadyBias {
    c: Option<(Tensor, Array1<f64>)>,
    d: Option<Array1<f32>>,
    e: Option<Array1<f32>>,
}

impl ReadyBias {
    /// `W · C` for some rows, in f64.
    fn shift(&self, rows: Range<usize>) -> Result<Array1<f64>> {
        let Some((weight, c)) = &self.c else { return Ok(Array1::zeros(rows.len())) };
        let step = (TILE_BYTES / (4 * c.len().max(1))).max(1);
        let mut out = Vec::with_capacity(rows.len());
        for start in rows.clone().step_by(step) {
            let tile = rows_of(weight, start..(start + step).min(rows.end))?;
            out.extend(
                tile.rows().into_iter().map(|row| row.iter().zip(c).map(|(&w, c)| f64::from(w) * c).sum::<f64>()),
            );
        }
        Ok(Array1::from_vec(out))
    }
}

fn rows_of(weight: &Tensor, rows: Range<usize>) -> Result<Array2<f32>> {
    let (_, cols) = weight.shape.matrix();
    let bits = weight.dtype.bitsize();
    if !bits.is_multiple_of(8) {
        return Err(Error::unsupported(format!("a weight of {} beside the bias", weight.dtype)));
    }
    let bytes = weight.bytes.slice(rows.start * cols * bits / 8..rows.end * cols * bits / 8);
    Tensor::new(weight.dtype, vec![rows.len(), cols].as_slice().into(), bytes)?.to_matrix()
}

impl Act for ReadyBias {
    fn inverse(&self) -> Inverse {
        match self.c {
            Some(_) => Inverse::Never("it adds a product with the weight as it was to the bias"),
            None => Inverse::Pointwise,
        }
    }

    fn footprint(&self, rows: usize, _: usize) -> u64 {
        TILE_BYTES as u64 + 16 * rows as u64
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let shift = self.shift(rows.clone())?;
        let at = |letter: &Option<Array1<f32>>, i: usize| letter.as_ref().map_or(0.0, |l| f64::from(l[i]));
        for ((mut row, i), shift) in w.axis_iter_mut(Axis(0)).zip(rows).zip(shift) {
            row.mapv_inplace(|b| (f64::from(b) * (1.0 + at(&self.d, i)) + at(&self.e, i) + shift) as f32);
        }
        Ok(())
    }
}
