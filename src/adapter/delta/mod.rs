//! One file per delta kind: what it stores, its invariants, and how it acts on a weight.
//!
//! A kind is data ([`Delta`]) until it meets a weight. [`Delta::prepare`] then checks that the two fit and turns it
//! into an [`Action`]: either a low-rank term, which the fused merge step adds straight to stored elements, or an
//! [`Act`] that changes rows of the weight in f32. Every formula is stated in the orientation `W: [out, in]`.

mod check;
pub mod circulant;
pub mod deft;
pub mod derived;
pub mod dora;
mod extent;
pub mod fourier;
pub mod full;
pub mod glora;
pub mod glora_inputs;
pub mod hadamard;
pub mod hira;
pub mod inverse;
pub mod kasa;
pub mod kronecker;
pub mod low_rank;
pub mod miss;
pub mod opaque;
pub mod orthogonal;
pub mod osf;
pub mod peanut;
pub mod product;
pub mod qalora;
pub mod rescale;
pub mod residual;
pub mod road;
pub mod scattered;
pub mod sparse;
pub mod spectrum;
mod survey;
#[cfg(test)]
mod tests;
pub mod token_rows;
mod truncate;
pub mod tucker;
pub mod wavelet;

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2};

pub use circulant::Circulant;
pub use deft::Deft;
pub use derived::Derived;
pub use fourier::Fourier;
pub use full::Full;
pub use glora::Glora;
pub use glora_inputs::InputGlora;
pub use hadamard::Hadamard;
pub use hira::Hira;
pub use inverse::Inverse;
pub use kasa::Kasa;
pub use kronecker::Kronecker;
pub use low_rank::{Experts, Factors, LowRank, Packing};
pub use miss::Miss;
pub use opaque::Opaque;
pub use orthogonal::Orthogonal;
pub use osf::Osf;
pub use peanut::Peanut;
pub use product::Product;
pub use qalora::Qalora;
pub use rescale::Rescale;
pub use residual::Residual;
pub use road::Road;
pub use scattered::Scattered;
pub use sparse::Sparse;
pub use spectrum::Spectrum;
pub use token_rows::TokenRows;
pub use tucker::Tucker;

use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::tensor::{Rows, Shape, Tensor};

/// The change to one weight. The enum is closed: a new kind makes the compiler list every question it must answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta {
    /// Low-rank factors made from tensors that all targets share: VeRA, PVeRA, RandLoRA.
    Derived(Derived),
    /// LoHa: an elementwise product of two low-rank matrices.
    Hadamard(Hadamard),
    /// LoKr: a Kronecker product.
    Kronecker(Kronecker),
    /// LoRA and everything that is exactly a product of two factors.
    LowRank(LowRank),
    /// OFT, BOFT, HRA: the inputs turned by an orthogonal matrix.
    Orthogonal(Orthogonal),
    /// A whole tensor, in place of the old one or added to it.
    Full(Full),
    /// Some rows of an embedding, replaced.
    TokenRows(TokenRows),
    /// IA³: rows or columns multiplied.
    Rescale(Rescale),
    /// C3A: circulant blocks.
    Circulant(Circulant),
    /// DEFT: a projection taken out and replaced.
    Deft(Deft),
    /// FourierFT: a sparse spectrum.
    Fourier(Fourier),
    /// GLoRA: scale and shift of weight and bias.
    Glora(Glora),
    /// GLoRA of LyCORIS: a matrix on the inputs.
    InputGlora(InputGlora),
    /// HiRA: the weight times a low-rank term.
    Hira(Hira),
    /// KaSA: LoRA on a truncated weight.
    Kasa(Kasa),
    /// MiSS and Bone: a repeated block.
    Miss(Miss),
    /// OSF: the small singular components replaced.
    Osf(Osf),
    /// PEANuT: a network fed with the weight.
    Peanut(Peanut),
    /// QA-LoRA: LoRA on pooled inputs.
    Qalora(Qalora),
    /// PiSSA, OLoRA: what the factors started from, taken out.
    Residual(Residual),
    /// RoAd: pairs of outputs rotated.
    Road(Road),
    /// UniLoRA that has to be placed first.
    Scattered(Scattered),
    /// SHiRA, Super-Tuning, WaveFT: some elements.
    Sparse(Sparse),
    /// LoRA of a convolution with its kernel in a core.
    Tucker(Tucker),
    /// A kind that is understood as far as its name; it can be inspected and carried, not computed.
    Opaque(Opaque),
}

/// The weight a delta meets, in the delta's own orientation.
#[derive(Clone, Copy, Debug)]
pub struct Site<'a> {
    /// `[out, in]`, `[out, in, kernel …]`, or `[n]` for a bias.
    pub shape: &'a Shape,
    /// For a bias: the weight of the same module, where a kind needs it.
    pub companion: Option<&'a Tensor>,
}

