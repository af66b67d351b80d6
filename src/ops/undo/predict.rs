//! The base's elements as far as the merged ones and the adapters tell: the same guess when a record is written and
//! when it is used.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array2, ArrayView1, s};

use super::manifest::How;
use crate::adapter::{Action, Reversal};
use crate::error::{Error, Result};
use crate::kernels::fused::inverse::{Addend, Factor, Pointwise};
use crate::kernels::{Doubt, Element, Kernels, Term};
use crate::ops::merge::place::{Grid, Placed, What, is_stacked, place};
use crate::ops::merge::produce::{changed, cuts, term};
use crate::ops::merge::source::Edit;
use crate::tensor::{Dtype, Rows, Shape, Tensor, cast, dtype};

/// Elements of a product formed at a time, small enough to stay near the core.
const BLOCK: usize = 1 << 17;
/// Steps by which changes that are no sum are taken back. Each leaves the share of the error by which the change
/// differs from none; four are enough for changes of a tenth.
const STEPS: usize = 4;

/// The changes, laid on the tensor.
struct Laid {
    placed: Vec<Placed>,
    rule: Rows,
}

/// The guess for one tensor.
pub struct Predictor {
    base: Dtype,
    merged: Dtype,
    grid: Grid,
    how: How,
    edits: Vec<Edit>,
    ready: Mutex<Option<Arc<Laid>>>,
    rows_left: AtomicUsize,
}

impl Predictor {
    /// For a tensor of `shape`, of these types before and after, changed by `edits`.
    pub fn new(base: Dtype, merged: Dtype, shape: &Shape, how: How, edits: Vec<Edit>) -> Predictor {
        let grid = Grid::of(shape, is_stacked(&edits));
        let rows_left = AtomicUsize::new(grid.rows);
        let how = if dtype::is_plain_float(base) && dtype::is_plain_float(merged) { how } else { How::Near };
        Predictor { base, merged, grid, how, edits, ready: Mutex::new(None), rows_left }
    }

    /// Rows and columns.
    pub fn matrix(&self) -> (usize, usize) {
        (self.grid.rows, self.grid.cols)
    }

    /// Bytes of workspace for so many rows.
    pub fn footprint(&self, rows: usize) -> u64 {
        let tile = 4 * (rows * self.grid.cols) as u64;
        match self.how {
            How::Sum | How::Rows | How::Cols => (1 + self.edits.len() as u64) * tile,
            How::Steps => 5 * tile,
            _ => 0,
        }
    }

    /// How many factors the guess for so many rows needs, beside the merged bytes.
    pub fn factor_count(&self, rows: usize) -> usize {
        match self.how {
            How::Rows => rows,
            How::Cols => self.grid.cols,
            _ => 0,
        }
    }

    /// Those factors, from the base's own rows.
    pub fn factors(&self, kernels: &dyn Kernels, rows: Range<usize>, base: &Tensor) -> Result<Vec<f32>> {
        let count = self.factor_count(rows.len());
        let (cols, size) = (self.grid.cols, self.base.bitsize() / 8);
        if count == 0 {
            return Ok(Vec::new());
        }
        let around = |rows: Range<usize>| {
            let mut tile = Array2::zeros((rows.len(), cols));
            if let Some(values) = tile.as_slice_mut() {
                cast::widen(
                    self.base,
                    &base.bytes.as_slice()[rows.start * cols * size..rows.end * cols * size],
                    values,
                )?;
            }
            Ok(tile)
        };
        let laid = self.laid(&rows)?;
        let placed = &laid.placed;
        let all: Vec<_> = placed.iter().map(|p| (p, p.strength)).collect();
        let before = around(rows.clone())?;
        let after = changed(kernels, rows.clone(), &all, &before, &around)?;
        let mut sum = before;
        for p in placed {
            add(kernels, p, rows.clone(), &mut sum)?;
        }
        // Any element tells the factor to the last bit or two, unless it is nothing or nearly so.
        let quotient = |(&v, &after): (&f32, &f32)| (v.is_normal()).then(|| after / v).filter(|q| q.is_finite());
        let by_row = self.how == How::Rows;
        let (sum, after) = if by_row { (sum.view(), after.view()) } else { (sum.t(), after.t()) };
        let factor =
            |(v, after): (ArrayView1<f32>, ArrayView1<f32>)| v.iter().zip(after).find_map(quotient).unwrap_or(1.0);
        Ok(sum.rows().into_iter().zip(after.rows()).map(factor).collect())
    }

