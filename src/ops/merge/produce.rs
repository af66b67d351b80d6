//! A merged tensor, some rows at a time.
//!
//! Where every change is a product and the stored type stays, the fused step works on the stored bytes. Otherwise rows
//! are widened to f32, each adapter's change is computed from the base's own values and added at its strength, and the
//! sum is rounded once. f64 bases keep their precision: the change is computed in f32 and added in f64. Of a base with
//! scales the values are elements times scales, and what is rounded is the quotient.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{Array2, ArrayViewMut2, s};

use super::fitting::Fitting;
use super::measure::measure;
use super::place::{Grid, Placed, What, is_stacked, place};
use super::source::Edit;
use crate::adapter::delta::{Before, Factors};
use crate::adapter::{Act, Action, Inverse, Reversal};
use crate::error::{Context, Error, Kind, Result};
use crate::kernels::{Element, Guess, Kernels, Moved, Term};
use crate::stream::{Produce, rows_at_once};
use crate::tensor::{Dtype, Rows, Scales, Shape, Tensor, cast, dtype};

/// What a tensor is before anything is done to it.
#[derive(Clone)]
pub enum Start {
    /// A tensor of the base.
    Stored(Tensor),
    /// Zeros: the base has none, or one of another shape that is replaced.
    Zeros(Dtype),
}

/// What the elements of a tensor that is written are multiplied by.
#[derive(Clone)]
pub enum Scaling {
    /// By nothing: they are the numbers.
    None,
    /// By these.
    Given(Arc<Scales>),
    /// By scales that are found when they are needed.
    Fitted(Arc<Fitting>),
}

/// A product, and the rows on disk it is added to.
pub type Laid = (Range<usize>, Factors);

/// A tensor to be written.
pub struct Merged {
    start: Start,
    /// What the elements it starts from are multiplied by.
    scales: Option<Arc<Scales>>,
    out: Dtype,
    scaling: Scaling,
    grid: Grid,
    rule: Rows,
    edits: Vec<Edit>,
    reversal: Reversal,
    inverses: Vec<Inverse>,
    allow_nonfinite: bool,
    placed: Mutex<Option<Arc<Vec<Placed>>>>,
    rows_left: AtomicUsize,
}

impl Merged {
    /// A tensor of `shape` and type `out`, made from `start` by `edits`. Checks that every edit fits.
    pub fn new(start: Start, out: Dtype, shape: &Shape, edits: Vec<Edit>, allow_nonfinite: bool) -> Result<Merged> {
        let grid = Grid::of(shape, is_stacked(&edits));
        let (mut rule, mut reversal) = (Rows::Any, None);
        let mut inverses = Vec::with_capacity(edits.len());
        for edit in &edits {
            let action = edit.source.action().in_file(&edit.source.adapter)?;
            rule = rule.and(action.rows());
            let own = action.reversal();
            reversal = Some(reversal.map_or(own, |before: Reversal| before.and(own)));
            inverses.push(action.inverse());
            place(edit, grid).in_file(&edit.source.adapter)?;
            edit.source.checked();
        }
        let rows_left = AtomicUsize::new(grid.rows);
        let reversal = reversal.unwrap_or(Reversal::Sum);
        let (placed, scales, scaling) = (Mutex::new(None), None, Scaling::None);
        Ok(Merged {
            start,
            scales,
            out,
            scaling,
            grid,
            rule,
            edits,
            reversal,
            inverses,
            allow_nonfinite,
            placed,
            rows_left,
        })
    }

    /// The same from elements with scales, and to others.
    #[must_use]
    pub fn with_scales(self, scales: Option<Arc<Scales>>, scaling: Scaling) -> Merged {
        Merged { scales, scaling, ..self }
    }

    /// The changes, in order.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// How all of them can be taken back together.
    pub fn reversal(&self) -> Reversal {
        self.reversal
    }

    /// How each of them is found back without a record, in the order of the changes.
    pub fn inverses(&self) -> &[Inverse] {
        &self.inverses
    }

