//! The merge step and its kin on a device, a call at a time: stored elements go over the bus and come back.
//!
//! Two numbers for a call of so many elements of s bytes and a rank r: 2·s bytes for each over the bus, half of them each
//! way, beside the factors; 2·r operations for each. At any rank the bus is what it takes.

use super::fault::{Done, Fault};
use super::lane::{Arg, Buffer, CHUNK, Lane, Plain, Routine, THREADS, bytes_of_mut};
use crate::kernels::tiles::LANES;
use crate::kernels::{Element, Moved, Term};

/// Rows that a thread of the step works on.
const ROWS: usize = 8;
/// Most blocks one below the other.
const MOST_DOWN: usize = 65_535;
/// Bytes of a term and of a block's counts, as in step.cu.
const TERM_BYTES: usize = 40;
const MOVED_BYTES: usize = 32;

/// Terms in device memory, with what they point to.
struct Held<'l> {
    table: Buffer<'l>,
    _factors: Vec<Buffer<'l>>,
}

/// Factors without the gaps between their rows.
fn packed(values: &[f32], stride: usize, rows: usize, cols: usize) -> Vec<f32> {
    (0..rows).flat_map(|i| values[i * stride..i * stride + cols].iter().copied()).collect()
}

fn hold<'l>(lane: &'l Lane, (rows, cols): (usize, usize), terms: &[Term]) -> Done<Held<'l>> {
    let (mut table, mut factors) = (Vec::with_capacity(terms.len() * TERM_BYTES), Vec::new());
    for term in terms {
        let put = |values: &[f32], stride: usize, rows: usize, cols: usize| {
            if stride == cols || rows < 2 {
                return lane.upload(&values[..rows * cols]);
            }
            lane.upload(&packed(values, stride, rows, cols))
        };
        let (a, b) = (put(term.a, term.a_stride, term.rank, cols)?, put(term.b, term.b_stride, rows, term.rank)?);
        let rank = u32::try_from(term.rank).map_err(|_| Fault::Full)?;
        table.extend([a.at, b.at, cols as u64, term.rank as u64].into_iter().flat_map(u64::to_le_bytes));
        table.extend(rank.to_le_bytes());
        table.extend(term.scale.to_le_bytes());
        factors.extend([a, b]);
    }
    Ok(Held { table: lane.upload(&table)?, _factors: factors })
}

/// Rows of a chunk, so that it fits a pinned buffer and a grid; none where a single row does not.
fn height(row_bytes: usize, rows: usize) -> Done<usize> {
    let height = (CHUNK / row_bytes.max(1)).min(MOST_DOWN * ROWS).min(rows);
    if height == 0 { Err(Fault::Full) } else { Ok(height) }
}

/// As [`add_products`](crate::kernels::Kernels::add_products). `w` is none where `out` has the weights.
pub fn add_products(
    lane: &Lane,
    element: Element,
    w: Option<&[u8]>,
    out: &mut [u8],
    (rows, cols): (usize, usize),
    terms: &[Term],
) -> Done<Moved> {
    let routine = match element {
        Element::F64 => Routine::StepF64,
        Element::F32 => Routine::StepF32,
        Element::F16 => Routine::StepF16,
        Element::BF16 => Routine::StepBf16,
    };
    let count = u32::try_from(terms.len()).map_err(|_| Fault::Full)?;
    let row_bytes = cols * element.bytes();
    let height = height(row_bytes, rows)?;
    let across = cols.div_ceil(THREADS);
    let mut moved = Moved { elements: rows as u64 * cols as u64, ..Moved::default() };
    let first_held = hold(lane, (rows, cols), terms)?;
    let (values, sums) =
        (lane.room::<u8>(height * row_bytes)?, lane.room::<u8>(height.div_ceil(ROWS) * across * MOVED_BYTES)?);
    for first in (0..rows).step_by(height) {
        let here = height.min(rows - first);
        let bytes = first * row_bytes..(first + here) * row_bytes;
        lane.put(values.at, w.map_or(&out[bytes.clone()], |w| &w[bytes.clone()]))?;
        // The rows of b begin with those of the chunk.
        let later;
        let table = if first == 0 {
            &first_held
        } else {
            later = hold(lane, (here, cols), &from_row(terms, first))?;
            &later
        };
        let args = [
            Arg::At(values.at),
            Arg::At(values.at),
            Arg::Long(here as u64),
            Arg::Long(cols as u64),
            Arg::Long(first as u64),
            Arg::Long(rows as u64),
            Arg::At(table.table.at),
            Arg::Int(count),
            Arg::At(sums.at),
        ];
        let down = here.div_ceil(ROWS);
        lane.launch(routine, (across, down), &args)?;
        lane.get(values.at, &mut out[bytes])?;
        let found: Vec<u8> = lane.download(sums.at, down * across * MOVED_BYTES)?;
        for block in found.as_chunks::<MOVED_BYTES>().0 {
            let word = |i: usize| block.as_chunks::<8>().0.get(i).copied().unwrap_or_default();
            moved.still += u64::from_le_bytes(word(0));
            moved.nonfinite += u64::from_le_bytes(word(1));
            moved.wanted += f64::from_le_bytes(word(2));
            moved.along += f64::from_le_bytes(word(3));
        }
    }
    Ok(moved.scaled_up(rows))
}