    /// The guess for `rows` into `out`, from the bytes of the same rows after the merge and the factors; elements in
    /// doubt are appended to `doubtful`.
    pub fn predict(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        (merged, factors): (&[u8], &[f32]),
        out: &mut [u8],
        doubtful: &mut Vec<u32>,
    ) -> Result<()> {
        match self.how {
            How::Sum | How::Rows | How::Cols => {
                self.take_off(kernels, rows.clone(), (merged, factors), out, doubtful)?;
            }
            How::Steps => self.take_back(kernels, rows.clone(), merged, out)?,
            _ => self.convert(merged, out)?,
        }
        self.finished(rows.len());
        Ok(())
    }

    /// Counts rows off; after the last one everything that was prepared is let go.
    pub fn finished(&self, rows: usize) {
        if self.rows_left.fetch_sub(rows, Ordering::AcqRel) == rows {
            *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.edits.iter().for_each(|e| e.source.release());
        }
    }

    /// Whether product and guess are made in one pass where a row has one product added to it; the merge does so, too.
    pub fn is_one_pass(&self) -> bool {
        self.how == How::Sum && self.base == Dtype::BF16 && self.merged == Dtype::BF16
    }

    /// The changes, for `rows`. An error where they cannot be taken back as this is meant to, or not for these rows: a
    /// record says what it likes.
    fn laid(&self, rows: &Range<usize>) -> Result<Arc<Laid>> {
        let mut cell = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let laid = match &*cell {
            Some(laid) => Arc::clone(laid),
            None => Arc::clone(cell.insert(Arc::new(self.lay()?))),
        };
        if laid.rule.admits(rows, self.grid.rows) {
            return Ok(laid);
        }
        Err(Error::malformed(format!("rows {rows:?} of a change that is not made for these alone")))
    }

    fn lay(&self) -> Result<Laid> {
        let (mut placed, mut rule, mut reversal) = (Vec::new(), Rows::Any, None);
        for edit in &self.edits {
            let action = edit.source.action()?;
            rule = rule.and(action.rows());
            let own = action.reversal();
            reversal = Some(reversal.map_or(own, |before: Reversal| before.and(own)));
            placed.extend(place(edit, self.grid)?);
        }
        let can_be = How::of(reversal.unwrap_or(Reversal::Sum));
        // Where a factor is not for the whole tensor, steps are taken.
        if can_be == self.how || (matches!(can_be, How::Sum | How::Rows) && self.how == How::Steps) {
            return Ok(Laid { placed, rule });
        }
        Err(Error::malformed("a change that cannot be taken back like this"))
    }

    /// The merged elements themselves, in the base's type.
    fn convert(&self, merged: &[u8], out: &mut [u8]) -> Result<()> {
        if self.base == self.merged {
            out.copy_from_slice(merged);
            return Ok(());
        }
        if !dtype::is_float(self.base) || !dtype::is_float(self.merged) {
            out.fill(0);
            return Ok(());
        }
        let values = cast::widen_f64(self.merged, merged)?;
        cast::narrow_f64(self.base, &values, out)
    }