    /// The same tensor rounded to another type, with other scales. Only one of the two may be produced: they let go of
    /// what was prepared for both.
    pub fn rounded_to(&self, out: Dtype, scales: Option<Arc<Scales>>) -> Merged {
        Merged {
            start: self.start.clone(),
            scales: self.scales.clone(),
            out,
            scaling: scales.map_or(Scaling::None, Scaling::Given),
            grid: self.grid,
            rule: self.rule,
            edits: self.edits.clone(),
            reversal: self.reversal,
            inverses: self.inverses.clone(),
            allow_nonfinite: self.allow_nonfinite,
            placed: Mutex::new(None),
            rows_left: AtomicUsize::new(self.grid.rows),
        }
    }

    /// The tensor it starts from; none for zeros.
    pub fn base(&self) -> Option<&Tensor> {
        match &self.start {
            Start::Stored(tensor) => Some(tensor),
            Start::Zeros(_) => None,
        }
    }

    /// What the elements that are written are multiplied by. Where that is still to be found, it is found now.
    pub fn scales(&self, kernels: &dyn Kernels) -> Result<Option<Arc<Scales>>> {
        match &self.scaling {
            Scaling::None => Ok(None),
            Scaling::Given(scales) => Ok(Some(Arc::clone(scales))),
            Scaling::Fitted(fitting) => {
                let look = |rows: Range<usize>, peaks: &mut [f32]| self.look(kernels, rows, &fitting.before, peaks);
                fitting.settle((self.grid.rows, self.rows_of_piece()), &look).map(Some)
            }
        }
    }

    /// Raises the peaks under each scale to what some merged rows have.
    fn look(&self, kernels: &dyn Kernels, rows: Range<usize>, scales: &Scales, peaks: &mut [f32]) -> Result<()> {
        let placed = self.placed()?;
        self.fetch(&rows);
        for pair in cuts(&rows, &placed).windows(2) {
            let part = pair[0]..pair[1];
            let here = over(&placed, &part).into_iter().map(|p| (p, p.strength)).collect::<Vec<_>>();
            let before = self.widened(part.clone())?;
            let after = changed(kernels, part.clone(), &here, &before, &|rows| self.widened(rows))?;
            let values = after.as_slice().ok_or_else(|| Error::mismatch("rows are not contiguous"))?;
            scales.peaks(part.start * self.grid.cols, values, peaks);
        }
        self.let_go(&rows);
        Ok(())
    }

    /// How many rows are made at once.
    pub fn rows_of_piece(&self) -> usize {
        let row_bytes = self.grid.cols * self.out.bitsize() / 8;
        rows_at_once(self.rule, self.grid.rows, self.grid.rows * row_bytes)
    }

    /// Numbers of the adapters that change it, in order.
    pub fn adapters(&self) -> Vec<usize> {
        let numbers: BTreeSet<_> = self.edits.iter().map(|e| e.source.number).collect();
        numbers.into_iter().collect()
    }

    fn start_dtype(&self) -> Dtype {
        match &self.start {
            Start::Stored(tensor) => tensor.dtype,
            Start::Zeros(dtype) => *dtype,
        }
    }

    /// The placed edits, shared by the threads that work on this tensor.
    fn placed(&self) -> Result<Arc<Vec<Placed>>> {
        let mut cell = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(placed) = &*cell {
            return Ok(Arc::clone(placed));
        }
        let mut all = Vec::new();
        for edit in &self.edits {
            all.extend(place(edit, self.grid)?);
        }
        let all = Arc::new(all);
        *cell = Some(Arc::clone(&all));
        Ok(all)
    }

    /// Counts rows off; after the last one everything that was prepared is let go.
    pub fn finished(&self, rows: usize) {
        if self.rows_left.fetch_sub(rows, Ordering::AcqRel) == rows {
            *self.placed.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.edits.iter().for_each(|e| e.source.release());
        }
    }

