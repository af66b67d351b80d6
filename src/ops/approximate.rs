//! From a decomposition to the factors of an adapter, and what is said of how good they are: the common part of
//! making an adapter (from two models) and making another of it (of another rank).
//!
//! Of every change D a part U·diag(σ)·Vᵀ of some rank is kept. The factors take σ apart between them and the adapter's
//! own scale out, are rounded once to their type, and what that rounding costs is part of the error that is reported.

use ndarray::{Array2, s};
use serde::Serialize;

use crate::adapter::Scale;
use crate::adapter::delta::Packing;
use crate::error::{Error, Kind, Result};
use crate::kernels::Truncated;
use crate::names::ModulePath;
use crate::tensor::{Dtype, Shape, Tensor, cast, dtype};

/// One change as its largest singular values, and how many of them are kept.
#[derive(Clone, Debug)]
pub struct Approximation {
    /// The module.
    pub path: ModulePath,
    /// The weight's shape in the orientation of the change: `[out, in]`, `[out, in, kernel …]`.
    pub shape: Shape,
    /// The decomposition; it may hold more than is kept.
    pub truncated: Truncated,
    /// The rank that is kept.
    pub rank: usize,
}

/// Which factor the singular values go into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// All into A; the columns of B are orthonormal but for the scale.
    A,
    /// All into B.
    B,
    /// Their roots into both.
    #[default]
    Even,
}

/// Factors A: [rank, n] and B: [m, rank] with `scale · B · A` = U·diag(σ)·Vᵀ cut to `rank`, rounded once to `dtype`.
/// Beyond the singular values that are there, they are filled up with zeros.
pub fn factors(t: &Truncated, rank: usize, balance: Balance, scale: Scale, dtype: Dtype) -> Result<(Tensor, Tensor)> {
    let weights = Weights::new(t, rank, balance, scale)?;
    let (m, n) = (t.u.nrows(), t.vt.ncols());
    let kept = weights.kept();
    let mut a = vec![0f64; checked(rank, n)?];
    for (k, row) in t.vt.rows().into_iter().take(kept).enumerate() {
        a[k * n..(k + 1) * n].iter_mut().zip(row).for_each(|(a, &v)| *a = weights.a[k] * f64::from(v));
    }
    let mut b = vec![0f64; checked(m, rank)?];
    for (row, u) in b.chunks_mut(rank.max(1)).zip(t.u.rows()) {
        row.iter_mut().zip(u).zip(&weights.b).for_each(|((b, &u), &w)| *b = w * f64::from(u));
    }
    Ok((rounded("A", dtype, [rank, n], &a)?, rounded("B", dtype, [m, rank], &b)?))
}

/// The decomposition of the transposed matrix.
pub fn transposed(t: &Truncated) -> Truncated {
    let turned = |m: &Array2<f32>| m.t().as_standard_layout().into_owned();
    Truncated { u: turned(&t.vt), vt: turned(&t.u), ..t.clone() }
}

/// Factors in the shapes they have beside a weight: for `[out, in, kernel …]` A: [rank, in, kernel …] and B: [out, rank,
/// 1 …]; for a matrix, or the transpose of an embedding, as they are.
pub fn shaped((a, b): (Tensor, Tensor), weight: &Shape) -> Result<(Tensor, Tensor)> {
    let (&[rank, _], &[out, _], [_, inner @ ..]) = (a.shape.dims(), b.shape.dims(), weight.dims()) else {
        return Err(Error::mismatch(format!("factors {} and {} for a weight {weight}", a.shape, b.shape)));
    };
    if inner.len() < 2 {
        return Ok((a, b));
    }
    let a_shape: Vec<usize> = std::iter::once(rank).chain(inner.iter().copied()).collect();
    let b_shape: Vec<usize> = [out, rank].into_iter().chain(std::iter::repeat_n(1, inner.len() - 1)).collect();
    Ok((a.reshaped(a_shape)?, b.reshaped(b_shape)?))
}

