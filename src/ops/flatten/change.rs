//! The change of one weight, some rows at a time: what the action that merges it makes of the rows, less the rows.

use std::ops::Range;

use ndarray::{Array2, ArrayViewMut2, s};

use super::place::{Form, Place};
use crate::adapter::delta::{Act, Before, Delta, Reversal, Zeros};
use crate::adapter::{Target, delta::Full};
use crate::error::{Error, Result};
use crate::kernels::{Kernels, RowSource, Truncated};
use crate::model::BaseModel;
use crate::names::ModulePath;
use crate::ops::extract::view::View;
use crate::ops::factorise::{self, Work};
use crate::tensor::Rows;

/// A weight whose change becomes factors.
pub struct Unit {
    /// Module path.
    pub path: ModulePath,
    /// What is done to the weight, but for rows of tokens.
    pub target: Target,
    /// Rows of tokens that take their places afterwards, and stay as they are.
    pub rows: Option<Delta>,
    /// Where the weight lies.
    pub place: Place,
    /// Bytes of memory that forming its change takes.
    workspace: u64,
}

impl Unit {
    /// The change of the target's weight.
    pub fn new(path: &ModulePath, target: &Target, place: Place) -> Result<Unit> {
        let mut weight = target.weight.clone();
        let rows = weight.pop_if(|last| matches!(last, Delta::TokenRows(_)) && target.magnitude.is_none());
        if matches!(place.form, Form::Stack(_)) && !weight.iter().all(|d| matches!(d, Delta::Full(Full { .. }))) {
            let what = format!("{} of a whole stack of matrices {}", target.kind(), place.stored);
            return Err(Error::unsupported(what));
        }
        let target = Target { weight, bias: Vec::new(), ..target.clone() };
        let mut out = Unit { path: path.clone(), target, rows, place, workspace: 0 };
        out.workspace = out.footprint()?;
        Ok(out)
    }

    /// Number of its matrices.
    pub fn members(&self) -> usize {
        if let Form::Stack(count) = self.place.form { count } else { 1 }
    }

    /// Rows and columns of each, as stored.
    fn dim(&self) -> (usize, usize) {
        match (self.place.form, self.place.stored.dims()) {
            (Form::Stack(_), &[_, rows, cols]) => (rows, cols),
            _ => self.place.stored.matrix(),
        }
    }

    /// Makes the action, which finds whatever does not fit, and asks what it needs.
    fn footprint(&self) -> Result<u64> {
        let (rows, cols) = self.dim();
        let act = self.act()?;
        let forming = match act.rows() {
            Rows::Whole => 12 * rows as u64 * cols as u64 + act.footprint(rows, cols),
            _ => 8 * BLOCK.min(rows) as u64 * cols as u64 + act.footprint(BLOCK.min(rows), cols),
        };
        let factors: u64 = self.target.tensors().iter().map(|(_, t)| 4 * t.elements() as u64).sum();
        Ok(forming.saturating_add(factors))
    }

    fn act(&self) -> Result<Box<dyn Act>> {
        self.target.weight_action(&self.place.stored, self.place.transposed)?.into_act()
    }

    fn view(&self, base: &BaseModel, member: usize) -> Result<View> {
        View::new(base, &self.place.found, matches!(self.place.form, Form::Stack(_)).then_some(member))
    }
}

/// The changes of an adapter.
pub struct Changes<'a> {
    /// The base.
    pub base: &'a BaseModel,
    /// What calculates them.
    pub kernels: &'a dyn Kernels,
    /// All of them.
    pub units: &'a [Unit],
}

