//! A matrix in device memory and the vectors of an iteration on it, for the decompositions of `kernels::truncated`.
//!
//! Two numbers for a matrix [m, n] and L vectors: its stored elements cross the bus once, 4·m·n bytes where two models of
//! 16 bits are compared, and the factors come back; the products take 4·m·n·L operations and read the matrix in f32 from
//! device memory once for each of them. Coefficients of some hundred vectors in f64 go to the host and back.
//!
//! Where the matrix does not fit, it stays on the host and crosses the bus in tiles, once for each pass.

use std::cell::RefCell;
use std::ops::Range;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use super::blas::{Digits, Mat};
use super::fault::{Done, Fault};
use super::lane::{Arg, Buffer, CHUNK, Lane, Routine};
use super::{number_of, solve};
use crate::error::{Error, Kind, Result};
use crate::kernels::truncated::field::{Field, out_of_range, unit_of};
use crate::kernels::truncated::random;
use crate::kernels::{Depth, Eigen, Kernels, OpenBlas, RowSource, Stored, Wanted};

/// Where stored elements of any type may begin.
const ALIGNMENT: usize = 16;
/// Symmetric matrices up to this order are decomposed on the host: a device takes longer for so many small steps.
const SMALL_ORDER: usize = 512;
/// Vectors that are reckoned with where the rule does not say how many.
const USUAL_RANK: usize = 64;

/// Vectors in device memory, one behind the other.
pub struct Stack<'l> {
    buffer: Buffer<'l>,
    count: usize,
    length: usize,
}

impl Stack<'_> {
    fn mat(&self) -> Mat {
        Mat::new(self.buffer.at, self.count, self.length)
    }
}

/// The matrix and its lane.
pub struct OnDevice<'l> {
    lane: &'l Lane,
    d: &'l dyn RowSource,
    /// The matrix in f32, where it is held.
    held: Option<Buffer<'l>>,
    is_loaded: bool,
    /// Bytes of f32 of a tile.
    tile: usize,
    tf32: bool,
    energy: f64,
    unit: Option<f32>,
    passes: usize,
    /// What went wrong on the device, for the caller to act on.
    fault: RefCell<Option<Fault>>,
}

/// Bytes of device memory that a decomposition takes beside the matrix itself, at most; with `times` as many vectors as
/// are usual, for rules that may want more. A tile has so many bytes.
pub fn workspace((m, n): (usize, usize), wanted: Option<&Wanted>, times: usize, tile: usize) -> u64 {
    let (long, short) = (m.max(n) as u64, m.min(n) as u64);
    let tiles = 4 * (tile.max(8 * n.max(m)) + CHUNK) as u64;
    let Some(wanted) = wanted else { return 6 * 8 * short * short + 2 * 4 * short * long + tiles };
    let rank = match wanted.depth {
        Depth::Rank(rank) => rank.min(wanted.ceiling),
        _ => USUAL_RANK.min(wanted.ceiling).saturating_mul(times),
    };
    let vectors = (6 * (rank as u64).min(short) + 96).min(short);
    // Bases on both sides and what is made of them, and one side of them in f64.
    3 * 4 * vectors * (m + n) as u64 + 2 * 8 * vectors * long + tiles
}

/// What is done with some rows of the matrix, which are at a place in device memory.
type OnRows<'a, F> = dyn FnMut(&F, Range<usize>, u64) -> Done<()> + 'a;

impl<'l> OnDevice<'l> {
    /// Nothing is read yet. With `hold` the matrix is kept in device memory, else it is read in tiles of so many bytes.
    pub fn new(lane: &'l Lane, d: &'l dyn RowSource, (hold, tile): (bool, usize), tf32: bool) -> Done<Self> {
        let (m, n) = d.dim();
        let held = if hold { Some(lane.room::<f32>(m * n)?) } else { None };
        let fault = RefCell::new(None);
        Ok(OnDevice { lane, d, held, is_loaded: false, tile, tf32, energy: 0.0, unit: None, passes: 0, fault })
    }

    /// What went wrong on the device, where it was that.
    pub fn fault(self) -> Option<Fault> {
        self.fault.into_inner()
    }