/// One pair of matrices for all experts; elements are moved, not changed.
pub fn packed(pairs: &[(Tensor, Tensor)], packing: Packing) -> Result<(Tensor, Tensor)> {
    let Some((first_a, first_b)) = pairs.first() else { return Err(Error::missing("no experts")) };
    let ((rank, inputs), (outputs, _), count) = (first_a.shape.matrix(), first_b.shape.matrix(), pairs.len());
    let mut a = Vec::with_capacity(first_a.bytes.len() * count);
    for (part, _) in pairs {
        a.extend_from_slice(part.bytes.as_slice());
    }
    let width = first_b.dtype.bitsize() / 8;
    let mut b = vec![0u8; first_b.bytes.len() * count];
    for (e, (_, part)) in pairs.iter().enumerate() {
        for (i, element) in part.bytes.as_slice().chunks(width.max(1)).enumerate() {
            let (row, k) = (i / rank.max(1), i % rank.max(1));
            let column = match packing {
                Packing::RankMajor => k * count + e,
                Packing::ByExpert => e * rank + k,
            };
            let at = (row * rank * count + column) * width;
            b[at..at + width].copy_from_slice(element);
        }
    }
    let a = Tensor::new(first_a.dtype, Shape::new([rank * count, inputs]), a.into())?;
    let b = Tensor::new(first_b.dtype, Shape::new([outputs, rank * count]), b.into())?;
    Ok((a, b))
}

/// What the roots of σ and the scale multiply the singular vectors by.
struct Weights {
    a: Vec<f64>,
    b: Vec<f64>,
}

impl Weights {
    fn new(t: &Truncated, rank: usize, balance: Balance, scale: Scale) -> Result<Weights> {
        let factor = scale.factor(rank);
        if rank > 0 && !(factor.is_finite() && factor != 0.0) {
            let what =
                format!("alpha {} at rank {rank} makes a scale of {factor}, which no factors make up for", scale.alpha);
            return Err(Error::unsupported(what));
        }
        let kept = t.s.iter().take(rank);
        let split = |&s: &f64| {
            let size = s / factor.abs();
            let (a, b) = match balance {
                Balance::A => (size, 1.0),
                Balance::B => (1.0, size),
                Balance::Even => (size.sqrt(), size.sqrt()),
            };
            (a, b * factor.signum())
        };
        let (a, b) = kept.map(split).unzip();
        Ok(Weights { a, b })
    }

    fn kept(&self) -> usize {
        self.a.len()
    }
}

fn checked(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols)
        .ok_or_else(|| Error::limit(format!("a factor of [{rows}, {cols}]"), format!("{} elements", usize::MAX)))
}

/// A tensor of values that all fit its type; nothing is clamped.
fn rounded(name: &str, dtype: Dtype, dims: [usize; 2], values: &[f64]) -> Result<Tensor> {
    let mut bytes = vec![0; dtype::byte_len(dtype, values.len())?];
    cast::narrow_f64(dtype, values, &mut bytes)
        .map_err(|e| e.hint("--dtype bf16, f16 or f32 chooses the type of the factors"))?;
    let tensor = Tensor::new(dtype, Shape::new(dims), bytes.into())?;
    if let Some((_, first)) = tensor.nonfinite()? {
        let value = values.get(first).copied().unwrap_or(f64::NAN);
        let what = if value.is_finite() {
            format!("a value of {value:.4e} in {name} does not fit {dtype}")
        } else {
            format!("{name} has NaN or infinity")
        };
        return Err(Error::new(Kind::Nonfinite, what).hint("--dtype f32 or bf16 has room for it"));
    }
    Ok(tensor)
}

