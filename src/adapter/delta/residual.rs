//! The part of the weight that PiSSA and OLoRA start their factors from, taken out of it: `W − s · B₀ · A₀`. What was
//! trained is right only on what is left (huggingface/peft, `src/peft/tuners/lora/layer.py`, `pissa_init`,
//! `olora_init`).
//!
//! Both are found again from the weight: the r largest singular components (Meng et al.,
//! <https://arxiv.org/abs/2404.02948>), or the first r of a QR decomposition (Büyükakyüz,
//! <https://arxiv.org/abs/2406.01775>). Signs, which decompositions leave open, cancel in the product. PEFT does the same
//! when it loads such an adapter.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, s};

use super::check::matrix_only;
use super::{Act, Action, Before, Factors, Inverse, Site, truncate};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Rows;

/// What is taken out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Residual {
    /// By which decomposition.
    pub method: Method,
    /// How much of it: the rank of the adapter.
    pub rank: usize,
    /// The scale of the adapter.
    pub scale: f64,
}

/// The decomposition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Q and R; the scale multiplies their product.
    Olora,
    /// Singular values, divided by the scale that multiplies them.
    Pissa,
}

impl Method {
    /// The method of a name; none for those whose first factors cannot be found again.
    pub fn named(name: &str) -> Option<Method> {
        match name {
            "olora" => Some(Method::Olora),
            "pissa" => Some(Method::Pissa),
            _ => None,
        }
    }
}

impl Residual {
    /// The name people use.
    pub fn kind(&self) -> &'static str {
        match self.method {
            Method::Olora => "OLoRA residual",
            Method::Pissa => "PiSSA residual",
        }
    }

    /// What is taken out of the weight `w`, [out, in], as a product.
    pub fn factors(&self, kernels: &dyn Kernels, w: ArrayView2<f32>) -> Result<Factors> {
        match self.method {
            Method::Pissa => {
                let svd = kernels.svd(w)?;
                let b = &svd.u.slice(s![.., ..self.rank]) * &svd.s.slice(s![..self.rank]);
                Ok(Factors { a: svd.vt.slice(s![..self.rank, ..]).to_owned(), b, scale: 1.0 })
            }
            Method::Olora => {
                // The first columns decide the first of Q, and those the first rows of R.
                let (q, _) = kernels.qr(w.slice(s![.., ..self.rank]))?;
                let mut r = Array2::zeros((self.rank, w.ncols()));
                kernels.gemm(1.0, q.t(), w, 0.0, r.view_mut())?;
                Ok(Factors { a: r, b: q, scale: self.scale })
            }
        }
    }

    /// The weight has to be a matrix of at least this rank.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, cols) = matrix_only(self.kind(), site)?;
        if self.rank > rows.min(cols) {
            return Err(Error::mismatch(format!("rank {} of a base weight {}", self.rank, site.shape)));
        }
        Ok(Action::Act(Box::new(*self)))
    }
}

impl Act for Residual {
    fn inverse(&self) -> Inverse {
        Inverse::Never("what its factors started from is taken out of the weight, and has to be found in it again")
    }

    fn rows(&self) -> Rows {
        Rows::Whole
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        match self.method {
            Method::Olora => 8 * self.rank as u64 * (rows + cols) as u64,
            Method::Pissa => truncate::footprint(rows, cols),
        }
    }

    fn act(&self, kernels: &dyn Kernels, _: Range<usize>, w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let out = self.factors(kernels, w.view())?;
        kernels.gemm(-out.scale as f32, out.b.view(), out.a.view(), 1.0, w)
    }
}
