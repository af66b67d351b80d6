//! A matrix of the model in memory, read from wherever its parts lie on disk.

use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayViewMut2;

use crate::error::{Error, Result};
use crate::kernels::{Element, RowSource, Stored};
use crate::model::BaseModel;
use crate::names::{Found, Piece};
use crate::tensor::{Dtype, Scales, Shape, Tensor, cast};

/// Elements that are widened at a time beside others, small enough to stay in the first cache.
const CHUNK: usize = 1 << 12;
/// Tensors above this size are let go block by block, others when all is done: reading pages again takes time.
const LARGE_BYTES: usize = 64 << 20;

/// One matrix: a tensor by itself, or one of a stack.
#[derive(Clone, Debug)]
pub struct View {
    rows: usize,
    cols: usize,
    parts: Vec<Part>,
}

/// Elements that lie behind one another on disk.
struct Run<'a> {
    /// Where the first goes, and how far apart they go.
    at: usize,
    step: usize,
    /// Their type and their bytes.
    dtype: Dtype,
    bytes: &'a [u8],
    /// Which of the tensor's elements the first is, and what they are multiplied by.
    first: usize,
    scales: Option<&'a Scales>,
}

impl Run<'_> {
    fn len(&self) -> usize {
        self.bytes.len() * 8 / self.dtype.bitsize()
    }

    fn widen(&self, out: &mut [f32]) -> Result<()> {
        cast::widen(self.dtype, self.bytes, out)?;
        if let Some(scales) = self.scales {
            scales.multiply(self.first, out);
        }
        Ok(())
    }
}

/// Is shown a run.
type Show<'a> = dyn FnMut(Run) -> Result<()> + 'a;

/// A rectangle of the matrix and where it lies.
#[derive(Clone, Debug)]
struct Part {
    tensor: Tensor,
    /// What its elements are multiplied by.
    scales: Option<Arc<Scales>>,
    /// Rows and columns of the matrix.
    rows: Range<usize>,
    cols: Range<usize>,
    /// The element of the tensor that is its upper left corner, and the distance between rows there.
    start: usize,
    stride: usize,
    /// Whether the tensor has it the other way round.
    transposed: bool,
    /// Columns of the whole matrix.
    width: usize,
}

impl View {
    /// The tensor that was found, as a matrix; of a stack the matrix number `expert`.
    pub fn new(model: &BaseModel, found: &Found, expert: Option<usize>) -> Result<View> {
        let (rows, cols) = match (expert, found.memory_shape.as_slice()) {
            (Some(_), &[_, rows, cols]) => (rows, cols),
            (None, dims) => Shape::from(dims).matrix(),
            (Some(_), dims) => return Err(Error::mismatch(format!("{dims:?} is no stack of matrices"))),
        };
        let here = |p: &&Piece| p.memory.expert.is_none() || p.memory.expert == expert;
        let part = |p: &Piece| Part::new(model, p, expert, (rows, cols));
        let parts = found.pieces.iter().filter(here).map(part).collect::<Result<Vec<_>>>()?;
        let covered: usize = parts.iter().map(|p| p.rows.len() * p.cols.len()).sum();
        if covered != rows * cols {
            return Err(Error::mismatch(format!("its parts make up {covered} of {rows} × {cols} elements")));
        }
        Ok(View { rows, cols, parts })
    }