/// ‖U·diag(σ)·Vᵀ − scale·B·A‖²_F for factors made of it: what rounding them to their type costs. 0 for f32 and f64,
/// where it is below 1e-7 of the size.
pub fn rounding(t: &Truncated, balance: Balance, scale: Scale, (a, b): (&Tensor, &Tensor)) -> Result<f64> {
    if matches!(a.dtype, Dtype::F32 | Dtype::F64) {
        return Ok(0.0);
    }
    let (a, b) = (a.to_matrix()?, b.to_matrix()?);
    let rank = a.nrows();
    let weights = Weights::new(t, rank, balance, scale)?;
    let kept = weights.kept();
    let (b, a) = (b.slice(s![.., ..kept]), a.slice(s![..kept, ..]));
    // X·Yᵀ with X = the rounded B and Y = Aᵀ, and how far they are from what was rounded: each difference is taken in
    // f64, since it is small beside the values.
    let gap_b =
        Array2::from_shape_fn(b.dim(), |(i, k)| (weights.b[k] * f64::from(t.u[[i, k]]) - f64::from(b[[i, k]])) as f32);
    let gap_a =
        Array2::from_shape_fn(a.dim(), |(k, j)| (weights.a[k] * f64::from(t.vt[[k, j]]) - f64::from(a[[k, j]])) as f32);
    let dot =
        |x: &Array2<f32>, y: &Array2<f32>| -> f64 { x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    // δX·(Y + δY)ᵀ + X·δYᵀ; the columns of Y + δY are orthogonal.
    let own: f64 = gap_b
        .columns()
        .into_iter()
        .zip(&weights.a)
        .map(|(gap, w)| w * w * gap.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>())
        .sum();
    let whole_a = &a + &gap_a;
    let mixed = dot(&gap_b.t().dot(&b), &whole_a.dot(&gap_a.t()));
    let other = dot(&b.t().dot(&b), &gap_a.dot(&gap_a.t()));
    let factor = scale.factor(rank);
    Ok((own + 2.0 * mixed + other).max(0.0) * factor * factor)
}

/// How well one module is approximated.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleReport {
    /// Module path.
    pub module: String,
    /// Rows and columns of the change; of one expert's, for a stack.
    pub shape: (usize, usize),
    /// Matrices that share the rank: 1, or the experts of a stack.
    pub matrices: usize,
    /// The rank before, where it had one.
    pub rank_before: Option<usize>,
    /// The rank.
    pub rank: usize,
    /// Elements of the factors.
    pub parameters: u64,
    /// ‖D‖²_F.
    pub energy: f64,
    /// The squared Frobenius norm of the error, rounding of the factors included.
    pub lost: f64,
    /// ‖error‖_F / ‖D‖_F.
    pub relative_error: f64,
    /// The share of the energy that the kept singular values have.
    pub energy_kept: f64,
    /// The largest singular value.
    pub sigma_max: f64,
    /// The smallest that is kept.
    pub sigma_min: f64,
    /// Stable rank ‖D‖²_F / σ₁²; for a stack that of all experts together.
    pub stable_rank: Option<f64>,
    /// By how much the error may exceed the least that is possible at this rank, as a share of it.
    pub excess: f64,
    /// How often a matrix was read to find its factors, at most.
    pub passes: usize,
    /// By how many vectors it was multiplied, at most; 0 where it was decomposed in full or from factors.
    pub vectors: usize,
}

