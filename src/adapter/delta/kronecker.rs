//! LoKr: `W + s · w1 ⊗ w2`, the Kronecker product (KronA: Edalati et al., <https://arxiv.org/abs/2212.10650>;
//! KohakuBlueleaf/LyCORIS, `lycoris/modules/lokr.py`).
//!
//! Row `i · b + p` of the product, with w1: [a, c] and w2: [b, d], is row i of w1, each number times row p of w2. So
//! any rows can be made alone, and only as much of w2 is multiplied out as they need.

use std::borrow::Cow;
use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, s};

use super::{Act, Action, Before, Product, Reversal, Site};
use crate::adapter::scale::Scale;
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::kernels::tiles::with_values;
use crate::tensor::Tensor;

/// Two factors of a Kronecker product and a scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Kronecker {
    /// `[a, c]`.
    pub w1: Factor,
    /// `[b, d]`, `[b, d, kernel …]`.
    pub w2: Factor,
    /// The multiplier; what rank it is divided by, the layout decides.
    pub scale: Scale,
    /// Where the two factors differ in their number of axes: which side of w1 the missing ones are on.
    pub padding: Padding,
}

/// One factor.
#[derive(Clone, Debug, PartialEq)]
pub enum Factor {
    /// Stored as it is.
    Whole(Tensor),
    /// Stored as a product.
    Product(Product),
}

/// Where w1 gets the axes it lacks beside a w2 with kernel axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// Behind its own: the product is that of the flattened factors.
    Behind,
    /// Before them, as torch pads by itself and as PEFT lets it for 1-d convolutions. The product then has the axes
    /// `[b, a · d, c · kernel]` and is reshaped to the weight's, which mixes them.
    Front,
}

impl Factor {
    /// Its tensors.
    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Factor::Whole(t) => vec![t],
            Factor::Product(p) => p.tensors().collect(),
        }
    }

    /// Its rows and columns.
    pub fn shape(&self) -> Result<(usize, usize)> {
        match self {
            Factor::Whole(t) if t.shape.rank() < 2 || t.elements() == 0 => {
                Err(Error::mismatch(format!("a factor {}, expected a matrix with elements", t.shape)))
            }
            Factor::Whole(t) => Ok(t.shape.matrix()),
            Factor::Product(p) => p.shape(),
        }
    }

    fn ready(&self) -> Result<ReadyFactor> {
        Ok(match self {
            Factor::Whole(t) => ReadyFactor::Whole(t.to_matrix()?),
            Factor::Product(p) => {
                let (left, right) = p.halves()?;
                ReadyFactor::Product(left, right)
            }
        })
    }
}

enum ReadyFactor {
    Whole(Array2<f32>),
    Product(Array2<f32>, Array2<f32>),
}

impl ReadyFactor {
    fn nrows(&self) -> usize {
        match self {
            ReadyFactor::Whole(m) | ReadyFactor::Product(m, _) => m.nrows(),
        }
    }

    fn rows(&self, kernels: &dyn Kernels, rows: Range<usize>) -> Result<Cow<'_, Array2<f32>>> {
        match self {
            ReadyFactor::Whole(m) if rows == (0..m.nrows()) => Ok(Cow::Borrowed(m)),
            ReadyFactor::Whole(m) => Ok(Cow::Owned(m.slice(s![rows, ..]).to_owned())),
            ReadyFactor::Product(left, right) => {
                let mut out = Array2::zeros((rows.len(), right.ncols()));
                kernels.add_product(1.0, left.slice(s![rows, ..]), right.view(), out.view_mut())?;
                Ok(Cow::Owned(out))
            }
        }
    }
}

struct Ready {
    w1: ReadyFactor,
    w2: ReadyFactor,
    scale: f32,
}

/// PEFT's product for 1-d convolutions, w2: [b, d, kernel].
struct FrontPadded {
    w1: Array2<f32>,
    w2: Array2<f32>,
    kernel: usize,
    scale: f32,
}

