//! Block Krylov iteration on dᵀ·d, read once for each block.
//!
//! The basis K = [K₀, K₁, …] has orthonormal columns, and Y = d·K. A pass over d makes the newest part of Y, and
//! Z = dᵀ·Y of it in the same breath; what of Z is new becomes the next block: Z = K·(KᵀZ) + K₊·R. With T = YᵀY, in f64,
//! this is all there is to know of d so far: dᵀ·d·K = K·T + K₊·R·E, E taking the newest block. Two approximations
//! follow without another look at d:
//!
//! - *right*: d·K·Kᵀ, whose squared singular values are the eigenvalues θ of T;
//! - *left*: Q·Qᵀ·d with Q an orthonormal basis of Y. With T = W·θ·Wᵀ and Q = Y·W·θ^-½, the matrix Qᵀ·d has
//!   H = [W·θ^½; R·E·W·θ^-½] as its coefficients in [K, K₊], so HᵀH = θ + SᵀS with S = R·E·W·θ^-½.
//!
//! Each captures at least as much as the one before, and less than the optimum. The gains say how it will go on.
//!
//! Everything is stored transposed: a vector of K or Y is a row, so that blocks are appended at the end.
//!
//! Sources: Halko, Martinsson and Tropp 2011 (sketches and their errors); Musco and Musco 2015 (block Krylov);
//! Li, Linderman, Szlam, Stanton, Kluger and Tygert 2017 (accuracy in practice).

use ndarray::{Array2, ArrayView2, Axis, concatenate, s};

use super::finish::{Factors, Known, combined, finish, out_of_range};
use super::random::normals;
use super::{Depth, RowSource, Truncated, Wanted, orth, rows};
use crate::error::Result;
use crate::kernels::Kernels;

/// Gains below this share of ‖d‖² are rounding.
const NOISE: f64 = 1e-11;
/// Gains are taken to fall by at least this factor with a pass.
const SLOWEST: f64 = 0.99;
/// Directions of Y below this share of the largest θ are rounding of f32, and left out.
const LEAST: f64 = 1e-14;
/// R is a difference in f32. Below this share of the largest θ what it adds to the left approximation is not certain.
const TRUSTED: f64 = 1e-5;
/// From here on the little by which f32 vectors are not orthonormal counts beside what is not captured.
const NEARLY_ALL: f64 = 0.99;
/// Passes after which the result stands as it is.
const MOST_PASSES: usize = 40;
/// Random vectors that every later block of less than the rank gets. Of many equal singular values an iteration finds
/// no more directions than its first block has, and would take those for all.
const PROBES: usize = 4;
/// Vectors that a block grows to while the rank is sought.
const WIDEST: usize = 128;

/// None where the rank turned out too high for an iteration to be worth it.
pub fn svd<K: Kernels + ?Sized>(
    kernels: &K,
    d: &dyn RowSource,
    wanted: &Wanted,
    first: usize,
) -> Result<Option<Truncated>> {
    let (m, n) = d.dim();
    let mut space = Space::new(kernels, d, wanted.seed, width(first))?;
    let mut history = Vec::new();
    loop {
        let z = space.pass()?;
        if space.energy == 0.0 {
            return finish(kernels, d, space.nothing(), &space.known(0.0)).map(Some);
        }
        let (next, r) = space.next_block(z)?;
        let ritz = Ritz::new(kernels, &space, &r)?;
        history.push(Step { right: ritz.right.clone(), left: ritz.left.clone(), trusted: ritz.trusted });
        let s: Vec<f64> = ritz.left.iter().map(|v| v.sqrt()).collect();
        let cut = wanted.depth.cut(&s, space.energy, (m, n), wanted.ceiling);
        let excess = excess(&history, cut.rank, space.energy);
        let is_done = cut.settled && excess.is_some_and(|e| e <= wanted.tolerance);
        if is_done || space.passes >= MOST_PASSES {
            let factors = ritz.factors(kernels, &space, next.view(), cut.rank)?;
            return finish(kernels, d, factors, &space.known(excess.unwrap_or(f64::INFINITY))).map(Some);
        }
        // Where the rule wants more than was thought, wider blocks get there in fewer passes.
        let grows = !cut.settled && !matches!(wanted.depth, Depth::Rank(_));
        let probes = if cut.rank > width(first) { PROBES } else { 0 };
        let block = if grows { (2 * space.newest).min(WIDEST) } else { width(cut.rank).max(space.newest) + probes };
        if 2 * (space.len() + block) > m.min(n) {
            return Ok(None);
        }
        if cut.settled && space.len() + block > most_vectors(cut.rank, block) {
            space.restart(&ritz, cut.rank + block)?;
        }
        space.append(next, block)?;
    }
}