impl Site<'_> {
    /// Rows and columns of the weight as a matrix.
    pub fn matrix(&self) -> (usize, usize) {
        self.shape.matrix()
    }

    /// An error unless the delta's matrix is that of the weight.
    pub fn expect(&self, rows: usize, cols: usize) -> Result<()> {
        if self.matrix() == (rows, cols) {
            return Ok(());
        }
        Err(Error::mismatch(format!("delta of [{rows}, {cols}] does not fit the base weight {}", self.shape))
            .hint("is this the base model the adapter was trained on?"))
    }
}

/// The weight as it is before an action, for kinds that need more of it than the rows at hand.
pub trait Before: Sync {
    /// Rows and columns.
    fn matrix(&self) -> (usize, usize);
    /// Some rows, in f32.
    fn rows(&self, kernels: &dyn Kernels, rows: Range<usize>) -> Result<Array2<f32>>;
}

/// How an act can be taken back from its result and the adapter alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reversal {
    /// It adds the same values whatever the weight is: what it makes of zeros.
    Sum,
    /// It adds the same values whatever the weight is ([`Act::addend`]), then multiplies each row by a number that may
    /// depend on the weight.
    Rows,
    /// The same with a number for each column.
    Cols,
    /// It changes rows by a fixed calculation on the rows at hand, without memory, and not by much: its inverse can be
    /// approached step by step.
    Steps,
    /// It needs the weight as it was.
    Nothing,
}

impl Reversal {
    /// That of two acts, one after the other.
    #[must_use]
    pub fn and(self, other: Reversal) -> Reversal {
        match (self, other) {
            (Reversal::Nothing | Reversal::Cols, _) | (_, Reversal::Nothing | Reversal::Cols) => Reversal::Nothing,
            (Reversal::Sum, Reversal::Sum) => Reversal::Sum,
            _ => Reversal::Steps,
        }
    }
}

/// A change of rows of a weight that is more than adding a product.
///
/// Acts are calculated in the same order of operations on every machine, unless [`Act::reversal`] is
/// [`Reversal::Nothing`].
pub trait Act: Send + Sync {
    /// How it can be taken back.
    fn reversal(&self) -> Reversal {
        Reversal::Nothing
    }

    /// How the weight is found from the result without a record.
    fn inverse(&self) -> Inverse {
        match self.reversal() {
            Reversal::Sum => Inverse::Pointwise,
            _ => Inverse::Never("what it does depends on the weight as it was"),
        }
    }

    /// Makes the weight again of the result, in place, where [`Act::inverse`] is [`Inverse::Own`]. Gives the number
    /// that errors of the result's elements are multiplied by at most.
    fn undo(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>) -> Result<f64> {
        let _ = (kernels, rows, w);
        Err(Error::unsupported("a change that does not undo itself"))
    }

    /// Adds what the act adds whatever the weight is to `rows`; for those that can be taken back as a sum, or a sum and
    /// a factor.
    fn addend(&self, kernels: &dyn Kernels, rows: Range<usize>, sum: ArrayViewMut2<f32>) -> Result<()> {
        let (height, width) = (rows.end, sum.ncols());
        self.act(kernels, rows, sum, &Zeros(height, width))
    }

    /// The factors, where it adds a product and does nothing else.
    fn product(&self) -> Option<&Factors> {
        None
    }

    /// Which rows can be changed without the others.
    fn rows(&self) -> Rows {
        Rows::Any
    }

    /// Bytes of workspace for `rows` rows of `cols` columns, beside the rows themselves.
    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        4 * (rows * cols) as u64
    }

    /// Changes `w`, which holds the rows `rows` of the weight, in place.
    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>, before: &dyn Before) -> Result<()>;
}

/// A delta made ready for one weight.
pub enum Action {
    /// `W += scale · b · a`.
    LowRank(Factors),
    /// The same for a stack of matrices: one pair of factors an expert.
    Experts(Vec<Factors>),
    /// Anything else.
    Act(Box<dyn Act>),
}

impl Action {
    /// The same action on the transposed weight.
    #[must_use]
    pub fn transposed(self) -> Action {
        match self {
            Action::LowRank(f) => Action::LowRank(f.transposed()),
            Action::Experts(all) => Action::Experts(all.iter().map(Factors::transposed).collect()),
            Action::Act(inner) => Action::Act(Box::new(Transposed(inner))),
        }
    }

    /// Which rows can be changed without the others.
    pub fn rows(&self) -> Rows {
        match self {
            Action::LowRank(_) | Action::Experts(_) => Rows::Any,
            Action::Act(act) => act.rows(),
        }
    }