    /// Rows of the base in f32.
    pub fn widened(&self, rows: Range<usize>) -> Result<Array2<f32>> {
        let dim = (rows.len(), self.grid.cols);
        let mut tile = Array2::zeros(dim);
        if let (Start::Stored(tensor), Some(out)) = (&self.start, tile.as_slice_mut()) {
            let size = tensor.dtype.bitsize() / 8;
            let range = rows.start * self.grid.cols * size..rows.end * self.grid.cols * size;
            cast::widen(tensor.dtype, &tensor.bytes.as_slice()[range], out)?;
            if let Some(scales) = &self.scales {
                scales.multiply(rows.start * self.grid.cols, out);
            }
        }
        Ok(tile)
    }

    /// Says that rows of the base are read next.
    fn fetch(&self, rows: &Range<usize>) {
        if let Start::Stored(tensor) = &self.start {
            let stored = |row: usize| row * self.grid.cols * tensor.dtype.bitsize() / 8;
            tensor.bytes.fetch(stored(rows.start)..stored(rows.end));
        }
    }

    /// Says that they are not.
    fn let_go(&self, rows: &Range<usize>) {
        if let Start::Stored(tensor) = &self.start {
            let row_bytes = self.grid.cols * tensor.dtype.bitsize() / 8;
            tensor.bytes.release(rows.start * row_bytes..rows.end * row_bytes);
        }
    }

    /// One run of rows over which the same edits lie. With `guess`, its rows from the given one on are filled where that
    /// can be done on the way; true if so.
    fn segment(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        placed: &[&Placed],
        (out, scales): (&mut [u8], Option<&Scales>),
        guess: Option<(&mut Guess, usize)>,
    ) -> Result<(Moved, bool)> {
        let same_type = self.start_dtype() == self.out;
        let products: Option<Vec<Term>> = placed.iter().map(|p| term(p, &rows)).collect();
        if let (true, Some(terms), Start::Stored(tensor), Some(element)) =
            (same_type, products, &self.start, Element::of(self.out))
        {
            let size = element.bytes();
            let range = rows.start * self.grid.cols * size..rows.end * self.grid.cols * size;
            let w = &tensor.bytes.as_slice()[range];
            let dim = (rows.len(), self.grid.cols);
            return Ok(match (guess, element, &*terms) {
                (Some(guess), Element::BF16, &[only]) => {
                    (kernels.add_product_and_guess(w, out, dim, only, guess), true)
                }
                _ => (kernels.add_products(element, w, out, dim, &terms), false),
            });
        }
        let before = self.widened(rows.clone())?;
        let strengths: Vec<_> = placed.iter().map(|p| (*p, p.strength)).collect();
        let after = changed(kernels, rows.clone(), &strengths, &before, &|rows| self.widened(rows))?;
        Ok((self.round(rows, &before, &after, scales, out)?, false))
    }

    /// All of `rows`, segment after segment; true where `guess` was filled for each.
    fn segments(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        out: &mut [u8],
        mut guess: Option<&mut Guess>,
    ) -> Result<(Moved, bool)> {
        let scales = self.scales(kernels)?;
        let placed = self.placed()?;
        let row_bytes = dtype::byte_len(self.out, self.grid.cols)?;
        self.fetch(&rows);
        let (mut moved, mut guessed) = (Moved::default(), guess.is_some());
        for pair in cuts(&rows, &placed).windows(2) {
            let part = pair[0]..pair[1];
            let here = over(&placed, &part);
            let first = part.start - rows.start;
            let bytes = first * row_bytes..(part.end - rows.start) * row_bytes;
            // Of no use unless all is guessed.
            let guess = guess.as_deref_mut().filter(|_| guessed).map(|guess| (guess, first));
            let (of_part, told) = self.segment(kernels, part, &here, (&mut out[bytes], scales.as_deref()), guess)?;
            moved.add(&of_part);
            guessed &= told;
        }
        if moved.nonfinite > 0 && !self.allow_nonfinite {
            self.refuse_nonfinite(rows, out, moved.nonfinite)?;
        }
        Ok((moved, guessed))
    }