impl ModuleReport {
    /// The report of a module: of each of its matrices the decomposition, with [`rounding`] of its factors.
    pub fn new(module: &ModulePath, rank: usize, parts: &[(&Truncated, f64)]) -> ModuleReport {
        let squares = |s: &[f64]| s.iter().map(|s| s * s).sum::<f64>();
        let shape = parts.first().map_or((0, 0), |(t, _)| (t.u.nrows(), t.vt.ncols()));
        let mut out = ModuleReport {
            module: module.to_string(),
            shape,
            matrices: parts.len(),
            rank_before: None,
            rank,
            parameters: (shape.0 as u64 + shape.1 as u64) * rank as u64 * parts.len() as u64,
            energy: 0.0,
            lost: 0.0,
            relative_error: 0.0,
            energy_kept: 1.0,
            sigma_max: 0.0,
            sigma_min: f64::INFINITY,
            stable_rank: None,
            excess: 0.0,
            passes: 0,
            vectors: 0,
        };
        let (mut cut_off, mut first) = (0.0, 0.0);
        for (t, rounding) in parts {
            let kept = rank.min(t.s.len());
            let cut = t.lost + squares(&t.s[kept..]);
            let largest = t.s.first().copied().unwrap_or(0.0);
            cut_off += cut;
            first += largest * largest;
            out.energy += t.energy;
            out.lost += cut + rounding;
            out.sigma_max = out.sigma_max.max(largest);
            out.sigma_min = out.sigma_min.min(kept.checked_sub(1).map_or(0.0, |last| t.s[last]));
            out.excess = out.excess.max(t.excess);
            out.passes = out.passes.max(t.passes);
            out.vectors = out.vectors.max(t.vectors);
        }
        out.sigma_min = if out.sigma_min.is_finite() { out.sigma_min } else { 0.0 };
        if out.energy > 0.0 {
            out.relative_error = (out.lost / out.energy).sqrt();
            out.energy_kept = (1.0 - cut_off / out.energy).clamp(0.0, 1.0);
            out.stable_rank = (first > 0.0).then(|| out.energy / first);
        }
        out
    }
}

/// How well all modules together are approximated.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overall {
    /// Number of modules.
    pub modules: usize,
    /// Elements of their factors.
    pub parameters: u64,
    /// The least and the largest rank.
    pub ranks: (usize, usize),
    /// ‖D‖²_F over all of them.
    pub energy: f64,
    /// ‖error‖_F / ‖D‖_F over all of them.
    pub relative_error: f64,
    /// The share of the energy that is kept.
    pub energy_kept: f64,
}

