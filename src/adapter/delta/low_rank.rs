//! LoRA: `W + s · B · A`, with A: [r, in], B: [out, r] (Hu et al., <https://arxiv.org/abs/2106.09685>).
//!
//! A convolution is the same on its flattened kernel: A: [r, in, k …], B: [out, r, 1 …]. A stack of experts packs one
//! pair of factors per expert into two matrices; how, is [`Packing`]. Kinds that are exactly low rank under another
//! name (AdaLoRA, VeRA …) become factors when they are read and keep their name.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, s};

use super::{Action, Site};
use crate::adapter::scale::Scale;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Term};
use crate::tensor::{Shape, Tensor};

/// Two factors and a scale.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `[r, in]`, `[r, in, kernel …]`, or `[experts · r, in]`.
    pub a: Tensor,
    /// `[out, r]`, `[out, r, 1 …]`, or `[out, r · experts]`.
    pub b: Tensor,
    /// The scale the file came with.
    pub scale: Scale,
    /// Set for a stack of experts.
    pub experts: Option<Experts>,
    /// The name people use for the kind the factors came from: `LoRA` unless they were stored as something else.
    pub name: &'static str,
}

/// How one pair of matrices holds the factors of several experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Number of experts.
    pub count: usize,
    /// Which column of B belongs to which expert.
    pub packing: Packing,
    /// Which axis of the stored parameter A faces, where its shape leaves that open.
    pub facing: Facing,
}

/// Which of the two inner axes of a stack `[experts, d1, d2]` the inputs of A run along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facing {
    /// Always `d1`.
    First,
    /// `d1`, but `d2` in models that store their experts `[in, out]`.
    FirstUnlessTransposed,
    /// The true input of the layer: `d2`, but `d1` in models that store their experts `[in, out]`.
    Input,
    /// Not known.
    Unknown,
}

/// Order of the columns of B over experts and ranks. The rows of A always have the expert outermost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Column `k · experts + e`: the expert runs fastest (PEFT).
    RankMajor,
    /// Column `e · r + k`: one expert after the other.
    ByExpert,
}

/// Factors in f32, ready to be added: a: [r, in], b: [out, r], both contiguous.
#[derive(Clone, Debug)]
pub struct Factors {
    /// `[r, in]`.
    pub a: Array2<f32>,
    /// `[out, r]`.
    pub b: Array2<f32>,
    /// Multiplier of the product.
    pub scale: f64,
}