/// Terms from a row on.
fn from_row<'t>(terms: &[Term<'t>], first: usize) -> Vec<Term<'t>> {
    terms.iter().map(|t| Term { b: t.b.get(first * t.b_stride..).unwrap_or(&[]), ..*t }).collect()
}

/// The same on f32 in place.
pub fn add_products_to_tile(lane: &Lane, values: &mut [f32], dim: (usize, usize), terms: &[Term]) -> Done<Moved> {
    add_products(lane, Element::F32, None, bytes_of_mut(values), dim, terms)
}

/// Does `work` on chunks of whole rows in device memory, and brings them back: the place, the first row and the rows.
fn in_chunks<T: Plain>(
    lane: &Lane,
    values: &mut [T],
    (rows, cols): (usize, usize),
    work: impl Fn(u64, usize, usize) -> Done<()>,
) -> Done<()> {
    let height = height(cols * size_of::<T>(), rows)?;
    let held = lane.room::<T>(height * cols)?;
    for first in (0..rows).step_by(height) {
        let here = height.min(rows - first);
        let part = &mut values[first * cols..(first + here) * cols];
        lane.put(held.at, part)?;
        work(held.at, first, here)?;
        lane.get(held.at, part)?;
    }
    Ok(())
}

/// `values += scale · (d₀ · d₁)`, element by element, for the products of two terms.
pub fn add_hadamard(
    lane: &Lane,
    values: &mut [f32],
    (rows, cols): (usize, usize),
    scale: f32,
    terms: [Term; 2],
) -> Done<()> {
    in_chunks(lane, values, (rows, cols), |at, first, here| {
        let held = hold(lane, (here, cols), &from_row(&terms, first))?;
        let args =
            [Arg::At(at), Arg::Long(here as u64), Arg::Long(cols as u64), Arg::At(held.table.at), Arg::Float(scale)];
        lane.launch(Routine::Hadamard, (cols.div_ceil(THREADS), here.div_ceil(ROWS)), &args)
    })
}

/// `values += scale · [f₀ · block, f₁ · block …]`, block: [rows, width].
pub fn add_blocks(
    lane: &Lane,
    values: &mut [f32],
    rows: usize,
    (scale, factors): (f32, &[f32]),
    (block, width): (&[f32], usize),
) -> Done<()> {
    let cols = factors.len() * width;
    let factors = lane.upload(factors)?;
    in_chunks(lane, values, (rows, cols), |at, first, here| {
        let block = lane.upload(&block[first * width..(first + here) * width])?;
        let count = here * cols;
        let args = [
            Arg::At(at),
            Arg::Long(count as u64),
            Arg::Long(cols as u64),
            Arg::At(factors.at),
            Arg::Float(scale),
            Arg::At(block.at),
            Arg::Long(width as u64),
        ];
        lane.each(Routine::Blocks, count, &args)
    })
}

/// Adds products and brings every row to the length of its magnitude.
pub fn add_products_and_stretch(
    lane: &Lane,
    values: &mut [f32],
    (rows, cols): (usize, usize),
    terms: &[Term],
    magnitudes: &[f32],
) -> Done<()> {
    let count = u32::try_from(terms.len()).map_err(|_| Fault::Full)?;
    in_chunks(lane, values, (rows, cols), |at, first, here| {
        let across = cols.div_ceil(THREADS);
        let down = here.div_ceil(ROWS);
        if count > 0 {
            let held = hold(lane, (here, cols), &from_row(terms, first))?;
            let sums = lane.room::<u8>(down * across * MOVED_BYTES)?;
            let args = [
                Arg::At(at),
                Arg::At(at),
                Arg::Long(here as u64),
                Arg::Long(cols as u64),
                Arg::Long(0),
                Arg::Long(here as u64),
                Arg::At(held.table.at),
                Arg::Int(count),
                Arg::At(sums.at),
            ];
            lane.launch(Routine::StepF32, (across, down), &args)?;
        }
        let (squares, lengths) = (lane.room::<f64>(here)?, lane.upload(&magnitudes[first..first + here])?);
        let args = [Arg::At(at), Arg::At(squares.at), Arg::Long(here as u64), Arg::Long(cols as u64)];
        lane.each(Routine::SquaresInLanes, here * LANES, &args)?;
        let args = [
            Arg::At(at),
            Arg::At(squares.at),
            Arg::At(lengths.at),
            Arg::Long(cols as u64),
            Arg::Long((here * cols) as u64),
        ];
        lane.each(Routine::Stretch, here * cols, &args)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is reckoned with here is what the kernels' text says.
    #[test]
    fn the_text_has_the_same_numbers() {
        let (common, step) = (include_str!("common.cu"), include_str!("step.cu"));
        assert!(common.contains(&format!("#define THREADS {THREADS}\n")));
        assert!(step.contains(&format!("#define ROWS {ROWS}\n")));
        assert!(step.contains(&format!("#define LANES {LANES}\n")));
        // Two pointers, two u64, a u32 and a float; two u64 and two doubles.
        assert_eq!((TERM_BYTES, MOVED_BYTES), (4 * 8 + 2 * 4, 4 * 8));
        let sizes = |name: &str| step.split(name).nth(1).and_then(|rest| rest.split("};").next()).unwrap().to_string();
        assert_eq!(sizes("struct Term {").lines().filter(|l| l.contains(';')).count(), 6);
        assert_eq!(sizes("struct Moved {").lines().filter(|l| l.contains(';')).count(), 4);
    }
}