/// Sums over modules: each counts with its energy.
pub fn overall(reports: &[ModuleReport]) -> Overall {
    let sum = |of: &dyn Fn(&ModuleReport) -> f64| reports.iter().map(of).sum::<f64>();
    let energy = sum(&|r| r.energy);
    let share = |part: f64, none: f64| if energy > 0.0 { part / energy } else { none };
    Overall {
        modules: reports.len(),
        parameters: reports.iter().map(|r| r.parameters).sum(),
        ranks: (reports.iter().map(|r| r.rank).min().unwrap_or(0), reports.iter().map(|r| r.rank).max().unwrap_or(0)),
        energy,
        relative_error: share(sum(&|r| r.lost), 0.0).sqrt(),
        energy_kept: share(sum(&|r| r.energy_kept * r.energy), 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::ScaleRule;
    use crate::kernels::{Kernels, Reference};
    use crate::tensor::TorchRng;

    fn decomposed(m: usize, n: usize) -> (Array2<f32>, Truncated) {
        let mut rng = TorchRng::new(5);
        let d = Array2::from_shape_simple_fn((m, n), || rng.uniform_f32(-1.0, 1.0));
        let svd = Reference.svd(d.view()).unwrap();
        let energy = d.iter().map(|v| f64::from(*v).powi(2)).sum();
        let s = svd.s.iter().map(|&s| f64::from(s)).collect();
        (d, Truncated { u: svd.u, s, vt: svd.vt, energy, lost: 0.0, excess: 0.0, passes: 1, vectors: 0 })
    }

    fn product(a: &Tensor, b: &Tensor, factor: f64) -> Array2<f64> {
        let wide = |t: &Tensor| t.to_matrix().unwrap().mapv(f64::from);
        wide(b).dot(&wide(a)) * factor
    }

    fn distance(x: &Array2<f64>, y: &Array2<f64>) -> f64 {
        (x - y).mapv(|v| v * v).sum().sqrt()
    }

    const RULES: [ScaleRule; 3] = [ScaleRule::AlphaOverRank, ScaleRule::AlphaOverRootRank, ScaleRule::Direct];

    #[test]
    fn scale_and_factors_make_up_the_change_however_it_is_shared() {
        let (d, t) = decomposed(9, 6);
        let d = d.mapv(f64::from);
        for (balance, rule) in [Balance::A, Balance::B, Balance::Even].into_iter().zip(RULES) {
            for alpha in [16.0, -0.25] {
                let scale = Scale { alpha, rule };
                for rank in [6, 8] {
                    let (a, b) = factors(&t, rank, balance, scale, Dtype::F32).unwrap();
                    assert_eq!((a.shape.dims(), b.shape.dims()), (&[rank, 6][..], &[9, rank][..]));
                    assert!(distance(&product(&a, &b, scale.factor(rank)), &d) < 1e-5, "{balance:?} {rule:?}");
                }
            }
        }
        let unit = Scale::direct(1.0);
        let (a, _) = factors(&t, 1, Balance::B, unit, Dtype::F64).unwrap();
        let length: f64 = a.to_f32().unwrap().iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!((length - 1.0).abs() < 1e-6);
        let scale = Scale { alpha: 0.0, rule: ScaleRule::Direct };
        assert!(factors(&t, 2, Balance::Even, scale, Dtype::F32).is_err());
    }

    #[test]
    fn the_error_that_is_reported_is_the_error() {
        let (d, t) = decomposed(40, 30);
        let d = d.mapv(f64::from);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            for (balance, rule) in [Balance::A, Balance::B, Balance::Even].into_iter().zip(RULES) {
                for rank in [3, 20, 30] {
                    let scale = Scale { alpha: 3.0, rule };
                    let (a, b) = factors(&t, rank, balance, scale, dtype).unwrap();
                    let rounding = rounding(&t, balance, scale, (&a, &b)).unwrap();
                    let report = ModuleReport::new(&"m".into(), rank, &[(&t, rounding)]);
                    let found = distance(&product(&a, &b, scale.factor(rank)), &d) / t.energy.sqrt();
                    let gap = (report.relative_error - found).abs();
                    assert!(gap < 1e-3 * found + 1e-6, "{dtype} {rank}: {} against {found}", report.relative_error);
                }
            }
        }
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        let (_, mut t) = decomposed(4, 4);
        t.s[0] = 1e12;
        let scale = Scale::direct(1.0);
        let e = factors(&t, 4, Balance::Even, scale, Dtype::F16).unwrap_err();
        assert!(e.kind() == Kind::Nonfinite && e.to_string().contains("F16"), "{e}");
        assert!(factors(&t, 4, Balance::Even, scale, Dtype::BF16).is_ok());
        assert!(factors(&t, 4, Balance::Even, scale, Dtype::F8_E8M0).is_err());
    }

    #[test]
    fn convolutions_have_their_kernel_back() {
        let (_, t) = decomposed(5, 12);
        let pair = factors(&t, 2, Balance::Even, Scale::direct(1.0), Dtype::F32).unwrap();
        let (a, b) = shaped(pair.clone(), &Shape::new([5, 3, 2, 2])).unwrap();
        assert_eq!((a.shape.dims(), b.shape.dims()), (&[2, 3, 2, 2][..], &[5, 2, 1, 1][..]));
        assert_eq!(shaped(pair.clone(), &Shape::new([5, 12])).unwrap(), pair);
        assert!(shaped(pair, &Shape::new([5, 7, 2])).is_err());
    }

    #[test]
    fn modules_count_with_their_energy() {
        let (_, t) = decomposed(6, 6);
        let small = Truncated { energy: t.energy * 1e-6, s: t.s.iter().map(|s| s * 1e-3).collect(), ..t.clone() };
        let (all, none) =
            (ModuleReport::new(&"a".into(), 6, &[(&t, 0.0)]), ModuleReport::new(&"b".into(), 0, &[(&small, 0.0)]));
        assert!(all.relative_error < 1e-3 && (none.relative_error - 1.0).abs() < 1e-5);
        let both = overall(&[all, none]);
        assert!((both.relative_error - 1e-3).abs() < 1e-5, "{}", both.relative_error);
        assert_eq!((both.modules, both.ranks, both.parameters), (2, (0, 6), 72));
    }
}