impl LowRank {
    /// The name people use.
    pub fn kind(&self) -> &'static str {
        if self.experts.is_some() { "LoRA on experts" } else { self.name }
    }

    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("a", &self.a), ("b", &self.b)]
    }

    /// Rank of one pair of factors.
    pub fn rank(&self) -> usize {
        let rows = self.a.shape.dims().first().copied().unwrap_or(0);
        rows / self.experts.map_or(1, |e| e.count.max(1))
    }

    /// The multiplier the file asks for.
    pub fn factor(&self) -> f64 {
        self.scale.factor(self.rank())
    }

    /// Both factors as matrices: the kernel of a convolution flattened into A's columns.
    pub fn matrices(&self) -> Result<(Array2<f32>, Array2<f32>)> {
        let (a, b) = (self.a.to_matrix()?, self.b.to_matrix()?);
        if self.experts.is_none() && a.nrows() != b.ncols() {
            return Err(Error::mismatch(format!(
                "rank of A {} against rank of B {}: {} against {}",
                self.a.shape,
                self.b.shape,
                a.nrows(),
                b.ncols()
            ))
            .hint("the two halves may come from different adapters"));
        }
        Ok((a, b))
    }

    /// The factors of a plain layer.
    pub fn factors(&self) -> Result<Factors> {
        let (a, b) = self.matrices()?;
        Ok(Factors { a, b, scale: self.factor() })
    }

    /// The factors of every expert of a stack, a: [r, in], b: [out, r].
    pub fn expert_factors(&self) -> Result<Vec<Factors>> {
        let Some(experts) = self.experts else { return Ok(vec![self.factors()?]) };
        let (a, b) = self.matrices()?;
        let rank = self.rank();
        if a.nrows() != rank * experts.count || b.ncols() != a.nrows() {
            return Err(Error::mismatch(format!(
                "A {} and B {} do not hold {} experts of rank {rank}",
                self.a.shape, self.b.shape, experts.count
            )));
        }
        let expert = |e: usize| {
            let b = match experts.packing {
                Packing::RankMajor => b.slice(s![.., e..;experts.count]),
                Packing::ByExpert => b.slice(s![.., e * rank..(e + 1) * rank]),
            };
            let b = b.as_standard_layout().into_owned();
            Factors { a: a.slice(s![e * rank..(e + 1) * rank, ..]).to_owned(), b, scale: self.factor() }
        };
        Ok((0..experts.count).map(expert).collect())
    }

    /// For a parameter by its own name: a matrix, or a stack `[experts, d1, d2]`. With `transposed` the stored matrix
    /// is the transpose of the product.
    pub fn prepare_parameter(&self, stored: &Shape, transposed: bool) -> Result<Action> {
        let (count, d1, d2) = match *stored.dims() {
            [d1, d2] => (1, d1, d2),
            [count, d1, d2] => (count, d1, d2),
            _ => return Err(Error::mismatch(format!("base parameter {stored}, expected a matrix or a stack of them"))),
        };
        let mut all = self.expert_factors()?;
        if all.len() != count {
            let what = format!("factors for {} experts, the base parameter {stored} has {count}", all.len());
            return Err(Error::mismatch(what).hint("is this the base model the adapter was trained on?"));
        }
        if transposed {
            all = all.iter().map(Factors::transposed).collect();
        }
        let shape = Shape::new(vec![d1, d2]);
        for factors in &all {
            Site { shape: &shape, companion: None }.expect(factors.b.nrows(), factors.a.ncols())?;
        }
        Ok(if stored.rank() == 2 { Action::LowRank(all.remove(0)) } else { Action::Experts(all) })
    }

    /// Checks the shapes against the weight and widens the factors.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let factors = self.factors()?;
        let dims = site.shape.dims();
        if dims.len() == 2 && self.a.shape.rank() > 2 && self.b.shape.rank() == 2 {
            let what = format!(
                "A {} is of a convolution, B {} and the base {} are not",
                self.a.shape, self.b.shape, site.shape
            );
            return Err(Error::mismatch(what));
        }
        // A convolution's kernel has to agree axis by axis; a product that happens to match is not enough.
        if self.a.shape.rank() > 2 && dims.len() == self.a.shape.rank() && dims[2..] != self.a.shape.dims()[2..] {
            return Err(Error::mismatch(format!(
                "kernel of A {} against the base weight {}",
                self.a.shape, site.shape
            )));
        }
        let inputs = self.a.shape.dims().get(1).copied().unwrap_or(0);
        if dims.len() > 2 && self.a.shape.rank() == dims.len() && inputs != dims[1] && inputs % dims[1].max(1) == 0 {
            let groups = inputs / dims[1].max(1);
            return Err(Error::unsupported(format!(
                "the base convolution {} has {groups} groups; an update whose A {} sees all inputs does not fit it",
                site.shape, self.a.shape
            )));
        }
        site.expect(factors.b.nrows(), factors.a.ncols())?;
        Ok(Action::LowRank(factors))
    }
}

impl Factors {
    /// Rank.
    pub fn rank(&self) -> usize {
        self.a.nrows()
    }

    /// The factors of the transposed product: `(b · a)ᵀ = aᵀ · bᵀ`.
    #[must_use]
    pub fn transposed(&self) -> Factors {
        let turn = |m: &Array2<f32>| m.t().as_standard_layout().into_owned();
        Factors { a: turn(&self.b), b: turn(&self.a), scale: self.scale }
    }

    /// The factors of some rows and columns of the product.
    #[must_use]
    pub fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Factors {
        let whole = cols == (0..self.a.ncols());
        let a = if whole { self.a.clone() } else { self.a.slice(s![.., cols]).as_standard_layout().into_owned() };
        Factors { a, b: self.b.slice(s![rows, ..]).to_owned(), scale: self.scale }
    }

    /// Rows of the product as a term, for a tile of so many columns, where the factors lie row by row and fit it.
    pub fn term(&self, rows: Range<usize>, cols: usize) -> Option<Term<'_>> {
        let rank = self.rank();
        let b = self.b.as_slice()?.get(rows.start * rank..rows.end * rank)?;
        let fits = (self.b.ncols(), self.a.ncols()) == (rank, cols);
        fits.then_some(Term {
            a: self.a.as_slice()?,
            a_stride: cols,
            b,
            b_stride: rank,
            rank,
            scale: self.scale as f32,
        })
    }

    /// Adds rows of the product to `w` in the defined order of operations.
    pub fn add_to(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>) -> Result<()> {
        kernels.add_product(self.scale as f32, self.b.slice(s![rows, ..]), self.a.view(), w)
    }
}
