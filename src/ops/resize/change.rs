//! How a change is decomposed: from its factors wherever it has some, else from rows that are formed as they are asked
//! for. A whole change is never formed.
//!
//! A LoHa of ranks r₁ and r₂ is exactly a product of rank r₁·r₂ (the face-splitting product: Slyusar, Cybernetics and
//! Systems Analysis 35 (1999) 379); the singular vectors of a Kronecker product are the Kronecker products of those of
//! its factors.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

use crate::adapter::delta::kronecker::Factor;
use crate::adapter::delta::{Act, Action, Factors, Hadamard, Kronecker, LowRank, Site, Zeros};
use crate::adapter::{Delta, Reversal};
use crate::error::{Error, Result};
use crate::kernels::{Depth, Kernels, RowSource, Truncated, Wanted};
use crate::limits;
use crate::linalg::rank::Spectrum;
use crate::linalg::svd;
use crate::tensor::{Rows, Shape};

/// Largest rank that a LoHa is taken as a product of; for it and for factors that are made, the least part of the smaller
/// extent that is too large a rank: above these, rows cost less.
const MAX_FACES: usize = 64;
const MAX_FACES_SHARE: usize = 2;
/// Largest smaller extent of a factor of a LoKr that is decomposed whole.
const MAX_WHOLE: usize = 2048;