    /// How it can be taken back.
    pub fn reversal(&self) -> Reversal {
        match self {
            Action::LowRank(_) | Action::Experts(_) => Reversal::Sum,
            Action::Act(act) => act.reversal(),
        }
    }

    /// How the weight is found from the result without a record.
    pub fn inverse(&self) -> Inverse {
        match self {
            Action::LowRank(_) | Action::Experts(_) => Inverse::Product,
            Action::Act(act) => act.inverse(),
        }
    }

    /// The action in its general form. A stack of experts has none: it is more than one matrix.
    pub fn into_act(self) -> Result<Box<dyn Act>> {
        match self {
            Action::LowRank(factors) => Ok(Box::new(factors)),
            Action::Act(act) => Ok(act),
            Action::Experts(_) => {
                Err(Error::unsupported("an update of a stack of experts beside another change of the same tensor"))
            }
        }
    }
}

impl Act for Factors {
    fn product(&self) -> Option<&Factors> {
        Some(self)
    }

    fn reversal(&self) -> Reversal {
        Reversal::Sum
    }

    fn act(&self, kernels: &dyn Kernels, rows: Range<usize>, w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        self.add_to(kernels, rows, w)
    }
}

impl Delta {
    /// The name people use for the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Delta::Derived(d) => d.kind(),
            Delta::Hadamard(_) => "LoHa",
            Delta::Kronecker(_) => "LoKr",
            Delta::LowRank(d) => d.kind(),
            Delta::Orthogonal(d) => d.kind(),
            Delta::Full(d) => d.kind(),
            Delta::TokenRows(_) => "token rows",
            Delta::Rescale(_) => "IA3",
            Delta::Circulant(_) => "C3A",
            Delta::Deft(_) => "DEFT",
            Delta::Fourier(_) => "FourierFT",
            Delta::Glora(_) => "GLoRA",
            Delta::InputGlora(_) => "GLoRA of inputs",
            Delta::Hira(_) => "HiRA",
            Delta::Kasa(_) => "KaSA",
            Delta::Miss(d) => d.kind(),
            Delta::Osf(_) => "OSF",
            Delta::Peanut(_) => "PEANuT",
            Delta::Qalora(_) => "QA-LoRA",
            Delta::Residual(d) => d.kind(),
            Delta::Road(_) => "RoAd",
            Delta::Scattered(_) => "UniLoRA",
            Delta::Sparse(d) => d.kind(),
            Delta::Tucker(_) => "LoRA with a core",
            Delta::Opaque(d) => d.kind,
        }
    }

    /// Its tensors with the words for their roles.
    pub fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Delta::Derived(d) => d.tensors(),
            Delta::Hadamard(d) => d.tensors(),
            Delta::Kronecker(d) => d.tensors(),
            Delta::LowRank(d) => d.tensors(),
            Delta::Orthogonal(d) => d.tensors(),
            Delta::Full(d) => vec![("weight", &d.tensor)],
            Delta::TokenRows(d) => vec![("rows", &d.rows)],
            Delta::Rescale(d) => vec![("l", &d.factors)],
            Delta::Circulant(d) => vec![("kernel", &d.kernel)],
            Delta::Deft(d) => [Some(("p", &d.p)), d.r.as_ref().map(|r| ("r", r))].into_iter().flatten().collect(),
            Delta::Fourier(d) => vec![("spectrum", &d.spectrum)],
            Delta::Glora(d) => d.tensors(),
            Delta::InputGlora(d) => d.tensors(),
            Delta::Hira(d) => vec![("a", &d.a), ("b", &d.b)],
            Delta::Kasa(d) => d.tensors(),
            Delta::Miss(d) => vec![("block", &d.block)],
            Delta::Osf(d) => vec![("u", &d.u), ("s", &d.s), ("v", &d.v)],
            Delta::Peanut(d) => d.tensors(),
            Delta::Qalora(d) => d.factors.tensors(),
            Delta::Residual(_) => Vec::new(),
            Delta::Road(d) => vec![("theta", &d.theta), ("alpha", &d.alpha)],
            Delta::Scattered(d) => vec![("theta", &d.theta)],
            Delta::Sparse(d) => d.tensors(),
            Delta::Tucker(d) => d.tensors(),
            Delta::Opaque(d) => d.tensors.iter().map(|t| ("tensor", t)).collect(),
        }
    }

    /// True for kinds that hold values of the tensor as it is stored, whichever way round that is.
    pub fn acts_as_stored(&self) -> bool {
        matches!(self, Delta::Full(_) | Delta::TokenRows(_))
    }

    /// Checks that the delta fits the weight and makes it ready.
    pub fn prepare(&self, site: &Site) -> Result<Action> {
        match self {
            Delta::Derived(d) => d.prepare(site),
            Delta::Hadamard(d) => d.prepare(site),
            Delta::Kronecker(d) => d.prepare(site),
            Delta::LowRank(d) => d.prepare(site),
            Delta::Orthogonal(d) => d.prepare(site),
            Delta::Full(d) => d.prepare(site),
            Delta::TokenRows(d) => d.prepare(site),
            Delta::Rescale(d) => d.prepare(site),
            Delta::Circulant(d) => d.prepare(site),
            Delta::Deft(d) => d.prepare(site),
            Delta::Fourier(d) => d.prepare(site),
            Delta::Glora(d) => d.prepare(site),
            Delta::InputGlora(d) => d.prepare(site),
            Delta::Hira(d) => d.prepare(site),
            Delta::Kasa(d) => d.prepare(site),
            Delta::Miss(d) => d.prepare(site),
            Delta::Osf(d) => d.prepare(site),
            Delta::Peanut(d) => d.prepare(site),
            Delta::Qalora(d) => d.prepare(site),
            Delta::Residual(d) => d.prepare(site),
            Delta::Road(d) => d.prepare(site),
            Delta::Scattered(d) => d.prepare(),
            Delta::Sparse(d) => d.prepare(site),
            Delta::Tucker(d) => d.prepare(site),
            Delta::Opaque(d) => d.prepare(),
        }
    }

    /// The shared projection the delta is made from, where its kind has one.
    pub fn projection_mut(&mut self) -> Option<&mut derived::Projection> {
        match self {
            Delta::Derived(d) => Some(d.projection_mut()),
            _ => None,
        }
    }

    /// The factors where the delta is a product of two, for a weight of this many rows and columns; none where it is
    /// not, or is a stack of experts.
    pub fn factors(&self, matrix: (usize, usize)) -> Option<Result<Factors>> {
        match self {
            Delta::LowRank(d) if d.experts.is_none() => Some(d.factors()),
            Delta::Derived(d) => Some(d.factors(matrix)),
            Delta::Tucker(d) if d.matrix().is_ok_and(|found| found == matrix) => Some(d.factors()),
            _ => None,
        }
    }
}

