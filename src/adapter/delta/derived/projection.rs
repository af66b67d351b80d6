//! Random matrices that all targets of an adapter share: stored with it, or made again from a seed.
//!
//! Their size is that of the largest adapted module of the base, which an adapter file does not tell. So a seed stays
//! a seed until [`crate::adapter::Adapter::complete`] is told the shapes of the base.

use crate::error::{Error, Result};
use crate::tensor::random::TorchRng;
use crate::tensor::{Dtype, Tensor};

/// The shared pair of matrices.
#[derive(Clone, Debug, PartialEq)]
pub enum Projection {
    /// Both are at hand.
    Stored {
        /// VeRA: `[r, inputs]`; RandLoRA: `[r, 1, smaller side]`.
        a: Tensor,
        /// VeRA: `[outputs, r]`; RandLoRA: `[larger side, bases, r]`.
        b: Tensor,
    },
    /// Both have to be made from a seed first.
    Seeded(Seed),
}

/// What a projection is made from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seed {
    /// `projection_prng_key` of the config.
    pub key: u64,
    /// Rank.
    pub rank: usize,
    /// The way it is made.
    pub scheme: Scheme,
}

/// How numbers become a projection. huggingface/peft, `src/peft/tuners/{vera,pvera,randlora}/model.py`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scheme {
    /// Uniform after Kaiming, A: [r, in] and B: [out, r].
    Vera,
    /// The same with A: [2 r, in].
    Pvera,
    /// Uniform in bf16, divided by the standard deviation.
    RandLora,
    /// −1, 0 and 1, divided by the standard deviation; `s` is 3, or the root of the smaller side for "very sparse".
    RandLoraSparse {
        /// Whether s is the root of the smaller side.
        very: bool,
    },
}

impl Projection {
    /// Both matrices, or an error that says why they are not there.
    pub fn stored(&self) -> Result<(&Tensor, &Tensor)> {
        match self {
            Projection::Stored { a, b } => Ok((a, b)),
            Projection::Seeded(_) => Err(Error::missing(
                "the shared projection is not in the file (save_projection is false), and making it again takes the \
                 shapes of the base",
            )
            .hint("save the adapter again with save_projection set, or give the base model")),
        }
    }

    /// The matrices that are stored.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Projection::Stored { a, b } => vec![("shared a", a), ("shared b", b)],
            Projection::Seeded(_) => Vec::new(),
        }
    }
}

impl Seed {
    /// Makes the matrices for adapted modules with at most `outputs` and `inputs`.
    pub fn expand(&self, outputs: usize, inputs: usize) -> Result<Projection> {
        let torch = &mut TorchRng::new(self.key);
        let rank = self.rank;
        match self.scheme {
            Scheme::Vera | Scheme::Pvera => {
                let a_rows = if self.scheme == Scheme::Pvera { checked(&[2, rank])? } else { rank };
                // Kaiming: gain √2, so the bound is √3 · √2 / √fan_in.
                let bound = |fan_in: usize| 3f64.sqrt() * (2f64.sqrt() / (fan_in as f64).sqrt());
                let a = uniform(torch, checked(&[a_rows, inputs])?, -bound(inputs), bound(inputs));
                let b = uniform(torch, checked(&[outputs, rank])?, -bound(rank), bound(rank));
                Ok(Projection::Stored {
                    a: Tensor::from_f32(Dtype::F32, vec![a_rows, inputs], &a)?,
                    b: Tensor::from_f32(Dtype::F32, vec![outputs, rank], &b)?,
                })
            }
            Scheme::RandLora => self.randlora(torch, outputs, inputs),
            Scheme::RandLoraSparse { very } => self.randlora_sparse(torch, very, outputs, inputs),
        }
    }

    fn randlora(&self, torch: &mut TorchRng, outputs: usize, inputs: usize) -> Result<Projection> {
        let (large, small) = (outputs.max(inputs), outputs.min(inputs));
        let (rank, bases) = (self.rank, small.div_ceil(self.rank.max(1)));
        // kaiming_uniform_ with a = √5: gain √(1/3), bound √3 · gain / √fan_in; fan_in is the last axis of both.
        let bound = |fan_in: usize| 3f64.sqrt() * ((2f64 / 6.0).sqrt() / (fan_in as f64).sqrt());
        let a = uniform_bf16(torch, checked(&[rank, small])?, -bound(small), bound(small));
        let mut b = vec![0f32; checked(&[large, bases, rank])?];
        for base in 0..bases {
            let drawn = uniform_bf16(torch, checked(&[large, rank])?, -bound(rank), bound(rank));
            for (o, values) in drawn.chunks(rank.max(1)).enumerate() {
                let at = (o * bases + base) * rank;
                b[at..at + rank].copy_from_slice(values);
            }
        }
        self.stored_by_deviation(Dtype::BF16, a, b, (large, small, bases))
    }

    fn randlora_sparse(&self, torch: &mut TorchRng, very: bool, outputs: usize, inputs: usize) -> Result<Projection> {
        let (large, small) = (outputs.max(inputs), outputs.min(inputs));
        let (rank, bases) = (self.rank, small.div_ceil(self.rank.max(1)));
        let sparsity = if very { (small as f64).sqrt() } else { 3.0 };
        let tail = 1.0 / (2.0 * sparsity);
        let ternary = |values: Vec<f32>| -> Vec<f32> {
            // torch compares an f32 tensor with a number in f32.
            let (low, high) = (tail as f32, (1.0 - tail) as f32);
            values
                .into_iter()
                .map(|v| {
                    if v > high {
                        1.0
                    } else if v < low {
                        -1.0
                    } else {
                        0.0
                    }
                })
                .collect()
        };
        let a = ternary(uniform(torch, checked(&[rank, small])?, 0.0, 1.0));
        let b = ternary(uniform(torch, checked(&[large, bases, rank])?, 0.0, 1.0));
        self.stored_by_deviation(Dtype::F32, a, b, (large, small, bases))
    }

    fn stored_by_deviation(
        &self,
        dtype: Dtype,
        mut a: Vec<f32>,
        mut b: Vec<f32>,
        (large, small, bases): (usize, usize, usize),
    ) -> Result<Projection> {
        for values in [&mut a, &mut b] {
            let deviation = deviation(values);
            let deviation = if dtype == Dtype::BF16 { half::bf16::from_f32(deviation).to_f32() } else { deviation };
            values.iter_mut().for_each(|v| *v /= deviation);
        }
        Ok(Projection::Stored {
            a: Tensor::from_f32(dtype, vec![self.rank, 1, small], &a)?,
            b: Tensor::from_f32(dtype, vec![large, bases, self.rank], &b)?,
        })
    }
}

fn uniform(torch: &mut TorchRng, count: usize, low: f64, high: f64) -> Vec<f32> {
    (0..count).map(|_| torch.uniform_f32(low as f32, high as f32)).collect()
}

fn uniform_bf16(torch: &mut TorchRng, count: usize, low: f64, high: f64) -> Vec<f32> {
    (0..count).map(|_| torch.uniform_bf16(low as f32, high as f32)).collect()
}

/// Standard deviation with n − 1, as torch has it.
fn deviation(values: &[f32]) -> f32 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>();
    (squares / (n - 1.0)).sqrt() as f32
}

fn checked(extents: &[usize]) -> Result<usize> {
    extents
        .iter()
        .try_fold(1usize, |n, &e| n.checked_mul(e))
        .ok_or_else(|| Error::malformed(format!("a projection of {extents:?} overflows")))
}