/// The change of one matrix, with all that is needed to decompose it.
pub enum Change<'a> {
    /// scale · b · a.
    Product(Factors),
    /// scale · w1 ⊗ w2.
    Kronecker(&'a Kronecker),
    /// Anything that can be made row by row.
    Rows(Formed<'a>),
}

/// A change as far as it has been decomposed.
pub enum Decomposed {
    /// Its largest singular values.
    Truncated(Truncated),
    /// Two factors of a Kronecker product, all of them.
    Kronecker(Box<Crossed>),
}

/// All singular values of a Kronecker product, in order, and where they come from.
pub struct Crossed {
    first: Truncated,
    second: Truncated,
    /// Numbers of the values in first and second.
    order: Vec<(u32, u32)>,
    s: Vec<f64>,
    energy: f64,
    sign: f64,
}

/// What is changed and by what, for the kinds that a rank can be given to. `dim`: rows and columns of the change.
pub fn changes<'a>(delta: &'a Delta, dim: (usize, usize), kernels: &'a dyn Kernels) -> Result<Vec<Change<'a>>> {
    match delta {
        Delta::Derived(d) => {
            let factors = d.factors(dim)?;
            let narrow = factors.rank() <= dim.0.min(dim.1) / MAX_FACES_SHARE;
            Ok(vec![if narrow { Change::Product(factors) } else { Change::Rows(Formed::new(delta, dim, kernels)?) }])
        }
        Delta::LowRank(d) => Ok(d.expert_factors()?.into_iter().map(Change::Product).collect()),
        Delta::Qalora(d) => Ok(vec![Change::Product(d.factors.factors()?)]),
        Delta::Tucker(d) => Ok(vec![Change::Product(d.factors()?)]),
        Delta::Hadamard(d) => Ok(vec![match faces(d)? {
            Some(factors) => Change::Product(factors),
            None => Change::Rows(Formed::new(delta, d.w1.shape()?, kernels)?),
        }]),
        Delta::Kronecker(d) => {
            let ((m1, n1), (m2, n2)) = (d.w1.shape()?, d.w2.shape()?);
            let (Some(rows), Some(cols)) = (m1.checked_mul(m2), n1.checked_mul(n2)) else {
                return Err(Error::mismatch(format!(
                    "factors of [{m1}, {n1}] and [{m2}, {n2}]: their product overflows"
                )));
            };
            let small = |m: usize, n: usize, f: &Factor| m.min(n) <= MAX_WHOLE || matches!(f, Factor::Product(_));
            let exact = !d.mixes_axes() && small(m1, n1, &d.w1) && small(m2, n2, &d.w2);
            Ok(vec![if exact {
                Change::Kronecker(d)
            } else {
                Change::Rows(Formed::new(delta, (rows, cols), kernels)?)
            }])
        }
        other => Err(Error::unsupported(format!("{} has no rank that could be changed", other.kind()))),
    }
}

/// The factors of a LoHa as one product; none where that would be about as large as the change.
fn faces(d: &Hadamard) -> Result<Option<Factors>> {
    let (m, n) = d.w1.shape()?;
    if d.w2.shape()? != (m, n) {
        return Err(Error::mismatch(format!("two products of [{m}, {n}] and {:?}", d.w2.shape()?)));
    }
    let (r1, r2) = (d.w1.rank(), d.w2.rank());
    let most = MAX_FACES.max(m.min(n) / MAX_FACES_SHARE);
    let Some(rank) = r1.checked_mul(r2).filter(|&rank| rank <= most) else { return Ok(None) };
    let ((b1, a1), (b2, a2)) = (d.w1.halves()?, d.w2.halves()?);
    let (mut b, mut a) = (Array2::zeros((m, rank)), Array2::zeros((rank, n)));
    for (k, (i, j)) in (0..r1).flat_map(|i| (0..r2).map(move |j| (i, j))).enumerate() {
        b.column_mut(k).assign(&(&b1.column(i) * &b2.column(j)));
        a.row_mut(k).assign(&(&a1.row(i) * &a2.row(j)));
    }
    Ok(Some(Factors { a, b, scale: d.scale.factor(r1) }))
}

impl Change<'_> {
    /// Rows and columns.
    #[cfg(test)]
    fn dim(&self) -> (usize, usize) {
        match self {
            Change::Product(f) => (f.b.nrows(), f.a.ncols()),
            Change::Kronecker(d) => {
                let shape = |f: &Factor| f.shape().unwrap_or((0, 0));
                let ((m1, n1), (m2, n2)) = (shape(&d.w1), shape(&d.w2));
                (m1 * m2, n1 * n2)
            }
            Change::Rows(formed) => formed.dim,
        }
    }

    /// Its decomposition: all of it from factors, as deep as `wanted` from rows; `exact`: cut from a full one.
    pub fn decompose(&self, kernels: &dyn Kernels, wanted: &Wanted, exact: bool) -> Result<Decomposed> {
        match self {
            Change::Product(f) => svd::of_product(kernels, f.b.view(), f.a.view(), f.scale).map(Decomposed::Truncated),
            Change::Kronecker(d) => Ok(Decomposed::Kronecker(Box::new(Crossed::of(kernels, d)?))),
            Change::Rows(formed) if exact => {
                svd::exact(kernels, formed, wanted.depth, wanted.ceiling).map(Decomposed::Truncated)
            }
            Change::Rows(formed) => svd::truncated(kernels, formed, wanted).map(Decomposed::Truncated),
        }
    }

    /// Whether only as many singular values are found as are asked for.
    #[cfg(test)]
    fn has_depth(&self) -> bool {
        matches!(self, Change::Rows(_))
    }
}

fn of_factor(kernels: &dyn Kernels, factor: &Factor) -> Result<Truncated> {
    let matrix = match factor {
        Factor::Product(p) => {
            let (b, a) = p.halves()?;
            return svd::of_product(kernels, b.view(), a.view(), 1.0);
        }
        Factor::Whole(t) => t.to_matrix()?,
    };
    let rank = matrix.nrows().min(matrix.ncols());
    svd::exact(kernels, &matrix, Depth::Rank(rank), rank)
}