    /// What one adapter changes at strength 1 in some rows, whose values in the base are `before`: f32, not rounded to
    /// the stored type.
    pub fn delta(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        adapter: usize,
        before: &Array2<f32>,
    ) -> Result<Array2<f32>> {
        let placed = self.placed()?;
        let mut out = Array2::zeros(before.dim());
        for pair in cuts(&rows, &placed).windows(2) {
            let part = pair[0]..pair[1];
            let own = s![part.start - rows.start..part.end - rows.start, ..];
            let here: Vec<_> = placed
                .iter()
                .filter(|p| p.number == adapter && p.rows.start <= part.start && part.end <= p.rows.end)
                .map(|p| (p, p.share))
                .collect();
            if !here.is_empty() {
                // From zeros where that is the same: no small difference of large numbers.
                let sums = here.iter().all(|(p, _)| p.reversal() == Reversal::Sum);
                let before =
                    if sums { Array2::zeros((part.len(), self.grid.cols)) } else { before.slice(own).to_owned() };
                let after = changed(kernels, part, &here, &before, &|rows| self.widened(rows))?;
                out.slice_mut(own).assign(&if sums { after } else { after - before });
            }
        }
        Ok(out)
    }

    /// Makes rows of the base again of merged ones, in place, by acts that undo themselves; each at strength 1 and
    /// alone in its rows. Gives what errors are multiplied by at most.
    pub fn undo(&self, kernels: &dyn Kernels, rows: Range<usize>, w: &mut Array2<f32>) -> Result<f64> {
        let placed = self.placed()?;
        let mut spread = 1f64;
        for pair in cuts(&rows, &placed).windows(2) {
            let part = pair[0]..pair[1];
            let own = s![part.start - rows.start..part.end - rows.start, ..];
            let here = placed.iter().filter(|p| p.rows.start <= part.start && part.end <= p.rows.end);
            for p in here {
                let What::Act { action, offset, .. } = &p.what else { continue };
                let Action::Act(act) = &**action else { continue };
                let first = part.start - p.rows.start + offset;
                spread = spread.max(act.undo(kernels, first..first + part.len(), w.slice_mut(own))?);
            }
        }
        Ok(spread)
    }

