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
//! The vectors of K and Y are where the field has them (`field`), and are stored as rows.
//!
//! Sources: Halko, Martinsson and Tropp 2011 (sketches and their errors); Musco and Musco 2015 (block Krylov);
//! Li, Linderman, Szlam, Stanton, Kluger and Tygert 2017 (accuracy in practice).

use ndarray::{Array2, s};

use super::field::Field;
use super::finish::{Factors, Known, finish};
use super::{Depth, Truncated, Wanted, orth};
use crate::error::Result;

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
pub fn svd<F: Field>(field: &mut F, wanted: &Wanted, first: usize) -> Result<Option<Truncated>> {
    let (m, n) = field.dim();
    let mut space = Space::new(field, wanted.seed, width(first))?;
    let mut history = Vec::new();
    loop {
        let z = space.pass()?;
        if space.energy() == 0.0 {
            let (nothing, known) = (space.without_factors()?, space.known(0.0));
            return finish(space.field, nothing, &known).map(Some);
        }
        let (next, r) = space.next_block(z)?;
        let ritz = Ritz::new(&space, &r)?;
        history.push(Step { right: ritz.right.clone(), left: ritz.left.clone(), trusted: ritz.trusted });
        let s: Vec<f64> = ritz.left.iter().map(|v| v.sqrt()).collect();
        let cut = wanted.depth.cut(&s, space.energy(), (m, n), wanted.ceiling);
        let excess = excess(&history, cut.rank, space.energy());
        let is_done = cut.settled && excess.is_some_and(|e| e <= wanted.tolerance);
        if is_done || space.passes >= MOST_PASSES {
            let factors = ritz.factors(&space, &next, cut.rank)?;
            let known = space.known(excess.unwrap_or(f64::INFINITY));
            return finish(space.field, factors, &known).map(Some);
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
struct Space<'a, F: Field> {
    field: &'a mut F,
    seed: u64,
    /// Kᵀ: l vectors of length n.
    k: F::Stack,
    /// Yᵀ: l vectors of length m.
    y: F::Stack,
    /// YᵀY: [l, l].
    t: Array2<f64>,
    /// Vectors of the newest block, the last of k and y.
    newest: usize,
    passes: usize,
    /// Vectors that d was multiplied by so far.
    vectors: usize,
}

impl<'a, F: Field> Space<'a, F> {
    fn new(field: &'a mut F, seed: u64, block: usize) -> Result<Self> {
        let (m, n) = field.dim();
        let start = field.normals(seed, 0, (block, n))?;
        let (k, _) = orth::against(field, &field.nothing(n)?, start)?;
        let (y, t) = (field.nothing(m)?, Array2::zeros((0, 0)));
        Ok(Space { field, seed, k, y, t, newest: block, passes: 0, vectors: 0 })
    }

    fn len(&self) -> usize {
        self.field.count(&self.k)
    }

    /// ‖d‖².
    fn energy(&self) -> f64 {
        self.field.scale().0
    }

    fn known(&self, excess: f64) -> Known {
        Known { energy: self.energy(), passes: self.passes, excess, vectors: self.vectors }
    }

    fn without_factors(&self) -> Result<Factors<F::Stack>> {
        let (m, n) = self.field.dim();
        Ok(Factors { ut: self.field.nothing(m)?, s: Vec::new(), vt: self.field.nothing(n)? })
    }

    /// Reads d: y and t of the newest block, and Zᵀ in the units of the field.
    fn pass(&mut self) -> Result<F::Stack> {
        let new = self.field.part(&self.k, self.len() - self.newest, self.newest)?;
        let (y, z) = self.field.pass(&new)?;
        self.passes += 1;
        self.vectors += self.newest;
        self.y = self.field.joined(&self.y, &y)?;
        self.grow_t(&y)?;
        Ok(z)
    }

    fn grow_t(&mut self, new: &F::Stack) -> Result<()> {
        let (l, old) = (self.field.count(&self.y), self.t.nrows());
        let part = self.field.inner(new, &self.y)?;
        let mut t = Array2::zeros((l, l));
        t.slice_mut(s![..old, ..old]).assign(&self.t);
        t.slice_mut(s![.., old..]).assign(&part.t());
        t.slice_mut(s![old.., ..]).assign(&part);
        self.t = t;
        Ok(())
    }

    /// K₊ᵀ, and R of d itself.
    fn next_block(&self, z: F::Stack) -> Result<(F::Stack, Array2<f64>)> {
        let (next, r) = orth::against(self.field, &self.k, z)?;
        Ok((next, r / f64::from(self.field.scale().1.unwrap_or(1.0))))
    }

    /// Takes the next block in, with as many random vectors as it is narrower than `block`.
    fn append(&mut self, next: F::Stack, block: usize) -> Result<()> {
        self.newest = self.field.count(&next);
        self.k = self.field.joined(&self.k, &next)?;
        if block > self.newest {
            let dim = (block - self.newest, self.field.dim().1);
            let more = self.field.normals(self.seed, self.passes as u64, dim)?;
            let (more, _) = orth::against(self.field, &self.k, more)?;
            self.k = self.field.joined(&self.k, &more)?;
            self.newest = block;
        }
        Ok(())
    }

    /// The best vectors become the whole basis. What d makes of them beyond it still lies in the next block.
    fn restart(&mut self, ritz: &Ritz, keep: usize) -> Result<()> {
        let best = ritz.w.slice(s![..keep.min(ritz.w.nrows()), ..]).to_owned();
        self.k = self.field.combined(&best, &self.k)?;
        self.y = self.field.combined(&best, &self.y)?;
        self.t = self.field.inner(&self.y, &self.y)?;
        Ok(())
    }
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
    fn new<F: Field>(space: &Space<F>, r: &Array2<f64>) -> Result<Ritz> {
        let root = root_of_inverse(space)?;
        let t = root.as_ref().map_or_else(|| space.t.clone(), |root| root.dot(&space.t).dot(root));
        let eigen = space.field.eigh(t.view(), space.len())?;
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
        let left = space.field.eigenvalues(g.view())?;
        Ok(Ritz { right, left, trusted, w, g, beyond })
    }

    /// The factors of the left approximation, cut at a rank.
    fn factors<F: Field>(&self, space: &Space<F>, next: &F::Stack, rank: usize) -> Result<Factors<F::Stack>> {
        let eigen = space.field.eigh(self.g.view(), rank)?;
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
        let ut = space.field.combined(&of_y.dot(&self.w), &space.y)?;
        let vt = space.field.combined(&of_k, &space.k)?;
        let vt = space.field.sum(vt, &space.field.combined(&of_next, next)?)?;
        Ok(Factors { ut, s, vt })
    }
}

/// (KᵀK)^-½ where nearly all of d is captured and it matters that this is not quite 1. With KᵀK = 1 + e it is
/// 1 − e/2 but for e², which is below the rounding of f64.
fn root_of_inverse<F: Field>(space: &Space<F>) -> Result<Option<Array2<f64>>> {
    if space.t.diag().sum() < NEARLY_ALL * space.energy() {
        return Ok(None);
    }
    let mut out = space.field.inner(&space.k, &space.k)?;
    out.mapv_inplace(|v| -0.5 * v);
    out.diag_mut().mapv_inplace(|v| v + 1.5);
    Ok(Some(out))
}