    /// Rows and columns.
    pub fn dim(&self) -> (usize, usize) {
        (self.rows, self.cols)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| (p.rows.len() * p.cols.len() * p.size()) as u64).sum()
    }

    /// The stored elements where they lie one after the other, and their type.
    pub fn contiguous(&self) -> Option<(Dtype, &[u8])> {
        let [part] = self.parts.as_slice() else { return None };
        let all = self.rows * self.cols * part.size();
        let start = part.start * part.size();
        let whole = !part.transposed && part.stride == self.cols;
        whole.then(|| part.tensor.bytes.as_slice().get(start..start + all)).flatten().map(|b| (part.tensor.dtype, b))
    }

    /// The stored elements of some rows, where they are numbers as they stand and lie one after the other.
    fn stored(&self, rows: &Range<usize>) -> Option<(Element, &[u8])> {
        let [part] = self.parts.as_slice() else { return None };
        let (dtype, all) = self.contiguous()?;
        let element = Element::of(dtype).filter(|_| part.scales.is_none())?;
        let row = self.cols * element.bytes();
        all.get(rows.start * row..rows.end * row).map(|bytes| (element, bytes))
    }

    /// Whether elements of the other are multiplied by the same numbers, if it has the same form.
    pub fn is_scaled_like(&self, other: &View) -> bool {
        let same = |(a, b): (&Part, &Part)| match (&a.scales, &b.scales) {
            (Some(a), Some(b)) => a.is_same(b),
            (None, None) => true,
            _ => false,
        };
        self.parts.len() == other.parts.len() && self.parts.iter().zip(&other.parts).all(same)
    }

    /// Whether differences have to be taken in f64.
    fn is_double(&self) -> bool {
        self.parts.iter().any(|p| p.tensor.dtype == Dtype::F64)
    }

    /// The rows `rows` as f32, one after the other.
    pub fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let mut buffer = Vec::new();
        self.parts.iter().try_for_each(|part| {
            part.each_run(&rows, &mut |run| {
                if run.step == 1 {
                    return run.widen(&mut out[run.at..run.at + run.len()]);
                }
                buffer.resize(run.len(), 0.0);
                run.widen(&mut buffer)?;
                buffer.iter().enumerate().for_each(|(i, &v)| out[run.at + i * run.step] = v);
                Ok(())
            })
        })
    }

    /// The rows `rows` as f64, one after the other; exact.
    pub fn read_f64(&self, rows: Range<usize>, out: &mut [f64]) -> Result<()> {
        self.parts.iter().try_for_each(|part| {
            part.each_run(&rows, &mut |run| {
                let mut values = cast::widen_f64(run.dtype, run.bytes)?;
                if let Some(scales) = run.scales {
                    scales.multiply_f64(run.first, &mut values);
                }
                values.iter().enumerate().for_each(|(i, &v)| out[run.at + i * run.step] = v);
                Ok(())
            })
        })
    }

    /// Says that all of it is read next.
    pub fn fetch(&self) {
        self.parts.iter().for_each(|p| p.tensor.bytes.fetch(p.range(&(0..self.rows))));
    }

    /// Lets its pages go.
    pub fn release(&self) {
        self.parts.iter().for_each(|p| p.tensor.bytes.release(p.range(&(0..self.rows))));
    }

    /// Lets the pages of some rows go, where they are many in all.
    pub fn release_rows(&self, rows: &Range<usize>) {
        let large = self.parts.iter().filter(|p| p.tensor.bytes.len() > LARGE_BYTES && !p.transposed);
        large.for_each(|p| p.tensor.bytes.release(p.range(rows)));
    }
}

impl Part {
    fn new(model: &BaseModel, piece: &Piece, expert: Option<usize>, (rows, cols): (usize, usize)) -> Result<Part> {
        let missing = || Error::missing("no tensor of this name").at_key(&piece.key);
        let tensor = model.tensor(&piece.key).ok_or_else(missing)?.1.clone();
        if tensor.dtype.bitsize() < 8 {
            return Err(Error::unsupported(format!("{} elements of less than a byte", tensor.dtype)).at_key(&piece.key));
        }
        // All of a stack lies in all of a tensor: then its matrices have the same numbers in both.
        let number = piece.disk.expert.or(expert.filter(|_| piece.memory.expert.is_none()));
        let (height, width) = match (number, tensor.shape.dims()) {
            (Some(_), &[_, height, width]) => (height, width),
            (None, _) => tensor.shape.matrix(),
            (Some(_), dims) => return Err(Error::mismatch(format!("{dims:?} is no stack")).at_key(&piece.key)),
        };
        let from = (piece.disk.rows.clone().unwrap_or(0..height), piece.disk.cols.clone().unwrap_or(0..width));
        let to = (piece.memory.rows.clone().unwrap_or(0..rows), piece.memory.cols.clone().unwrap_or(0..cols));
        let lies = if piece.transposed { (from.1.len(), from.0.len()) } else { (from.0.len(), from.1.len()) };
        let first = number.unwrap_or(0) * height * width + from.0.start * width + from.1.start;
        let last = (number.unwrap_or(0) * height + from.0.end.max(1) - 1) * width + from.1.end;
        if lies != (to.0.len(), to.1.len()) || last > tensor.elements() || to.0.end > rows || to.1.end > cols {
            return Err(Error::mismatch(format!("{} does not fit its place", tensor.shape)).at_key(&piece.key));
        }
        let scales = model.scaled().of(&piece.key)?;
        Ok(Part {
            tensor,
            scales,
            rows: to.0,
            cols: to.1,
            start: first,
            stride: width,
            transposed: piece.transposed,
            width: cols,
        })
    }