    /// The inverse of a sum.
    fn take_off(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        (merged, factors): (&[u8], &[f32]),
        out: &mut [u8],
        doubtful: &mut Vec<u32>,
    ) -> Result<()> {
        let laid = self.laid(&rows)?;
        let placed = &laid.placed;
        let cols = self.grid.cols;
        let (in_size, out_size) = (self.merged.bitsize() / 8, self.base.bitsize() / 8);
        let mut scratch = Vec::new();
        for pair in cuts(&rows, placed).windows(2) {
            let part = pair[0]..pair[1];
            let here = covering(placed, &part);
            if let (true, &[only]) = (self.is_one_pass(), &*here)
                && let Some(term) = term(only, &part)
            {
                let from = (part.start - rows.start) * cols;
                let bytes = from * in_size..(from + part.len() * cols) * in_size;
                let mut doubt = Doubt::default();
                let dim = (part.len(), cols);
                kernels.take_off_product(&merged[bytes.clone()], &mut out[bytes], dim, term, &mut doubt);
                doubt.append_to(from as u32, doubtful);
                continue;
            }
            let sums = here.iter().map(|p| Sum::of(kernels, p, part.clone(), cols)).collect::<Result<Vec<_>>>()?;
            let step = (BLOCK / cols.max(1)).max(1);
            for start in part.clone().step_by(step) {
                let block = start..(start + step).min(part.end);
                let from = (block.start - rows.start) * cols;
                let elements = block.len() * cols;
                scratch.resize_with(sums.len(), Vec::new);
                for (sum, scratch) in sums.iter().zip(&mut scratch) {
                    sum.fill(kernels, block.clone(), &part, cols, scratch);
                }
                let addends: Vec<Addend> = sums
                    .iter()
                    .zip(&scratch)
                    .map(|(sum, values)| Addend {
                        values: sum.formed(&block, &part, cols).unwrap_or(values),
                        scale: sum.scale,
                    })
                    .collect();
                let merged = &merged[from * in_size..(from + elements) * in_size];
                let out = &mut out[from * out_size..(from + elements) * out_size];
                let found = doubtful.len();
                let factor = match self.how {
                    How::Rows => Factor::Rows(&factors[block.start - rows.start..block.end - rows.start]),
                    How::Cols => Factor::Cols(factors),
                    _ => Factor::None,
                };
                let step = Pointwise { addends: &addends, factor };
                self.invert(kernels, merged, (block.len(), cols), step, out, doubtful)?;
                doubtful[found..].iter_mut().for_each(|i| *i += from as u32);
            }
        }
        Ok(())
    }

    fn invert(
        &self,
        kernels: &dyn Kernels,
        merged: &[u8],
        dim: (usize, usize),
        step: Pointwise,
        out: &mut [u8],
        doubtful: &mut Vec<u32>,
    ) -> Result<()> {
        match (Element::of(self.base), Element::of(self.merged)) {
            (Some(base), Some(stored)) if base != Element::F64 && stored != Element::F64 => {
                kernels.invert((base, stored), merged, dim, step, out, doubtful);
                Ok(())
            }
            // f64 is wide enough for the plain difference; what is missing is a correction.
            _ => {
                let mut values = cast::widen_f64(self.merged, merged)?;
                for (i, v) in values.iter_mut().enumerate() {
                    *v /= match step.factor {
                        Factor::None => 1.0,
                        Factor::Rows(f) => f64::from(f[i / dim.1]),
                        Factor::Cols(f) => f64::from(f[i % dim.1]),
                    };
                }
                for addend in step.addends.iter().rev() {
                    for (v, &d) in values.iter_mut().zip(addend.values) {
                        *v -= f64::from(addend.scale) * f64::from(d);
                    }
                }
                values.iter_mut().filter(|v| v.is_nan()).for_each(|v| *v = 0.0);
                cast::narrow_f64(self.base, &values, out)
            }
        }
    }