/// Vectors in a block for a rank.
fn width(rank: usize) -> usize {
    (rank / 2 + 8).next_multiple_of(8)
}

/// Vectors in the basis before the best of them are taken into a new one.
fn most_vectors(rank: usize, block: usize) -> usize {
    (4 * rank + 2 * block).max(128)
}

/// What one pass has captured.
struct Step {
    right: Vec<f64>,
    left: Vec<f64>,
    /// So many of `left` are more than `right`.
    trusted: usize,
}

impl Step {
    fn right(&self, i: usize) -> f64 {
        self.right.get(i).copied().unwrap_or(0.0)
    }

    fn left(&self, i: usize) -> f64 {
        self.left.get(i).copied().unwrap_or(0.0)
    }

    fn over(&self, i: usize) -> f64 {
        self.left(i) - self.right(i)
    }
}

/// By how much the error may still be above the optimum, as a share of it. None while there are too few steps to tell.
///
/// Every squared singular value is looked at by itself, since large ones converge first and would hide the others. Its
/// gains fall by about the same share q with each pass. What the left approximation has over the right one is found on
/// one space, so its ratio is the better measure of q: it is there after two passes, and zero where the space is
/// invariant. Still to come are q + q² + … times the gain of the last pass, and no less than twice what left has over
/// right (on noise it is four to six times that). The larger is doubled, since q grows on flat spectra.
fn excess(history: &[Step], rank: usize, energy: f64) -> Option<f64> {
    let [.., last, now] = history else { return None };
    let before = history.iter().rev().nth(2);
    let trusted = now.trusted.min(last.trusted);
    let mut tail = 0.0;
    for i in 0..rank {
        let (gain, ratio, over) = if i < trusted {
            let over = now.over(i);
            (now.left(i) - last.left(i), over / last.over(i), over)
        } else {
            let before = before?;
            let gain = now.right(i) - last.right(i);
            (gain, gain / (last.right(i) - before.right(i)), 0.0)
        };
        if gain > NOISE * energy {
            let ratio = if ratio >= 0.0 { ratio.min(SLOWEST) } else { SLOWEST };
            tail += 2.0 * (gain * ratio / (1.0 - ratio)).max(2.0 * over);
        }
    }
    // Where little is left its energy is not the difference of two large ones but at least that of the next values.
    let (kept, next) = now.left.split_at(rank.min(now.left.len()));
    let rest = (energy - kept.iter().sum::<f64>()).max(next.iter().sum());
    Some(match tail {
        0.0 => 0.0,
        tail if tail < rest => (rest / (rest - tail)).sqrt() - 1.0,
        _ => f64::INFINITY,
    })
}

/// The basis and what is known of d on it.
struct Space<'a, K: Kernels + ?Sized> {
    kernels: &'a K,
    d: &'a dyn RowSource,
    seed: u64,
    /// Kᵀ: [l, n].
    k: Array2<f32>,
    /// Yᵀ: [l, m].
    y: Array2<f32>,
    /// YᵀY: [l, l].
    t: Array2<f64>,
    /// Vectors of the newest block, the last rows of k and y.
    newest: usize,
    /// ‖d‖².
    energy: f64,
    /// Y is multiplied by this before Z is formed, so that dᵀ·d stays in the range of f32.
    unit: Option<f32>,
    passes: usize,
    /// Vectors that d was multiplied by so far.
    vectors: usize,
}

impl<'a, K: Kernels + ?Sized> Space<'a, K> {
    fn new(kernels: &'a K, d: &'a dyn RowSource, seed: u64, block: usize) -> Result<Self> {
        let (m, n) = d.dim();
        let nothing = |cols| Array2::zeros((0, cols));
        let (k, _) = orth::against(kernels, nothing(n).view(), normals(seed, 0, (block, n)))?;
        let (y, t) = (nothing(m), Array2::zeros((0, 0)));
        Ok(Space { kernels, d, seed, k, y, t, newest: block, energy: 0.0, unit: None, passes: 0, vectors: 0 })
    }

