//! PEANuT: a small network that is fed the weight itself (Zhong et al., <https://arxiv.org/abs/2410.01870>;
//! huggingface/peft, `src/peft/tuners/peanut`).
//!
//! Every input's column of the weight runs through `h = f(A w)` with A: [r, out], then through d encoders `h = f(E h)`
//! and as many decoders `h = f(D h) + (what stood before the encoder of the same depth)`, E and D: [r, r]; the change
//! of the column is `scaling · B h`, B: [out, r].

use std::ops::Range;
use std::sync::OnceLock;

use ndarray::{Array2, ArrayViewMut2, s};

use super::check::{matrix_only, shape_is};
use super::survey::{TILE_BYTES, left_product};
use super::{Act, Action, Before, Inverse, Site};
use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::Tensor;

/// The network's layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Peanut {
    /// `[r, out]`.
    pub a: Tensor,
    /// `[out, r]`.
    pub b: Tensor,
    /// `[r, r]` each, in order.
    pub encoders: Vec<Tensor>,
    /// `[r, r]` each, in order; as many as there are encoders.
    pub decoders: Vec<Tensor>,
    /// What is applied between the layers.
    pub activation: Activation,
    /// Multiplier of the result.
    pub scaling: f64,
}

/// Activation functions, by their names in transformers (`src/transformers/activations.py`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `relu`.
    Relu,
    /// `gelu`, exact.
    Gelu,
    /// `gelu_new` and `gelu_pytorch_tanh`: the approximation by tanh.
    GeluTanh,
    /// `quick_gelu`.
    QuickGelu,
    /// `silu` and `swish`.
    Silu,
    /// `tanh`.
    Tanh,
    /// `sigmoid`.
    Sigmoid,
    /// `leaky_relu`, slope 0.01.
    LeakyRelu,
    /// `mish`.
    Mish,
    /// `relu6`.
    Relu6,
    /// `linear`.
    Linear,
}

impl Activation {
    /// The function of a name.
    pub fn named(name: &str) -> Result<Activation> {
        Ok(match name {
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            "leaky_relu" => Activation::LeakyRelu,
            "mish" => Activation::Mish,
            "relu6" => Activation::Relu6,
            "linear" => Activation::Linear,
            other => {
                return Err(Error::unsupported(format!("activation function `{other}` is not known")).at_key("act_fn"));
            }
        })
    }

    /// One of the names [`Activation::named`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_new",
            Activation::QuickGelu => "quick_gelu",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
            Activation::LeakyRelu => "leaky_relu",
            Activation::Mish => "mish",
            Activation::Relu6 => "relu6",
            Activation::Linear => "linear",
        }
    }

    fn of(self, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match self {
            Activation::Relu => x.max(0.0),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Activation::QuickGelu => x * sigmoid(1.702 * x),
            Activation::Silu => x * sigmoid(x),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => sigmoid(x),
            Activation::LeakyRelu => x.max(0.0) + 0.01 * x.min(0.0),
            Activation::Mish => x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
            Activation::Relu6 => x.clamp(0.0, 6.0),
            Activation::Linear => x,
        }
    }
}

/// The error function to the last few bits of f64: the series near zero, the continued fraction further out (Abramowitz
/// and Stegun, 7.1.6 and 7.1.14).
fn erf(x: f64) -> f64 {
    let z = x.abs();
    let scale = (-z * z).exp() / std::f64::consts::PI.sqrt();
    let value = if z < 3.0 {
        let (mut term, mut sum) = (2.0 * z, 2.0 * z);
        for n in 1..80 {
            term *= 2.0 * z * z / f64::from(2 * n + 1);
            sum += term;
        }
        scale * sum
    } else {
        let fraction = (1..60).rev().fold(z, |below, k| z + f64::from(k) / 2.0 / below);
        1.0 - scale / fraction
    };
    value.copysign(x)
}

struct Ready {
    a: Array2<f32>,
    b: Array2<f32>,
    encoders: Vec<Array2<f64>>,
    decoders: Vec<Array2<f64>>,
    activation: Activation,
    scaling: f64,
    hidden: OnceLock<Array2<f32>>,
}

impl Peanut {
    /// Its tensors.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        let mut out = vec![("a", &self.a), ("b", &self.b)];
        out.extend(self.encoders.iter().map(|t| ("encoder", t)));
        out.extend(self.decoders.iter().map(|t| ("decoder", t)));
        out
    }

    /// Shapes have to agree with each other and the weight.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        let (rows, _) = matrix_only("PEANuT", site)?;
        let rank = self.a.shape.dims().first().copied().unwrap_or(0);
        shape_is("peanut_A", &self.a, &[rank, rows])?;
        shape_is("peanut_B", &self.b, &[rows, rank])?;
        let (depth, back) = (self.encoders.len(), self.decoders.len());
        if depth != back {
            return Err(Error::mismatch(format!("{depth} encoders and {back} decoders, expected as many")));
        }
        let layers = |what: &str, tensors: &[Tensor]| -> Result<Vec<Array2<f64>>> {
            let layer = |t: &Tensor| shape_is(what, t, &[rank, rank]).and_then(|()| Ok(t.to_matrix()?.mapv(f64::from)));
            tensors.iter().map(layer).collect()
        };
        Ok(Action::Act(Box::new(Ready {
            a: self.a.to_matrix()?,
            b: self.b.to_matrix()?,
            encoders: layers("encoder", &self.encoders)?,
            decoders: layers("decoder", &self.decoders)?,
            activation: self.activation,
            scaling: self.scaling,
            hidden: OnceLock::new(),
        })))
    }
}

impl Ready {
    /// What comes out of the last decoder, `[r, in]`, in f64 throughout and gathered once over all rows.
    fn hidden(&self, kernels: &dyn Kernels, before: &dyn Before) -> Result<&Array2<f32>> {
        if let Some(hidden) = self.hidden.get() {
            return Ok(hidden);
        }
        let mut h = left_product(kernels, self.a.view(), before)?;
        let f = |x: f64| self.activation.of(x);
        h.mapv_inplace(f);
        let mut residuals = Vec::with_capacity(self.encoders.len());
        for encoder in &self.encoders {
            let next = encoder.dot(&h).mapv_into(f);
            residuals.push(std::mem::replace(&mut h, next));
        }
        for (decoder, residual) in self.decoders.iter().zip(residuals.iter().rev()) {
            h = decoder.dot(&h).mapv_into(f) + residual;
        }
        // Two threads may both come here first; they compute the same numbers.
        Ok(self.hidden.get_or_init(|| h.mapv(|v| v as f32)))
    }
}

impl Act for Ready {
    fn inverse(&self) -> Inverse {
        Inverse::Never("its network is fed with the weight as it was")
    }

    fn footprint(&self, _: usize, cols: usize) -> u64 {
        let layers = 3 + self.encoders.len();
        TILE_BYTES as u64 + (8 * layers * self.a.nrows()) as u64 * cols as u64
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>, before: &dyn Before) -> Result<()> {
        let hidden = self.hidden(kernels, before)?;
        kernels.add_product(self.scaling as f32, self.b.slice(s![rows, ..]), hidden.view(), w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_those_of_torch() {
        // torch.special.erf and transformers' ACT2FN in float64.
        for (x, expected) in
            [(0.3, 0.328_626_759_459_127_4), (-1.7, -0.983_790_458_590_774_6), (3.5, 0.999_999_256_901_627_7)]
        {
            assert!((erf(x) - expected).abs() < 1e-14, "{x}: {}", erf(x));
        }
    }
}