impl Crossed {
    fn of(kernels: &dyn Kernels, d: &Kronecker) -> Result<Crossed> {
        let (first, second) = (of_factor(kernels, &d.w1)?, of_factor(kernels, &d.w2)?);
        let factor = d.scale.factor(d.rank());
        let pairs = |i: usize| (0..second.s.len()).map(move |j| (i, j));
        let mut all: Vec<(f64, (u32, u32))> = (0..first.s.len())
            .flat_map(pairs)
            .map(|(i, j)| (factor.abs() * first.s[i] * second.s[j], (i as u32, j as u32)))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let (s, order): (Vec<f64>, Vec<_>) = all.into_iter().unzip();
        let energy = s.iter().map(|s| s * s).sum();
        Ok(Crossed { first, second, order, s, energy, sign: factor.signum() })
    }

    /// With singular vectors for the first `rank` values.
    fn truncated(&self, rank: usize) -> Truncated {
        let kept = rank.min(self.s.len());
        let (m2, n2) = (self.second.u.nrows(), self.second.vt.ncols());
        let mut u = Array2::zeros((self.first.u.nrows() * m2, kept));
        let mut vt = Array2::zeros((kept, self.first.vt.ncols() * n2));
        let sign = self.sign as f32;
        for (k, &(i, j)) in self.order.iter().take(kept).enumerate() {
            let (i, j) = (i as usize, j as usize);
            let (u1, u2) = (self.first.u.column(i), self.second.u.column(j));
            u.column_mut(k).iter_mut().enumerate().for_each(|(row, u)| *u = sign * u1[row / m2] * u2[row % m2]);
            let (v1, v2) = (self.first.vt.row(i), self.second.vt.row(j));
            vt.row_mut(k).iter_mut().enumerate().for_each(|(col, v)| *v = v1[col / n2] * v2[col % n2]);
        }
        let lost = self.s[kept..].iter().map(|s| s * s).sum();
        Truncated { u, s: self.s[..kept].to_vec(), vt, energy: self.energy, lost, excess: 0.0, passes: 0, vectors: 0 }
    }
}

impl Decomposed {
    /// What the choice of a rank goes by.
    pub fn spectrum(&self) -> Spectrum {
        match self {
            Decomposed::Truncated(t) => Spectrum { dim: (t.u.nrows(), t.vt.ncols()), s: t.s.clone(), energy: t.energy },
            Decomposed::Kronecker(c) => {
                let rows = c.first.u.nrows() * c.second.u.nrows();
                let cols = c.first.vt.ncols() * c.second.vt.ncols();
                Spectrum { dim: (rows, cols), s: c.s.clone(), energy: c.energy }
            }
        }
    }

    /// The decomposition with singular vectors for the first `rank` values at least.
    pub fn truncated(self, rank: usize) -> Truncated {
        match self {
            Decomposed::Truncated(t) => t,
            Decomposed::Kronecker(c) => c.truncated(rank),
        }
    }
}

/// A change that is made row by row, on zeros.
pub struct Formed<'a> {
    act: Box<dyn Act>,
    dim: (usize, usize),
    kernels: &'a dyn Kernels,
}

impl<'a> Formed<'a> {
    fn new(delta: &Delta, dim: (usize, usize), kernels: &'a dyn Kernels) -> Result<Formed<'a>> {
        if dim.0.checked_mul(dim.1).is_none_or(|n| n > limits::FORMED) {
            let found = format!("a change of [{}, {}] that has to be made row by row", dim.0, dim.1);
            return Err(Error::limit(found, format!("{} elements", limits::FORMED)));
        }
        let shape = Shape::new([dim.0, dim.1]);
        let action = delta.prepare(&Site { shape: &shape, companion: None })?;
        if action.reversal() != Reversal::Sum || action.rows() != Rows::Any || matches!(action, Action::Experts(_)) {
            return Err(Error::unsupported(format!("{} is not a sum that can be made row by row", delta.kind())));
        }
        Ok(Formed { act: action.into_act()?, dim, kernels })
    }
}

impl RowSource for Formed<'_> {
    fn dim(&self) -> (usize, usize) {
        self.dim
    }

    fn read(&self, rows: Range<usize>, mut out: ArrayViewMut2<f32>) -> Result<()> {
        out.fill(0.0);
        self.act.act(self.kernels, rows, out, &Zeros(self.dim.0, self.dim.1))
    }
}