    fn len(&self) -> usize {
        self.k.nrows()
    }

    fn known(&self, excess: f64) -> Known {
        Known { energy: self.energy, passes: self.passes, excess, vectors: self.vectors }
    }

    fn nothing(&self) -> Factors {
        Factors { ut: self.y.slice(s![..0, ..]).to_owned(), s: Vec::new(), vt: self.k.slice(s![..0, ..]).to_owned() }
    }

    /// Reads d: y and t of the newest block, and Zᵀ in units of `unit`.
    fn pass(&mut self) -> Result<Array2<f32>> {
        let (kernels, is_first) = (self.kernels, self.passes == 0);
        let new = self.k.slice(s![self.len() - self.newest.., ..]);
        let mut z = Array2::zeros(new.dim());
        let mut y = Array2::zeros((self.newest, self.d.dim().0));
        rows::for_each(self.d, |range, block| {
            if is_first {
                let energy = rows::energy(range.start, block.view())?;
                self.energy += energy;
                self.unit = self.unit.or_else(|| unit_of(energy));
            }
            let mut y = y.slice_mut(s![.., range]);
            kernels.gemm(1.0, new, block.t(), 0.0, y.view_mut())?;
            match self.unit {
                Some(unit) => kernels.gemm(1.0, (&y * unit).view(), block.view(), 1.0, z.view_mut()),
                None => Ok(()), // nothing but zeros so far
            }
        })?;
        self.passes += 1;
        self.vectors += self.newest;
        if !z.iter().chain(&y).all(|v: &f32| v.is_finite()) {
            return Err(out_of_range());
        }
        self.y = concatenate(Axis(0), &[self.y.view(), y.view()]).map_err(shape)?;
        self.grow_t(y.view())?;
        Ok(z)
    }

    fn grow_t(&mut self, new: ArrayView2<f32>) -> Result<()> {
        let (l, old) = (self.y.nrows(), self.t.nrows());
        let mut part = Array2::zeros((l - old, l));
        self.kernels.add_inner(new, self.y.view(), part.view_mut())?;
        let mut t = Array2::zeros((l, l));
        t.slice_mut(s![..old, ..old]).assign(&self.t);
        t.slice_mut(s![.., old..]).assign(&part.t());
        t.slice_mut(s![old.., ..]).assign(&part);
        self.t = t;
        Ok(())
    }

    /// K₊ᵀ, and R of d itself.
    fn next_block(&self, z: Array2<f32>) -> Result<(Array2<f32>, Array2<f64>)> {
        let (next, r) = orth::against(self.kernels, self.k.view(), z)?;
        Ok((next, r / f64::from(self.unit.unwrap_or(1.0))))
    }

    /// Takes the next block in, with as many random vectors as it is narrower than `block`.
    fn append(&mut self, next: Array2<f32>, block: usize) -> Result<()> {
        self.newest = next.nrows();
        self.k = concatenate(Axis(0), &[self.k.view(), next.view()]).map_err(shape)?;
        if block > self.newest {
            let more = normals(self.seed, self.passes as u64, (block - self.newest, self.k.ncols()));
            let (more, _) = orth::against(self.kernels, self.k.view(), more)?;
            self.k = concatenate(Axis(0), &[self.k.view(), more.view()]).map_err(shape)?;
            self.newest = block;
        }
        Ok(())
    }

    /// The best vectors become the whole basis. What d makes of them beyond it still lies in the next block.
    fn restart(&mut self, ritz: &Ritz, keep: usize) -> Result<()> {
        let best = ritz.w.slice(s![..keep.min(ritz.w.nrows()), ..]).to_owned();
        self.k = combined(self.kernels, &best, self.k.view())?;
        self.y = combined(self.kernels, &best, self.y.view())?;
        self.t = Array2::zeros((0, 0));
        let y = self.y.clone();
        self.grow_t(y.view())
    }
}

fn shape(e: ndarray::ShapeError) -> crate::error::Error {
    crate::error::Error::mismatch(e.to_string())
}