    /// Bytes of an element.
    fn size(&self) -> usize {
        self.tensor.dtype.bitsize() / 8
    }

    /// The bytes between the first and the last element of some rows.
    fn range(&self, rows: &Range<usize>) -> Range<usize> {
        let size = self.size();
        let rows = rows.start.max(self.rows.start)..rows.end.min(self.rows.end);
        if rows.is_empty() || self.cols.is_empty() {
            return 0..0;
        }
        let (from, to) = (rows.start - self.rows.start, rows.end - self.rows.start);
        let (first, last) = if self.transposed {
            (self.start, self.start + (self.cols.len() - 1) * self.stride + to)
        } else {
            (self.start + from * self.stride, self.start + (to - 1) * self.stride + self.cols.len())
        };
        first * size..last * size
    }

    /// Shows every run of elements that lie in a row on disk and belong to `rows`: where the first goes in these rows of
    /// the matrix, how far the next is from it there, and the bytes.
    fn each_run(&self, rows: &Range<usize>, show: &mut Show) -> Result<()> {
        let (size, dtype, bytes) = (self.size(), self.tensor.dtype, self.tensor.bytes.as_slice());
        let here = rows.start.max(self.rows.start)..rows.end.min(self.rows.end);
        if here.is_empty() {
            return Ok(());
        }
        let width = self.width;
        let place = |row: usize, col: usize| (row - rows.start) * width + col;
        let mut run = |start: usize, count: usize, at: usize, step: usize| {
            let (bytes, scales) = (&bytes[start * size..(start + count) * size], self.scales.as_deref());
            show(Run { at, step, dtype, bytes, first: start, scales })
        };
        let first = here.start - self.rows.start;
        if self.transposed {
            return self.cols.clone().enumerate().try_for_each(|(i, col)| {
                run(self.start + i * self.stride + first, here.len(), place(here.start, col), width)
            });
        }
        if self.stride == width && self.cols.len() == width {
            return run(self.start + first * width, here.len() * width, place(here.start, 0), 1);
        }
        here.clone().enumerate().try_for_each(|(i, row)| {
            run(self.start + (first + i) * self.stride, self.cols.len(), place(row, self.cols.start), 1)
        })
    }
}

/// What was added to a matrix: one view less another.
pub struct Difference {
    /// The matrix before.
    pub before: View,
    /// The matrix after.
    pub after: View,
}

impl Difference {
    fn subtract(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let cols = self.after.cols;
        let step = (CHUNK / cols.max(1)).max(1);
        if self.before.is_double() || self.after.is_double() {
            for start in rows.clone().step_by(step) {
                let part = start..(start + step).min(rows.end);
                let (mut after, mut before) = (vec![0f64; part.len() * cols], vec![0f64; part.len() * cols]);
                self.after.read_f64(part.clone(), &mut after)?;
                self.before.read_f64(part.clone(), &mut before)?;
                let out = &mut out[(part.start - rows.start) * cols..(part.end - rows.start) * cols];
                out.iter_mut().zip(after.iter().zip(&before)).for_each(|(out, (a, b))| *out = (a - b) as f32);
            }
            return Ok(());
        }
        let mut scratch = vec![0f32; step.min(rows.len()) * cols];
        for start in rows.clone().step_by(step) {
            let part = start..(start + step).min(rows.end);
            let out = &mut out[(part.start - rows.start) * cols..(part.end - rows.start) * cols];
            let scratch = &mut scratch[..out.len()];
            self.after.read(part.clone(), out)?;
            self.before.read(part, scratch)?;
            out.iter_mut().zip(scratch).for_each(|(out, before)| *out -= *before);
        }
        Ok(())
    }
}

impl RowSource for Difference {
    fn dim(&self) -> (usize, usize) {
        self.after.dim()
    }

    fn stored(&self, rows: Range<usize>) -> Option<Stored<'_>> {
        Some(Stored { after: self.after.stored(&rows)?, before: self.before.stored(&rows)? })
    }

    fn release(&self, rows: Range<usize>) {
        self.before.release_rows(&rows);
        self.after.release_rows(&rows);
    }

    fn read(&self, rows: Range<usize>, mut out: ArrayViewMut2<f32>) -> Result<()> {
        let values = out.as_slice_mut().ok_or_else(|| Error::mismatch("rows that are not contiguous"))?;
        self.subtract(rows.clone(), values)?;
        self.release(rows);
        Ok(())
    }
}