/// Whether a delta has a rank that can be chosen anew; some only where the size of their weight is known.
pub fn has_rank(delta: &Delta, sized: bool) -> bool {
    match delta {
        Delta::LowRank(_) | Delta::Qalora(_) | Delta::Hadamard(_) | Delta::Kronecker(_) | Delta::Tucker(_) => true,
        Delta::Derived(_) => sized,
        _ => false,
    }
}

/// The rank it has now, where it is a plain one.
pub fn rank_of(delta: &Delta) -> Option<usize> {
    match delta {
        Delta::LowRank(d) => Some(d.rank()),
        Delta::Qalora(d) => Some(d.factors.rank()),
        Delta::Tucker(d) => Some(d.rank()),
        _ => None,
    }
}

/// The factors that are replaced, where the delta stays what it is.
pub fn low_rank(delta: &Delta) -> Option<&LowRank> {
    match delta {
        Delta::LowRank(d) => Some(d),
        Delta::Qalora(d) => Some(&d.factors),
        _ => None,
    }
}

/// The shape of the weight that the delta is for, one expert's for a stack, as far as its tensors tell: the kernel of a
/// convolution whose factors are flattened is not seen.
pub fn weight_shape(delta: &Delta, (rows, cols): (usize, usize)) -> Shape {
    let kernel: &[usize] = match delta {
        Delta::LowRank(d) => d.a.shape.dims().get(2..).unwrap_or(&[]),
        Delta::Tucker(d) => d.core.shape.dims().get(2..).unwrap_or(&[]),
        Delta::Hadamard(d) => d.w1.core.as_ref().and_then(|c| c.shape.dims().get(2..)).unwrap_or(&[]),
        Delta::Kronecker(d) => match &d.w2 {
            Factor::Whole(t) => t.shape.dims().get(2..).unwrap_or(&[]),
            Factor::Product(p) => p.core.as_ref().and_then(|c| c.shape.dims().get(2..)).unwrap_or(&[]),
        },
        _ => &[],
    };
    let inner: usize = kernel.iter().product();
    if kernel.is_empty() || inner == 0 || !cols.is_multiple_of(inner) {
        return Shape::new([rows, cols]);
    }
    let dims: Vec<usize> = [rows, cols / inner].into_iter().chain(kernel.iter().copied()).collect();
    Shape::new(dims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::delta::Product;
    use crate::adapter::delta::kronecker::Padding;
    use crate::adapter::{Scale, ScaleRule};
    use crate::kernels::{OpenBlas, Reference};
    use crate::tensor::{Dtype, Tensor, TorchRng};

    fn tensor(dims: &[usize], seed: u64) -> Tensor {
        let mut rng = TorchRng::new(seed);
        let values: Vec<f32> = (0..dims.iter().product()).map(|_| rng.uniform_f32(-1.0, 1.0)).collect();
        Tensor::from_f32(Dtype::F32, dims, &values).unwrap()
    }

    /// The change itself, formed by the act that merges it.
    fn formed(delta: &Delta, shape: &Shape) -> Array2<f64> {
        let (rows, cols) = shape.matrix();
        let mut w = Array2::zeros((rows, cols));
        let act = delta.prepare(&Site { shape, companion: None }).unwrap().into_act().unwrap();
        act.act(&Reference, 0..rows, w.view_mut(), &Zeros(rows, cols)).unwrap();
        w.mapv(f64::from)
    }

    /// All of it put together again, and its best approximation of rank 3 against that of a full decomposition.
    fn agrees(delta: &Delta, shape: &Shape, from_rows: bool) {
        let expected = formed(delta, shape);
        let (rows, cols) = shape.matrix();
        let kernels = OpenBlas::new();
        let all = changes(delta, shape.matrix(), &kernels).unwrap();
        assert_eq!((all.len(), all[0].dim(), all[0].has_depth()), (1, (rows, cols), from_rows));
        let wanted = Wanted { depth: Depth::Rank(rows.min(cols)), ceiling: rows.min(cols), tolerance: 0.01, seed: 0 };
        let norm = expected.mapv(|v| v * v).sum();
        for rank in [rows.min(cols), 3] {
            let d = all[0].decompose(&kernels, &wanted, false).unwrap();
            assert!((d.spectrum().energy - norm).abs() < 1e-5 * norm);
            let t = d.truncated(rank);
            let kept = rank.min(t.s.len());
            let u = t.u.slice(ndarray::s![.., ..kept]).mapv(f64::from) * ndarray::aview1(&t.s[..kept]);
            let again = u.dot(&t.vt.slice(ndarray::s![..kept, ..]).mapv(f64::from));
            let error = (&again - &expected).mapv(|v| v * v).sum();
            let best: f64 = Reference
                .svd(expected.mapv(|v| v as f32).view())
                .unwrap()
                .s
                .iter()
                .skip(rank)
                .map(|s| f64::from(*s).powi(2))
                .sum();
            assert!((error - best).abs() < 1e-5 * norm, "{rank}: {error} against {best} of {norm}");
        }
        assert_eq!(weight_shape(delta, (rows, cols)), *shape);
    }

    #[test]
    fn every_kind_is_decomposed_as_what_it_adds() {
        let scale = Scale { alpha: -3.0, rule: ScaleRule::AlphaOverRank };
        let pair = |m: usize, n: usize, r: usize, seed| Product {
            a: tensor(&[m, r], seed),
            b: tensor(&[r, n], seed + 1),
            core: None,
        };
        let low =
            LowRank { a: tensor(&[4, 6, 3, 3], 1), b: tensor(&[8, 4, 1, 1], 2), scale, experts: None, name: "LoRA" };
        agrees(&Delta::LowRank(low), &Shape::new([8, 6, 3, 3]), false);
        let loha = Hadamard { w1: pair(12, 10, 2, 1), w2: pair(12, 10, 3, 3), scale };
        agrees(&Delta::Hadamard(loha), &Shape::new([12, 10]), false);
        let core = |seed| Product {
            a: tensor(&[2, 12], seed),
            b: tensor(&[2, 5], seed + 1),
            core: Some(tensor(&[2, 2, 3], seed + 2)),
        };
        agrees(&Delta::Hadamard(Hadamard { w1: core(1), w2: core(4), scale }), &Shape::new([12, 5, 3]), false);
        let wide = Hadamard { w1: pair(80, 70, 8, 1), w2: pair(80, 70, 9, 3), scale };
        agrees(&Delta::Hadamard(wide), &Shape::new([80, 70]), true);

        let whole = |dims: &[usize], seed| Factor::Whole(tensor(dims, seed));
        let kron = |w1, w2, padding| Delta::Kronecker(Kronecker { w1, w2, scale, padding });
        agrees(&kron(whole(&[2, 4], 1), whole(&[5, 3], 2), Padding::Front), &Shape::new([10, 12]), false);
        agrees(
            &kron(whole(&[2, 4], 1), Factor::Product(pair(6, 7, 2, 5)), Padding::Front),
            &Shape::new([12, 28]),
            false,
        );
        agrees(&kron(whole(&[2, 3], 1), whole(&[4, 2, 3, 3], 2), Padding::Front), &Shape::new([8, 6, 3, 3]), false);
        agrees(&kron(whole(&[2, 3], 1), whole(&[4, 2, 3], 2), Padding::Front), &Shape::new([8, 6, 3]), true);
    }

    #[test]
    fn kinds_without_a_rank_are_named() {
        let delta = Delta::Circulant(crate::adapter::delta::Circulant { kernel: tensor(&[1, 1, 4], 1) });
        assert!(!has_rank(&delta, true));
        let e = changes(&delta, (4, 4), &Reference).err().unwrap();
        assert!(e.to_string().contains("C3A"), "{e}");
    }
}