impl factorise::Changes for Changes<'_> {
    fn count(&self) -> usize {
        self.units.len()
    }

    fn name(&self, change: usize) -> &str {
        self.units[change].path.as_str()
    }

    fn members(&self, change: usize) -> usize {
        self.units[change].members()
    }

    fn dim(&self, change: usize) -> Result<(usize, usize)> {
        Ok(self.units[change].dim())
    }

    fn workspace(&self, change: usize) -> u64 {
        self.units[change].workspace
    }

    fn decompose(&self, change: usize, member: usize, work: &Work) -> Result<(Truncated, u64)> {
        let unit = &self.units[change];
        let view = unit.view(self.base, member)?;
        let (height, _) = unit.dim();
        let change = Change::new(&view, unit.act()?, member * height, self.kernels)?;
        let done = work(&change);
        view.release();
        unit.target.tensors().iter().for_each(|(_, t)| t.bytes.release(0..t.bytes.len()));
        Ok((done?, view.bytes()))
    }
}

/// About how many rows are asked for at a time.
const BLOCK: usize = 256;

/// The change of one matrix.
struct Change<'a> {
    view: &'a View,
    act: Box<dyn Act>,
    /// The row of the action that is the first of the matrix.
    first: usize,
    kernels: &'a dyn Kernels,
    /// All of it, where the action takes no part of the rows.
    whole: Option<Array2<f32>>,
}

impl<'a> Change<'a> {
    fn new(view: &'a View, act: Box<dyn Act>, first: usize, kernels: &'a dyn Kernels) -> Result<Change<'a>> {
        let mut out = Change { view, act, first, kernels, whole: None };
        if out.act.rows() == Rows::Whole {
            out.whole = Some(out.formed(0..view.dim().0)?);
        }
        Ok(out)
    }

    /// Some rows of it, that the action admits.
    fn formed(&self, rows: Range<usize>) -> Result<Array2<f32>> {
        let (height, cols) = self.view.dim();
        let of_act = self.first + rows.start..self.first + rows.end;
        if self.act.reversal() == Reversal::Sum {
            // From zeros, where that is the same: no small difference of large numbers.
            let mut sum = Array2::zeros((rows.len(), cols));
            self.act.act(self.kernels, of_act, sum.view_mut(), &Zeros(self.first + height, cols))?;
            return Ok(sum);
        }
        let old = read(self.view, rows)?;
        let mut new = old.clone();
        self.act.act(self.kernels, of_act, new.view_mut(), &Weight { view: self.view, first: self.first })?;
        new -= &old;
        Ok(new)
    }
}

impl RowSource for Change<'_> {
    fn dim(&self) -> (usize, usize) {
        self.view.dim()
    }

    fn read(&self, rows: Range<usize>, mut out: ArrayViewMut2<f32>) -> Result<()> {
        if let Some(whole) = &self.whole {
            out.assign(&whole.slice(s![rows, ..]));
            return Ok(());
        }
        let around = match self.act.rows() {
            Rows::Multiple(n) => {
                let n = n.max(1);
                rows.start / n * n..rows.end.div_ceil(n).saturating_mul(n).min(self.view.dim().0)
            }
            _ => rows.clone(),
        };
        let within = rows.start - around.start..rows.end - around.start;
        out.assign(&self.formed(around)?.slice(s![within, ..]));
        self.view.release_rows(&rows);
        Ok(())
    }
}

/// Rows of the base in f32.
pub fn read(view: &View, rows: Range<usize>) -> Result<Array2<f32>> {
    let mut out = Array2::zeros((rows.len(), view.dim().1));
    let values = out.as_slice_mut().ok_or_else(|| Error::mismatch("rows that are not contiguous"))?;
    view.read(rows, values)?;
    Ok(out)
}

/// The weight before the change, under the numbers of the action's rows.
pub struct Weight<'a> {
    /// The weight.
    pub view: &'a View,
    /// The row of the action that is its first.
    pub first: usize,
}

impl Before for Weight<'_> {
    fn matrix(&self) -> (usize, usize) {
        (self.first + self.view.dim().0, self.view.dim().1)
    }

    fn rows(&self, _: &dyn Kernels, rows: Range<usize>) -> Result<Array2<f32>> {
        let outside = || Error::unsupported("this change needs rows beside its own matrix of a stack");
        let start = rows.start.checked_sub(self.first).ok_or_else(outside)?;
        read(self.view, start..start + rows.len())
    }
}