    /// A result for callers that know errors only.
    fn told<T>(&self, done: Done<T>) -> Result<T> {
        done.map_err(|fault| match fault {
            Fault::Input(error) => error,
            fault => {
                let error = Error::new(Kind::Limit, format!("the device: {fault:?}"));
                self.fault.borrow_mut().get_or_insert(fault);
                error
            }
        })
    }

    fn stack(&self, count: usize, length: usize) -> Done<Stack<'l>> {
        Ok(Stack { buffer: self.lane.room::<f32>(count * length)?, count, length })
    }

    // --- reading -------------------------------------------------------------------------------------------------

    /// Calls `f` with all rows where they are held, else with tile after tile. The first time the squares of the rows'
    /// lengths are added up.
    fn for_each(&mut self, f: &mut OnRows<Self>) -> Done<()> {
        let (m, n) = self.d.dim();
        if m == 0 || n == 0 {
            return Ok(());
        }
        if let Some(at) = self.held.as_ref().map(|held| held.at) {
            if !self.is_loaded {
                self.energy = self.load(0..m, at)?;
                self.is_loaded = true;
            }
            return f(self, 0..m, at);
        }
        let height = (self.tile / (4 * n)).max(1);
        let tile = self.lane.room::<f32>(height.min(m) * n)?;
        let mut energy = 0.0;
        for start in (0..m).step_by(height) {
            let rows = start..(start + height).min(m);
            energy += self.load(rows.clone(), tile.at)?;
            f(self, rows, tile.at)?;
        }
        self.energy = energy;
        Ok(())
    }

    /// Brings some rows to a place in device memory, in f32. ‖rows‖², or an error that names a row that is not finite.
    fn load(&self, rows: Range<usize>, to: u64) -> Done<f64> {
        let cols = self.d.dim().1;
        let squares = self.lane.room::<f64>(rows.len())?;
        let staging = self.lane.room::<u8>(CHUNK)?;
        let mut start = rows.start;
        while start < rows.end {
            let (values, sums) =
                (to + (4 * (start - rows.start) * cols) as u64, squares.at + 8 * (start - rows.start) as u64);
            // Rows of f64 take the most.
            let most = (CHUNK / 16 / cols).max(1).min(rows.end - start);
            let part = match self.d.stored(start..start + most) {
                Some(Stored { after, before }) => {
                    let width = (after.1.len() + before.1.len()) / most;
                    if width == 0 || width > CHUNK - ALIGNMENT {
                        return Err(Fault::Full);
                    }
                    let part = start..(start + (CHUNK - ALIGNMENT) / width).min(rows.end);
                    self.subtract(part.clone(), &staging, (values, sums))?;
                    part
                }
                None => {
                    if 4 * cols > CHUNK {
                        return Err(Fault::Full);
                    }
                    let part = start..(start + CHUNK / (4 * cols)).min(rows.end);
                    self.lane.send(values, 4 * part.len() * cols, |pinned| self.read(part.clone(), pinned))?;
                    let args = [Arg::At(values), Arg::At(sums), Arg::Long(cols as u64)];
                    self.lane.launch(Routine::SquaresOfRows, (part.len(), 1), &args)?;
                    part
                }
            };
            start = part.end;
        }
        let squares: Vec<f64> = self.lane.download(squares.at, rows.len())?;
        if let Some(i) = squares.iter().position(|square| !square.is_finite()) {
            let what = format!("row {} has NaN or infinity", rows.start + i);
            return Err(Fault::Input(Error::new(Kind::Nonfinite, what)));
        }
        Ok(squares.iter().sum())
    }

    /// The difference of stored rows, formed on the device.
    fn subtract(&self, rows: Range<usize>, staging: &Buffer, (values, sums): (u64, u64)) -> Done<()> {
        let Some(Stored { after, before }) = self.d.stored(rows.clone()) else { return Err(Fault::Full) };
        let (first, second) = (after.1.len(), before.1.len());
        // Each begins where any element may.
        let gap = first.next_multiple_of(ALIGNMENT);
        if gap + second > staging.len() {
            return Err(Fault::Full);
        }
        self.lane.send(staging.at, gap + second, |pinned| {
            pinned[..first].copy_from_slice(after.1);
            pinned[gap..].copy_from_slice(before.1);
            Ok(())
        })?;
        let args = [
            Arg::At(staging.at),
            Arg::Int(number_of(after.0)),
            Arg::At(staging.at + gap as u64),
            Arg::Int(number_of(before.0)),
            Arg::At(values),
            Arg::At(sums),
            Arg::Long(self.d.dim().1 as u64),
        ];
        self.lane.launch(Routine::Subtract, (rows.len(), 1), &args)?;
        self.d.release(rows);
        Ok(())
    }

    /// Rows in f32 as the source gives them.
    fn read(&self, rows: Range<usize>, bytes: &mut [u8]) -> Done<()> {
        let dim = (rows.len(), self.d.dim().1);
        // SAFETY: pinned memory is aligned to pages; every pattern of bits is a value.
        let (_, values, _) = unsafe { bytes.align_to_mut::<f32>() };
        let out = ArrayViewMut2::from_shape(dim, values).map_err(|e| Fault::Input(Error::mismatch(e.to_string())))?;
        self.d.read(rows, out).map_err(Fault::Input)
    }

    // --- sums ----------------------------------------------------------------------------------------------------

    /// The squares of the lengths of rows.
    fn squares(&self, rows: Mat) -> Done<Vec<f64>> {
        let squares = self.lane.room::<f64>(rows.rows)?;
        let args = [Arg::At(rows.at), Arg::At(squares.at), Arg::Long(rows.cols as u64)];
        self.lane.launch(Routine::SquaresOfRows, (rows.rows, 1), &args)?;
        self.lane.download(squares.at, rows.rows)
    }

    /// Some columns in f64.
    fn widened(&self, from: Mat, cols: Range<usize>) -> Done<Buffer<'l>> {
        let count = from.rows * cols.len();
        let out = self.lane.room::<f64>(count)?;
        let args = [
            Arg::At(from.at + 4 * cols.start as u64),
            Arg::Long(from.stride as u64),
            Arg::At(out.at),
            Arg::Long(cols.len() as u64),
            Arg::Long(count as u64),
        ];
        self.lane.each(Routine::Widen, count, &args)?;
        Ok(out)
    }

    fn inner_products(&self, a: &Stack, b: &Stack) -> Done<Array2<f64>> {
        let (lane, length) = (self.lane, a.length);
        let out = lane.filled_by_product::<f64>(a.count * b.count, length)?;
        let wide_a = self.widened(a.mat(), 0..length)?;
        let own_b = if a.buffer.at == b.buffer.at { None } else { Some(self.widened(b.mat(), 0..length)?) };
        let wide_b = own_b.as_ref().map_or(wide_a.at, |b| b.at);
        let (x, y) = (Mat::new(wide_a.at, a.count, length), Mat::new(wide_b, b.count, length));
        lane.gemm_f64((x, y.t()), 0.0, Mat::new(out.at, a.count, b.count))?;
        let values = lane.download(out.at, a.count * b.count)?;
        Array2::from_shape_vec((a.count, b.count), values).map_err(|e| Error::mismatch(e.to_string()).into())
    }

    fn finite(&self, stack: &Stack) -> Done<()> {
        if self.squares(stack.mat())?.iter().all(|square| square.is_finite()) {
            return Ok(());
        }
        Err(Fault::Input(out_of_range()))
    }

    // --- products ------------------------------------------------------------------------------------------------

    /// `y = new · dᵀ` and, where asked for, `z = unit · y · d`.
    fn products(&mut self, digits: Digits, new: &Stack, both: bool) -> Done<(Stack<'l>, Option<Stack<'l>>)> {
        let ((m, n), lane) = (self.d.dim(), self.lane);
        let y = self.stack(new.count, m)?;
        let z = if both {
            Some(Stack { buffer: lane.zeros::<f32>(new.count * n)?, count: new.count, length: n })
        } else {
            None
        };
        let mut unit = self.unit;
        self.for_each(&mut |of, rows, at| {
            let d = Mat::new(at, rows.len(), n);
            let part = Mat { at: y.buffer.at + 4 * rows.start as u64, cols: rows.len(), ..y.mat() };
            lane.gemm(digits, 1.0, (new.mat(), d.t()), 0.0, part)?;
            let Some(z) = &z else { return Ok(()) };
            // Of tiles the first that is not zero says what is near one.
            unit = unit.or_else(|| if of.held.is_some() { unit_of(of.energy) } else { None });
            if unit.is_none() {
                unit = unit_of(of.squares(d)?.iter().sum());
            }
            let Some(factor) = unit else { return Ok(()) };
            let count = new.count * rows.len();
            let scaled = lane.room::<f32>(count)?;
            let args = [
                Arg::At(part.at),
                Arg::Long(m as u64),
                Arg::Float(factor),
                Arg::At(scaled.at),
                Arg::Long(rows.len() as u64),
                Arg::Long(count as u64),
            ];
            lane.each(Routine::Scale, count, &args)?;
            lane.gemm(digits, 1.0, (Mat::new(scaled.at, new.count, rows.len()), d), 1.0, z.mat())
        })?;
        self.unit = unit;
        Ok((y, z))
    }

    fn residual_of(&mut self, u: &Stack, s: &[f64], v: &Stack) -> Done<f64> {
        let ((m, n), lane) = (self.d.dim(), self.lane);
        let factors: Vec<f32> = s.iter().map(|&s| s as f32).collect();
        let factors = lane.upload(&factors)?;
        let us = self.stack(u.count, m)?;
        let count = u.count * m;
        let args = [
            Arg::At(u.buffer.at),
            Arg::At(factors.at),
            Arg::At(us.buffer.at),
            Arg::Long(m as u64),
            Arg::Long(count as u64),
        ];
        lane.each(Routine::ScaleRows, count, &args)?;
        let mut sum = 0.0;
        self.for_each(&mut |of, rows, at| {
            let height = (of.tile / (4 * n)).clamp(1, rows.len());
            let rest = lane.room::<f32>(height * n)?;
            for start in rows.clone().step_by(height) {
                let part = start..(start + height).min(rows.end);
                lane.copy(at + (4 * (start - rows.start) * n) as u64, rest.at, 4 * part.len() * n)?;
                let left = Mat { at: us.buffer.at + 4 * start as u64, cols: part.len(), ..us.mat() };
                let rest = Mat::new(rest.at, part.len(), n);
                lane.gemm(Digits::All, -1.0, (left.t(), v.mat()), 1.0, rest)?;
                sum += of.squares(rest)?.iter().sum::<f64>();
            }
            Ok(())
        })?;
        Ok(sum)
    }

    /// Inner products of columns or of rows, in f64.
    fn gram_of(&mut self) -> Done<Array2<f64>> {
        let ((m, n), lane) = (self.d.dim(), self.lane);
        let short = m.min(n);
        let out = lane.zeros::<f64>(short * short)?;
        let gram = Mat::new(out.at, short, short);
        if m < n && self.held.is_none() {
            return Err(Fault::Full); // every row is needed beside every other
        }
        self.for_each(&mut |of, rows, at| {
            let d = Mat::new(at, rows.len(), n);
            // Panels of f64 with as many bytes as a tile, along the longer side.
            let (along, across) = if m >= n { (rows.len(), n) } else { (n, m) };
            let step = (of.tile / (8 * across)).max(1);
            for start in (0..along).step_by(step) {
                let part = start..(start + step).min(along);
                if m >= n {
                    let panel = Mat { at: at + (4 * start * n) as u64, rows: part.len(), ..d };
                    let wide = of.widened(panel, 0..n)?;
                    let wide = Mat::new(wide.at, part.len(), n);
                    lane.gemm_f64((wide.t(), wide), 1.0, gram)?;
                } else {
                    let wide = of.widened(d, part.clone())?;
                    let wide = Mat::new(wide.at, m, part.len());
                    lane.gemm_f64((wide, wide.t()), 1.0, gram)?;
                }
            }
            Ok(())
        })?;
        let values = lane.download(out.at, short * short)?;
        Array2::from_shape_vec((short, short), values).map_err(|e| Error::mismatch(e.to_string()).into())
    }

    fn transposed_product(&mut self, stack: &Stack) -> Done<Stack<'l>> {
        let (n, lane) = (self.d.dim().1, self.lane);
        let out = Stack { buffer: lane.zeros::<f32>(stack.count * n)?, count: stack.count, length: n };
        self.for_each(&mut |_, rows, at| {
            let part = Mat { at: stack.buffer.at + 4 * rows.start as u64, cols: rows.len(), ..stack.mat() };
            lane.gemm(Digits::All, 1.0, (part, Mat::new(at, rows.len(), n)), 1.0, out.mat())
        })?;
        Ok(out)
    }

    // --- stacks --------------------------------------------------------------------------------------------------

    fn copied(&self, parts: &[(&Stack, Range<usize>)], length: usize) -> Done<Stack<'l>> {
        let out = self.stack(parts.iter().map(|(_, range)| range.len()).sum(), length)?;
        let mut at = out.buffer.at;
        for (stack, range) in parts {
            let bytes = 4 * range.len() * length;
            self.lane.copy(stack.buffer.at + (4 * range.start * length) as u64, at, bytes)?;
            at += bytes as u64;
        }
        Ok(out)
    }

    fn turned_stack(&self, coefficients: ArrayView2<f32>, stack: &Stack) -> Done<Stack<'l>> {
        let out = Stack {
            buffer: self.lane.filled_by_product::<f32>(coefficients.nrows() * stack.length, stack.count)?,
            count: coefficients.nrows(),
            length: stack.length,
        };
        let values: Vec<f32> = coefficients.iter().copied().collect();
        let held = self.lane.upload(&values)?;
        let left = Mat::new(held.at, coefficients.nrows(), coefficients.ncols());
        self.lane.gemm(Digits::All, 1.0, (left, stack.mat()), 0.0, out.mat())?;
        Ok(out)
    }

    fn without(&self, before: &Stack, z: &Stack) -> Done<()> {
        if before.count == 0 || z.count == 0 {
            return Ok(());
        }
        let along = self.lane.room::<f32>(z.count * before.count)?;
        let along = Mat::new(along.at, z.count, before.count);
        self.lane.gemm(Digits::All, 1.0, (z.mat(), before.mat().t()), 0.0, along)?;
        self.lane.gemm(Digits::All, -1.0, (along, before.mat()), 1.0, z.mat())
    }

    fn at_length_one(&self, stack: &Stack) -> Done<Vec<f64>> {
        let lengths: Vec<f64> = self.squares(stack.mat())?.iter().map(|square| square.sqrt()).collect();
        if !lengths.iter().all(|length| length.is_finite()) {
            return Err(Fault::Input(out_of_range()));
        }
        let count = stack.count * stack.length;
        let held = self.lane.upload(&lengths)?;
        let args =
            [Arg::At(stack.buffer.at), Arg::At(held.at), Arg::Long(stack.length as u64), Arg::Long(count as u64)];
        self.lane.each(Routine::DivideRows, count, &args)?;
        Ok(lengths)
    }
}