    /// The kinds of what one adapter does to the tensor; none where it leaves it alone.
    pub fn kinds(&self, adapter: usize) -> Vec<&'static str> {
        self.edits.iter().filter(|e| e.source.number == adapter).map(|e| e.source.target.kind()).collect()
    }

    /// What one adapter changes, as products over rows, in their order; none where something else is among it.
    pub fn products(&self, adapter: usize) -> Result<Option<Vec<Laid>>> {
        let placed = self.placed()?;
        let of_one = placed.iter().filter(|p| p.number == adapter).map(|p| match &p.what {
            What::LowRank(factors) => {
                Some((p.rows.clone(), Factors { scale: factors.scale * p.share, ..factors.clone() }))
            }
            What::Act { .. } => None,
        });
        let mut out: Option<Vec<_>> = of_one.collect();
        if let Some(all) = &mut out {
            all.sort_by_key(|(rows, _)| rows.start);
        }
        Ok(out)
    }

    /// Whether what is changed depends on the values of the base.
    pub fn needs_base(&self) -> Result<bool> {
        Ok(self.placed()?.iter().any(|p| p.reversal() != Reversal::Sum))
    }

    /// Rounds once and measures what came of it.
    fn round(
        &self,
        rows: Range<usize>,
        before: &Array2<f32>,
        after: &Array2<f32>,
        scales: Option<&Scales>,
        out: &mut [u8],
    ) -> Result<Moved> {
        let first = rows.start * self.grid.cols;
        let values = after.as_slice().ok_or_else(|| Error::mismatch("rows are not contiguous"))?;
        if let (Start::Stored(tensor), Dtype::F64) = (&self.start, self.start_dtype()) {
            let range = rows.start * self.grid.cols * 8..rows.end * self.grid.cols * 8;
            let mut exact = cast::widen_f64(Dtype::F64, &tensor.bytes.as_slice()[range])?;
            for ((v, new), old) in exact.iter_mut().zip(values).zip(before.iter()) {
                *v += f64::from(*new) - f64::from(*old);
            }
            match scales {
                Some(scales) => scales.narrow_f64(self.out, first, &exact, out)?,
                None => cast::narrow_f64(self.out, &exact, out)?,
            }
        } else if let Some(scales) = scales {
            scales.narrow(self.out, first, values, out)?;
        } else {
            cast::narrow(self.out, values, out)?;
        }
        let mut realised = vec![0f32; values.len()];
        cast::widen(self.out, out, &mut realised)?;
        if let Some(scales) = scales {
            scales.multiply(first, &mut realised);
        }
        let old = before.as_slice().ok_or_else(|| Error::mismatch("rows are not contiguous"))?;
        Ok(measure(old, values, &realised))
    }

    /// The error for values that are not finite, with the place of the first.
    fn refuse_nonfinite(&self, rows: Range<usize>, out: &[u8], count: u64) -> Result<()> {
        let mut values = vec![0f32; rows.len() * self.grid.cols];
        cast::widen(self.out, out, &mut values)?;
        let first = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
        let (row, col) = (rows.start + first / self.grid.cols.max(1), first % self.grid.cols.max(1));
        let base = self.widened(row..row + 1)?;
        let of_base = base.get((0, col)).is_some_and(|v| !v.is_finite());
        let cause = match of_base {
            true => "the base has NaN or infinity there",
            false => "the result is beyond the range of the type",
        };
        let place = match &self.start {
            Start::Stored(tensor) if of_base => tensor.bytes.file().map(|file| file.path().to_path_buf()),
            _ => self.edits.first().map(|edit| PathBuf::from(&edit.source.adapter)),
        };
        let what =
            format!("{count} values came out as NaN or infinity as {}, first at [{row}, {col}]: {cause}", self.out);
        let error = Error::new(Kind::Nonfinite, what)
            .hint("--dtype chooses a wider type; --allow-nonfinite writes it all the same");
        Err(match place {
            Some(place) => error.in_file(place),
            None => error,
        })
    }
}

/// Rows with changes added, each at a strength. `before` holds the rows as they are; `around` gives any others that a
/// change asks for.
pub fn changed(
    kernels: &dyn Kernels,
    rows: Range<usize>,
    placed: &[(&Placed, f64)],
    before: &Array2<f32>,
    around: &Around,
) -> Result<Array2<f32>> {
    let mut sum = before.clone();
    let alone = placed.len() == 1;
    for &(p, strength) in placed {
        match &p.what {
            What::LowRank(f) => {
                let part = rows.start - p.rows.start..rows.end - p.rows.start;
                let scale = (f.scale * strength) as f32;
                kernels.add_product(scale, f.b.slice(s![part, ..]), f.a.view(), sum.view_mut())?;
            }
            What::Act { action, offset, height } => {
                let (cols, height) = (before.ncols(), *height);
                let shift = Shifted { around, cols, rows: p.rows.clone(), offset: *offset, height };
                let first = rows.start - p.rows.start + offset;
                let own = first..first + rows.len();
                if alone && strength == 1.0 {
                    act(action, kernels, own, sum.view_mut(), &shift)?;
                } else {
                    let mut result = before.clone();
                    act(action, kernels, own, result.view_mut(), &shift)?;
                    result -= before;
                    sum.scaled_add(strength as f32, &result);
                }
            }
        }
    }
    Ok(sum)
}