    /// The fixed point x of `merged = change(x)`, from `x = merged` on.
    fn take_back(&self, kernels: &dyn Kernels, rows: Range<usize>, merged: &[u8], out: &mut [u8]) -> Result<()> {
        let laid = self.laid(&rows)?;
        let placed = &laid.placed;
        let cols = self.grid.cols;
        let mut target = Array2::<f32>::zeros((rows.len(), cols));
        if let Some(values) = target.as_slice_mut() {
            cast::widen(self.merged, merged, values)?;
            // What is not finite tells nothing and would spread.
            values.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
        }
        let mut x = target.clone();
        for _ in 0..STEPS {
            let mut next = x.clone();
            for pair in cuts(&rows, placed).windows(2) {
                let part = pair[0]..pair[1];
                let own = s![part.start - rows.start..part.end - rows.start, ..];
                let here: Vec<_> = covering(placed, &part).into_iter().map(|p| (p, p.strength)).collect();
                if here.is_empty() {
                    continue;
                }
                let around = |wanted: Range<usize>| {
                    if wanted.start < rows.start || wanted.end > rows.end {
                        return Err(Error::unsupported("a change that is taken back in steps asks for other rows"));
                    }
                    Ok(x.slice(s![wanted.start - rows.start..wanted.end - rows.start, ..]).to_owned())
                };
                let before = x.slice(own).to_owned();
                let after = changed(kernels, part, &here, &before, &around)?;
                let mut part = next.slice_mut(own);
                // x + (target - change(x)), the difference first.
                part.zip_mut_with(&after, |x, after| *x -= after);
                part += &target.slice(own);
            }
            x = next;
        }
        x.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = 0.0);
        let values = x.as_slice().ok_or_else(|| Error::mismatch("rows are not contiguous"))?;
        cast::narrow(self.base, values, out)
    }
}

fn covering<'a>(placed: &'a [Placed], part: &Range<usize>) -> Vec<&'a Placed> {
    placed.iter().filter(|p| p.rows.start <= part.start && part.end <= p.rows.end).collect()
}

/// Adds to `sum`, which holds `rows`, what a change adds whatever the weight is.
fn add(kernels: &dyn Kernels, placed: &Placed, rows: Range<usize>, sum: &mut Array2<f32>) -> Result<()> {
    let What::Act { action, offset, .. } = &placed.what else {
        return Err(Error::unsupported("a product in the place of an act"));
    };
    let first = rows.start - placed.rows.start + offset;
    match &**action {
        Action::Act(act) => act.addend(kernels, first..first + rows.len(), sum.view_mut()),
        Action::LowRank(factors) => factors.add_to(kernels, first..first + rows.len(), sum.view_mut()),
        Action::Experts(_) => Err(Error::unsupported("a stack of experts as one matrix")),
    }
}

/// What one change adds.
struct Sum<'a> {
    scale: f32,
    values: Values<'a>,
}

enum Values<'a> {
    /// A product, and its row that is the first of the part.
    Product(&'a crate::adapter::delta::Factors, usize),
    /// All of the part.
    Formed(Array2<f32>),
}

impl<'a> Sum<'a> {
    fn of(kernels: &dyn Kernels, placed: &'a Placed, part: Range<usize>, cols: usize) -> Result<Sum<'a>> {
        match &placed.what {
            What::LowRank(f) => {
                let scale = (f.scale * placed.strength) as f32;
                Ok(Sum { scale, values: Values::Product(f, part.start - placed.rows.start) })
            }
            What::Act { .. } => {
                let mut formed = Array2::zeros((part.len(), cols));
                add(kernels, placed, part, &mut formed)?;
                // A factor comes after the sum, and only at full strength.
                let scale = if placed.reversal() == Reversal::Sum { placed.strength as f32 } else { 1.0 };
                Ok(Sum { scale, values: Values::Formed(formed) })
            }
        }
    }

    /// The values of `block`, a block of `part`, where all of them are formed.
    fn formed(&self, block: &Range<usize>, part: &Range<usize>, cols: usize) -> Option<&[f32]> {
        let Values::Formed(all) = &self.values else { return None };
        all.as_slice()?.get((block.start - part.start) * cols..(block.end - part.start) * cols)
    }

    /// Forms the values of `block`, row by row, where they are a product.
    fn fill(&self, kernels: &dyn Kernels, block: Range<usize>, part: &Range<usize>, cols: usize, out: &mut Vec<f32>) {
        let Values::Product(f, offset) = &self.values else { return };
        out.clear();
        out.resize(block.len() * cols, 0.0);
        let rank = f.rank();
        let first = block.start - part.start + offset;
        let b = f.b.as_slice().map(|b| &b[first * rank..(first + block.len()) * rank]);
        if let (Some(a), Some(b)) = (f.a.as_slice(), b) {
            let term = Term { a, a_stride: cols, b, b_stride: rank, rank, scale: 1.0 };
            kernels.add_products_to_tile(out, (block.len(), cols), &[term]);
        }
    }
}