/// An action on `[out, in]` applied to a weight stored `[in, out]`. It needs the whole weight: what is a row to the
/// action is a column of the file.
struct Transposed(Box<dyn Act>);

impl Act for Transposed {
    fn reversal(&self) -> Reversal {
        match self.0.reversal() {
            Reversal::Rows => Reversal::Cols,
            Reversal::Cols => Reversal::Rows,
            other => other,
        }
    }

    fn addend(&self, kernels: &dyn Kernels, _: Range<usize>, mut sum: ArrayViewMut2<f32>) -> Result<()> {
        let mut upright = sum.t().as_standard_layout().into_owned();
        let rows = upright.nrows();
        self.0.addend(kernels, 0..rows, upright.view_mut())?;
        sum.assign(&upright.t());
        Ok(())
    }

    fn inverse(&self) -> Inverse {
        self.0.inverse()
    }

    fn undo(&self, kernels: &dyn Kernels, _: Range<usize>, mut w: ArrayViewMut2<f32>) -> Result<f64> {
        let mut upright = w.t().as_standard_layout().into_owned();
        let rows = upright.nrows();
        let spread = self.0.undo(kernels, 0..rows, upright.view_mut())?;
        w.assign(&upright.t());
        Ok(spread)
    }

    fn rows(&self) -> Rows {
        Rows::Whole
    }

    fn footprint(&self, rows: usize, cols: usize) -> u64 {
        8 * (rows * cols) as u64 + self.0.footprint(cols, rows)
    }

    fn act(&self, kernels: &dyn Kernels, _: Range<usize>, mut w: ArrayViewMut2<f32>, _: &dyn Before) -> Result<()> {
        let mut upright = w.t().as_standard_layout().into_owned();
        let before = InMemory(upright.clone());
        let rows = upright.nrows();
        self.0.act(kernels, 0..rows, upright.view_mut(), &before)?;
        w.assign(&upright.t());
        Ok(())
    }
}

/// A weight of zeros.
pub struct Zeros(pub usize, pub usize);

impl Before for Zeros {
    fn matrix(&self) -> (usize, usize) {
        (self.0, self.1)
    }
    fn rows(&self, _: &dyn Kernels, rows: Range<usize>) -> Result<Array2<f32>> {
        Ok(Array2::zeros((rows.len(), self.1)))
    }
}

/// A weight that is in memory already.
pub struct InMemory(pub Array2<f32>);

impl Before for InMemory {
    fn matrix(&self) -> (usize, usize) {
        self.0.dim()
    }
    fn rows(&self, _: &dyn Kernels, rows: Range<usize>) -> Result<Array2<f32>> {
        Ok(self.0.slice(ndarray::s![rows, ..]).to_owned())
    }
}