/// The product as a term over some rows, where the change is one.
pub fn term<'a>(p: &'a Placed, rows: &Range<usize>) -> Option<Term<'a>> {
    let What::LowRank(f) = &p.what else { return None };
    let rank = f.rank();
    let b = &f.b.as_slice()?[(rows.start - p.rows.start) * rank..(rows.end - p.rows.start) * rank];
    let scale = (f.scale * p.strength) as f32;
    Some(Term { a: f.a.as_slice()?, a_stride: f.a.ncols(), b, b_stride: rank, rank, scale })
}

fn act(
    action: &Action,
    kernels: &dyn Kernels,
    rows: Range<usize>,
    w: ArrayViewMut2<f32>,
    before: &dyn Before,
) -> Result<()> {
    match action {
        Action::Act(inner) => inner.act(kernels, rows, w, before),
        Action::LowRank(factors) => factors.act(kernels, rows, w, before),
        Action::Experts(_) => Err(Error::unsupported("a stack of experts as one matrix")),
    }
}

/// Gives rows of the tensor on disk.
pub type Around<'a> = dyn Fn(Range<usize>) -> Result<Array2<f32>> + Sync + 'a;

/// The base's rows under the numbers an action in memory knows them by.
struct Shifted<'a> {
    around: &'a Around<'a>,
    cols: usize,
    rows: Range<usize>,
    offset: usize,
    height: usize,
}

impl Before for Shifted<'_> {
    // Of all of it: what looks at every row finds that some lie elsewhere, and never takes a part for the whole.
    fn matrix(&self) -> (usize, usize) {
        (self.height, self.cols)
    }

    fn rows(&self, _: &dyn Kernels, rows: Range<usize>) -> Result<Array2<f32>> {
        if rows.start < self.offset || rows.end > self.offset + self.rows.len() {
            return Err(Error::unsupported("this change needs rows that the base stores elsewhere"));
        }
        let first = self.rows.start + rows.start - self.offset;
        (self.around)(first..first + rows.len())
    }
}

/// The changes that lie over all of `part`.
fn over<'a>(placed: &'a [Placed], part: &Range<usize>) -> Vec<&'a Placed> {
    placed.iter().filter(|p| p.rows.start <= part.start && part.end <= p.rows.end).collect()
}

/// Cuts `rows` where the set of edits changes.
pub fn cuts(rows: &Range<usize>, placed: &[Placed]) -> Vec<usize> {
    let mut at = vec![rows.start, rows.end];
    for p in placed {
        at.extend([p.rows.start, p.rows.end].into_iter().filter(|r| rows.contains(r)));
    }
    at.sort_unstable();
    at.dedup();
    at
}

impl Produce for Merged {
    fn matrix(&self) -> (usize, usize) {
        (self.grid.rows, self.grid.cols)
    }

    fn rows(&self) -> Rows {
        self.rule
    }

    fn footprint(&self, rows: usize) -> u64 {
        let tile = 4 * (rows * self.grid.cols) as u64;
        let acts: u64 = self
            .edits
            .iter()
            .filter_map(|e| e.source.action().ok())
            .map(|action| match &*action {
                Action::Act(inner) => inner.footprint(rows, self.grid.cols),
                _ => 0,
            })
            .max()
            .unwrap_or(0);
        3 * tile + acts
    }

    fn produce(&self, kernels: &dyn Kernels, rows: Range<usize>, out: &mut [u8]) -> Result<Moved> {
        Ok(self.segments(kernels, rows, out, None)?.0)
    }

    fn produce_and_guess(
        &self,
        kernels: &dyn Kernels,
        rows: Range<usize>,
        out: &mut [u8],
        guess: &mut Guess,
    ) -> Result<(Moved, bool)> {
        guess.reset(rows.len(), self.grid.cols);
        self.segments(kernels, rows, out, Some(guess))
    }

    /// Scales are found from all rows, and what became of them is told.
    fn can_be_taken_up(&self) -> bool {
        !matches!(self.scaling, Scaling::Fitted(_))
    }

    fn release(&self, rows: Range<usize>) {
        self.let_go(&rows);
        self.finished(rows.len());
    }
}