impl<'l> Field for OnDevice<'l> {
    type Stack = Stack<'l>;

    fn dim(&self) -> (usize, usize) {
        self.d.dim()
    }

    fn count(&self, stack: &Stack<'l>) -> usize {
        stack.count
    }

    fn nothing(&self, length: usize) -> Result<Stack<'l>> {
        self.told(self.stack(0, length))
    }

    fn normals(&self, seed: u64, stream: u64, (count, length): (usize, usize)) -> Result<Stack<'l>> {
        let made = || {
            let out = self.stack(count, length)?;
            let (state, count) = (random::start(seed, stream), count * length);
            self.lane.each(
                Routine::Normals,
                count,
                &[Arg::At(out.buffer.at), Arg::Long(state), Arg::Long(count as u64)],
            )?;
            Ok(out)
        };
        self.told(made())
    }

    fn part(&self, stack: &Stack<'l>, first: usize, count: usize) -> Result<Stack<'l>> {
        self.told(self.copied(&[(stack, first..first + count)], stack.length))
    }

    fn picked(&self, stack: &Stack<'l>, order: &[usize]) -> Result<Stack<'l>> {
        let parts: Vec<_> = order.iter().map(|&i| (stack, i..i + 1)).collect();
        self.told(self.copied(&parts, stack.length))
    }

    fn joined(&self, first: &Stack<'l>, second: &Stack<'l>) -> Result<Stack<'l>> {
        self.told(self.copied(&[(first, 0..first.count), (second, 0..second.count)], first.length))
    }

    fn pass(&mut self, new: &Stack<'l>) -> Result<(Stack<'l>, Stack<'l>)> {
        let made = self.products(Digits::Few, new, true);
        let (y, z) = self.told(made)?;
        let z = match z {
            Some(z) => z,
            None => self.nothing(self.d.dim().1)?,
        };
        self.passes += 1;
        self.told(self.finite(&y).and_then(|()| self.finite(&z)))?;
        Ok((y, z))
    }

    fn scale(&self) -> (f64, Option<f32>) {
        (self.energy, self.unit)
    }

    fn inner(&self, a: &Stack<'l>, b: &Stack<'l>) -> Result<Array2<f64>> {
        self.told(self.inner_products(a, b))
    }

    fn project_out(&self, before: &Stack<'l>, z: &mut Stack<'l>) -> Result<()> {
        self.told(self.without(before, z))
    }

    fn turned(&self, coefficients: ArrayView2<f32>, stack: &Stack<'l>) -> Result<Stack<'l>> {
        self.told(self.turned_stack(coefficients, stack))
    }

    fn sum(&self, first: Stack<'l>, second: &Stack<'l>) -> Result<Stack<'l>> {
        let count = first.count * first.length;
        let args = [Arg::At(first.buffer.at), Arg::At(second.buffer.at), Arg::Long(count as u64)];
        self.told(self.lane.each(Routine::Add, count, &args))?;
        Ok(first)
    }

    fn reflected(&self, z: &Stack<'l>) -> Result<(Stack<'l>, Array2<f64>)> {
        let made = || {
            let q = self.copied(&[(z, 0..z.count)], z.length)?;
            let r = solve::qr_of_rows(self.lane, q.mat())?;
            Ok((q, r.mapv(f64::from)))
        };
        self.told(made())
    }

    fn size(&self, stack: &Stack<'l>) -> Result<f64> {
        Ok(self.told(self.squares(stack.mat()))?.iter().sum::<f64>().sqrt())
    }

    fn gram(&mut self) -> Result<(Array2<f64>, f64, usize)> {
        let made = self.gram_of();
        let gram = self.told(made)?;
        Ok((gram, self.energy, 1))
    }

    fn times(&mut self, stack: &Stack<'l>) -> Result<Stack<'l>> {
        let made = self.products(Digits::All, stack, false);
        Ok(self.told(made)?.0)
    }

    fn transposed_times(&mut self, stack: &Stack<'l>) -> Result<Stack<'l>> {
        let made = self.transposed_product(stack);
        self.told(made)
    }

    fn eigenvalues(&self, a: ArrayView2<f64>) -> Result<Vec<f64>> {
        if a.nrows() <= SMALL_ORDER {
            return OpenBlas::new().eigenvalues(a);
        }
        Ok(self.told(solve::eigh(self.lane, a, 0))?.values)
    }

    fn eigh(&self, a: ArrayView2<f64>, most: usize) -> Result<Eigen> {
        if a.nrows() <= SMALL_ORDER {
            return OpenBlas::new().eigh(a, most);
        }
        self.told(solve::eigh(self.lane, a, most))
    }

    fn is_rough(&self) -> bool {
        self.tf32
    }

    fn unit(&self, stack: Stack<'l>) -> Result<(Stack<'l>, Vec<f64>)> {
        let lengths = self.told(self.at_length_one(&stack))?;
        Ok((stack, lengths))
    }

    fn residual(&mut self, u: &Stack<'l>, s: &[f64], v: &Stack<'l>) -> Result<f64> {
        let made = self.residual_of(u, s, v);
        self.told(made)
    }

    fn to_host(&self, stack: &Stack<'l>) -> Result<Array2<f32>> {
        let values: Vec<f32> = self.told(self.lane.download(stack.buffer.at, stack.count * stack.length))?;
        if !values.iter().all(|v| v.is_finite()) {
            return Err(out_of_range());
        }
        Array2::from_shape_vec((stack.count, stack.length), values).map_err(|e| Error::mismatch(e.to_string()))
    }

    fn of_host(&self, rows: Array2<f32>) -> Result<Stack<'l>> {
        let (count, length) = rows.dim();
        let values: Vec<f32> = rows.iter().copied().collect();
        let made = self.lane.upload(&values);
        Ok(Stack { buffer: self.told(made)?, count, length })
    }

    fn require_finite(&self, stack: &Stack<'l>) -> Result<()> {
        self.told(self.finite(stack))
    }
}