/// A power of two near one over the norm.
fn unit_of(energy: f64) -> Option<f32> {
    (energy > 0.0).then(|| 2f32.powi((-energy.log2() / 2.0).round().clamp(-100.0, 100.0) as i32))
}

/// Both approximations on a space.
struct Ritz {
    /// θ, largest first.
    right: Vec<f64>,
    /// Eigenvalues of HᵀH, largest first.
    left: Vec<f64>,
    /// So many of the first are in S.
    trusted: usize,
    /// W, the rows its vectors: [p, l].
    w: Array2<f64>,
    /// Hᵀ·H: [p, p].
    g: Array2<f64>,
    /// S: [b, p].
    beyond: Array2<f64>,
}

impl Ritz {
    fn new<K: Kernels + ?Sized>(kernels: &K, space: &Space<K>, r: &Array2<f64>) -> Result<Ritz> {
        let root = root_of_inverse(kernels, space)?;
        let t = root.as_ref().map_or_else(|| space.t.clone(), |root| root.dot(&space.t).dot(root));
        let eigen = kernels.eigh(t.view(), space.len())?;
        let largest = eigen.values.first().copied().unwrap_or(0.0);
        let p = eigen.values.iter().take_while(|&&v| v > LEAST * largest).count();
        let right = eigen.values[..p].to_vec();
        let trusted = right.iter().take_while(|&&v| v > TRUSTED * largest).count();
        let w = eigen.vectors.slice(s![..p, ..]).to_owned();
        let w = root.map_or_else(|| w.clone(), |root| w.dot(&root));
        let mut beyond = r.dot(&w.slice(s![.., space.len() - space.newest..]).t());
        for (i, (mut column, theta)) in beyond.columns_mut().into_iter().zip(&right).enumerate() {
            let factor = if i < trusted { theta.sqrt().recip() } else { 0.0 };
            column.mapv_inplace(|v| v * factor);
        }
        let g = beyond.t().dot(&beyond) + Array2::from_diag(&right.iter().copied().collect::<ndarray::Array1<f64>>());
        let left = kernels.eigenvalues(g.view())?;
        Ok(Ritz { right, left, trusted, w, g, beyond })
    }

    /// The factors of the left approximation, cut at a rank.
    fn factors<K: Kernels + ?Sized>(
        &self,
        kernels: &K,
        space: &Space<K>,
        next: ArrayView2<f32>,
        rank: usize,
    ) -> Result<Factors> {
        let eigen = kernels.eigh(self.g.view(), rank)?;
        let s: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
        let (mut of_y, mut of_k) = (eigen.vectors.clone(), eigen.vectors.clone());
        for (i, theta) in self.right.iter().enumerate() {
            of_y.column_mut(i).mapv_inplace(|v| v / theta.sqrt());
            of_k.column_mut(i).mapv_inplace(|v| v * theta.sqrt());
        }
        let (mut of_k, mut of_next) = (of_k.dot(&self.w), eigen.vectors.dot(&self.beyond.t()));
        for (i, s) in s.iter().enumerate() {
            of_k.row_mut(i).mapv_inplace(|v| v / s);
            of_next.row_mut(i).mapv_inplace(|v| v / s);
        }
        let ut = combined(kernels, &of_y.dot(&self.w), space.y.view())?;
        let vt = combined(kernels, &of_k, space.k.view())? + combined(kernels, &of_next, next)?;
        Ok(Factors { ut, s, vt })
    }
}

/// (KᵀK)^-½ where nearly all of d is captured and it matters that this is not quite 1. With KᵀK = 1 + e it is
/// 1 − e/2 but for e², which is below the rounding of f64.
fn root_of_inverse<K: Kernels + ?Sized>(kernels: &K, space: &Space<K>) -> Result<Option<Array2<f64>>> {
    if space.t.diag().sum() < NEARLY_ALL * space.energy {
        return Ok(None);
    }
    let mut out = Array2::zeros(space.t.dim());
    kernels.add_inner(space.k.view(), space.k.view(), out.view_mut())?;
    out.mapv_inplace(|v| -0.5 * v);
    out.diag_mut().mapv_inplace(|v| v + 1.5);
    Ok(Some(out))
}