impl Kronecker {
    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let w1 = self.w1.tensors().into_iter().map(|t| ("w1", t));
        w1.chain(self.w2.tensors().into_iter().map(|t| ("w2", t))).collect()
    }

    /// Rows and columns of the product.
    pub fn matrix(&self) -> Result<(usize, usize)> {
        let (w1, w2) = (self.w1.shape()?, self.w2.shape()?);
        let sides = w1.0.checked_mul(w2.0).zip(w1.1.checked_mul(w2.1));
        sides.ok_or_else(|| Error::mismatch(format!("factors of {w1:?} and {w2:?}: their product overflows")))
    }

    /// The product has to be of the weight's shape. That is settled before anything is computed: small factors may
    /// have a product of any size.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = self.matrix()?;
        site.expect(rows, cols)?;
        let scale = self.scale.factor(self.rank()) as f32;
        match (&self.w2, self.padding) {
            (Factor::Whole(w2), Padding::Front) if w2.shape.rank() == 3 => self.front_padded(w2, scale),
            _ => Ok(Action::Act(Box::new(Ready { w1: self.w1.ready()?, w2: self.w2.ready()?, scale }))),
        }
    }

    /// Whether the product is reshaped so that rows and columns mix.
    pub fn mixes_axes(&self) -> bool {
        matches!((&self.w2, self.padding), (Factor::Whole(w2), Padding::Front) if w2.shape.rank() == 3)
    }

    /// Rank of a factor stored as a product; 1 where neither is.
    pub fn rank(&self) -> usize {
        [&self.w2, &self.w1]
            .into_iter()
            .find_map(|factor| match factor {
                Factor::Product(p) => Some(p.rank()),
                Factor::Whole(_) => None,
            })
            .unwrap_or(1)
    }

    fn front_padded(&self, w2: &Tensor, scale: f32) -> Result<Action> {
        let w1 = match &self.w1 {
            Factor::Whole(t) => t.to_matrix()?,
            Factor::Product(p) => {
                let (left, right) = p.halves()?;
                left.dot(&right)
            }
        };
        let kernel = w2.shape.dims()[2].max(1);
        Ok(Action::Act(Box::new(FrontPadded { w1, w2: w2.to_matrix()?, kernel, scale })))
    }
}

impl Act for Ready {
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let height = self.w2.nrows().max(1);
        let mut start = rows.start;
        while start < rows.end {
            // Rows that share a row of w1.
            let i = start / height;
            let end = rows.end.min((i + 1) * height);
            let w1 = self.w1.rows(kernels, i..i + 1)?;
            let w2 = self.w2.rows(kernels, start - i * height..end - i * height)?;
            let tile = w.slice_mut(s![start - rows.start..end - rows.start, ..]);
            let (factors, width) = (w1.row(0), w2.ncols());
            let parts = factors.as_slice().zip(w2.as_slice());
            let (factors, block) = parts.ok_or_else(|| Error::mismatch("a factor is not contiguous"))?;
            with_values(tile, |values| {
                kernels.add_blocks(values, end - start, (self.scale, factors), (block, width));
            });
            start = end;
        }
        Ok(())
    }
}

impl Act for FrontPadded {
    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn act(&self, _: &dyn Kernels, rows: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let inputs = self.w2.ncols() / self.kernel;
        // Axes of the product: [b, a · d, c · kernel].
        let inner = self.w1.ncols() * self.kernel;
        let middle = self.w1.nrows() * inputs;
        let cols = w.ncols();
        for (mut row, o) in w.rows_mut().into_iter().zip(rows) {
            for (col, value) in row.iter_mut().enumerate() {
                let flat = o * cols + col;
                let (p, y, x) = (flat / inner / middle, flat / inner % middle, flat % inner);
                let w1 = self.w1[[y / inputs, x / self.kernel]];
                *value += self.scale * w1 * self.w2[[p, y % inputs * self.kernel + x % self.kernel]];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, Shape};

    fn tensor(dims: &[usize]) -> Tensor {
        Tensor::from_f32(Dtype::F32, dims, &vec![1.0; dims.iter().product()]).unwrap()
    }

    fn refused(w1: Factor, w2: Factor, base: &[usize]) -> String {
        let delta = Kronecker { w1, w2, scale: Scale::direct(1.0), padding: Padding::Behind };
        let shape = Shape::new(base);
        delta.prepare(&Site { shape: &shape, companion: None }).err().expect("refused").to_string()
    }

    #[test]
    fn a_product_far_larger_than_its_file_is_refused_before_it_is_made() {
        let column = || Factor::Product(Product { a: tensor(&[50_000, 1]), b: tensor(&[1, 50_000]), core: None });
        let e = refused(column(), column(), &[4096, 4096]);
        assert!(e.contains("[2500000000, 2500000000]") && e.contains("[4096, 4096]"), "{e}");
    }

    #[test]
    fn factors_that_do_not_fit_are_named() {
        let whole = |dims: &[usize]| Factor::Whole(tensor(dims));
        let e = refused(whole(&[2, 2]), whole(&[3, 3]), &[6, 7]);
        assert!(e.contains("[6, 6]") && e.contains("[6, 7]"), "{e}");
        let product = Product { a: tensor(&[3, 2]), b: tensor(&[1, 3]), core: None };
        let e = refused(whole(&[2, 2]), Factor::Product(product), &[6, 6]);
        assert!(e.contains("[3, 2]") && e.contains("[1, 3]"), "{e}");
        let product = Product { a: tensor(&[2, 3]), b: tensor(&[2, 3]), core: Some(tensor(&[2, 1, 3, 3])) };
        let e = refused(whole(&[2, 2]), Factor::Product(product), &[6, 54]);
        assert!(e.contains("core [2, 1, 3, 3]"), "{e}");
    }
}
