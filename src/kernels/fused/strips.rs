//! The step in strips of columns, for any vector width. The part of every `a` that belongs to a strip is packed once a
//! call, in the order in which it is read; then each block of rows sweeps over the strip, a register block at a time.
//! After the layered design of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), with
//! the merge in place of the update of C.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null_mut;

use super::back::{Back, Packed};
use super::blocks::{self, Lanewise};
use super::lanes::{BF16, F16, F32, Kind, Lanes, MOST_COLS, MOST_ROWS};
use super::way::{Merge, Place, Unusual, Way};
use super::{Element, Found, Moved, Step, Term, Weights, plain, sample};

/// Most columns of a strip: longer ones gain nothing.
const STRIP_COLS: usize = 4096;
/// Bytes of packed `a` that stay in the cache near the core (L2) beside the weights that stream through it.
const STRIP_BYTES: usize = 512 << 10;

/// A cache line of packed values; its alignment is that of the widest vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// The packed strip, and behind it rows of a tile before their change; kept for the next call.
    static PACKED: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Runs a step in blocks of ROWS rows by VECTORS vectors.
///
/// # Safety
///
/// The processor has the features of `L`; the sizes of the step have been checked and none is zero.
#[inline(always)]
pub(super) unsafe fn run<L: Lanes, const ROWS: usize, const VECTORS: usize>(step: Step) -> Moved {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        match step.element {
            Element::BF16 => strips::<L, BF16, Merge, ROWS, VECTORS>(step),
            Element::F16 => strips::<L, F16, Merge, ROWS, VECTORS>(step),
            Element::F32 => strips::<L, F32, Merge, ROWS, VECTORS>(step),
            Element::F64 => plain::run(step),
        }
    }
}

/// As [`run`], for a step on bf16 with one term that says where its weights go when they are taken back.
///
/// # Safety
///
/// As for [`run`].
#[inline(always)]
pub(super) unsafe fn run_back<L: Packed, const MERGED: bool, const ROWS: usize, const VECTORS: usize>(
    step: Step,
) -> Moved {
    // SAFETY: the caller's promise is handed on.
    unsafe { strips::<L, BF16, Back<MERGED>, ROWS, VECTORS>(step) }
}

/// Where the weights of a step are.
struct Memory {
    w: *const u8,
    out: *mut u8,
    /// Bytes between rows.
    row: usize,
    /// Whether the result replaces the weights, so that a block works on a copy of them.
    replaced: bool,
    pairs: *mut u32,
    /// Words between rows of those.
    pairs_row: usize,
    /// A count for each row.
    counts: *mut u32,
    doubt: *mut u8,
    /// Bytes between rows of those.
    doubt_row: usize,
}

impl Memory {
    fn of<K: Kind>(weights: Weights, cols: usize, found: Option<&mut Found>) -> Memory {
        let row = cols.wrapping_mul(K::BYTES);
        let (w, out, replaced) = match weights {
            Weights::Apart { w, out } => (w.as_ptr(), out.as_mut_ptr(), false),
            Weights::Tile(values) => {
                let out = values.as_mut_ptr().cast::<u8>();
                (out.cast_const(), out, true)
            }
        };
        let mut memory = Memory {
            w,
            out,
            row,
            replaced,
            pairs: null_mut(),
            pairs_row: 0,
            counts: null_mut(),
            doubt: null_mut(),
            doubt_row: 0,
        };
        match found {
            None => {}
            Some(Found::Pairs { pairs, row, counts, .. }) => {
                (memory.pairs, memory.pairs_row, memory.counts) = (pairs.as_mut_ptr(), *row, counts.as_mut_ptr());
            }
            Some(Found::Bits { bits, words }) => {
                (memory.doubt, memory.doubt_row) = (bits.as_mut_ptr().cast(), words.wrapping_mul(8));
            }
        }
        memory
    }

    /// The first block of the rows from i on.
    #[inline(always)]
    fn place<K: Kind>(&self, strip: &Strip, i: usize, cols: usize) -> Place {
        let at = i.wrapping_mul(self.row).wrapping_add(strip.start.wrapping_mul(K::BYTES));
        Place {
            w: self.w.wrapping_add(at),
            w_row: self.row,
            out: self.out.wrapping_add(at),
            out_row: self.row,
            cols,
            width: cols,
            i,
            lines: strip.lines,
            pairs: self.pairs.wrapping_add(i.wrapping_mul(self.pairs_row)),
            pairs_row: self.pairs_row,
            counts: self.counts.wrapping_add(i),
            doubt: self.doubt.wrapping_add(i.wrapping_mul(self.doubt_row)).wrapping_add(strip.start / 8),
            doubt_row: self.doubt_row,
        }
    }
}

/// What a call has counted so far. A single term is summed without its scale.
#[derive(Default)]
struct Sums {
    wanted: f64,
    along: f64,
    changed: u64,
    unusual: Unusual,
}

/// The columns start..end of a step.
struct Strip<'a> {
    start: usize,
    end: usize,
    /// Values of `a` behind one register block.
    panel: usize,
    lines: *const f32,
    terms: &'a [Term<'a>],
}

/// Strip after strip: packs, then sweeps over it with each block of rows.
#[inline(always)]
unsafe fn strips<L: Lanes, K: Kind, W: Way<L, K>, const ROWS: usize, const VECTORS: usize>(step: Step) -> Moved {
    const { assert!(ROWS <= MOST_ROWS && VECTORS * L::WIDTH <= MOST_COLS) };
    let Step { weights, rows, cols, terms, mut found, .. } = step;
    let memory = Memory::of::<K>(weights, cols, found.as_mut());
    let width = VECTORS * L::WIDTH;
    let depth: usize = terms.iter().map(|t| t.rank).sum();
    let panel = depth * width;
    let most = (STRIP_COLS / width).min(STRIP_BYTES / 4 / panel.max(1)).max(1);
    let mut packed = PACKED.take();
    let lines = (most * (panel + MOST_ROWS * width)).div_ceil(16);
    if packed.len() < lines {
        packed.resize(lines, Line([0.0; 16]));
    }
    let lines = packed.as_mut_ptr().cast::<f32>();
    let copy = lines.wrapping_add(most * panel).cast::<u8>();
    let mut sums = Sums::default();
    for start in (0..cols).step_by(most * width) {
        let strip = Strip { start, end: cols.min(start + most * width), panel, lines, terms };
        // SAFETY: `lines` has room for `most` panels; start..end are columns of every term and of the weights.
        unsafe { pack::<L, K, VECTORS>(&strip, lines) };
        let mut i = 0;
        while i < rows {
            let (sampled, end) = sample::run(i, rows);
            // SAFETY: as above; the rows up to `end` are there, and behind the panels is room for MOST_ROWS rows.
            i = unsafe {
                match sampled && W::MERGES {
                    true => blocks_of_rows::<L, K, W, true, ROWS, VECTORS>(&strip, &memory, copy, i..end, &mut sums),
                    false => blocks_of_rows::<L, K, W, false, ROWS, VECTORS>(&strip, &memory, copy, i..end, &mut sums),
                }
            };
        }
    }
    PACKED.set(packed);
    let elements = rows as u64 * cols as u64;
    let factor = if let [term] = terms { f64::from(term.scale) } else { 1.0 };
    let Sums { wanted, along, changed, unusual } = sums;
    if let Some(Found::Pairs { right, .. }) = found {
        *right &= !unusual.wrong;
    }
    Moved {
        elements,
        still: elements.wrapping_sub(changed).wrapping_sub(unusual.seen_still).wrapping_add(unusual.moved.still),
        wanted: wanted * factor * factor + unusual.moved.wanted,
        along: along * factor + unusual.moved.along,
        nonfinite: unusual.moved.nonfinite,
    }
    .scaled_up(rows)
}

/// The rows of a strip in blocks, as tall as they go; returns the end of the rows.
#[inline(always)]
unsafe fn blocks_of_rows<
    L: Lanes,
    K: Kind,
    W: Way<L, K>,
    const SAMPLED: bool,
    const ROWS: usize,
    const VECTORS: usize,
>(
    strip: &Strip,
    memory: &Memory,
    copy: *mut u8,
    rows: Range<usize>,
    sums: &mut Sums,
) -> usize {
    let mut i = rows.start;
    // SAFETY: the caller's promise is handed on; as many rows are left as each sweep takes.
    unsafe {
        while rows.end - i >= ROWS {
            i = sweep::<L, K, W, SAMPLED, ROWS, VECTORS>(strip, memory, copy, i, sums);
        }
        while ROWS > 4 && rows.end - i >= 4 {
            i = sweep::<L, K, W, SAMPLED, 4, VECTORS>(strip, memory, copy, i, sums);
        }
        while rows.end - i >= 2 {
            i = sweep::<L, K, W, SAMPLED, 2, VECTORS>(strip, memory, copy, i, sums);
        }
        while i < rows.end {
            i = sweep::<L, K, W, SAMPLED, 1, VECTORS>(strip, memory, copy, i, sums);
        }
    }
    i
}

/// One block of rows, from i on, over all of the strip; returns the row after it.
#[inline(always)]
unsafe fn sweep<L: Lanes, K: Kind, W: Way<L, K>, const SAMPLED: bool, const ROWS: usize, const VECTORS: usize>(
    strip: &Strip,
    memory: &Memory,
    copy: *mut u8,
    i: usize,
    sums: &mut Sums,
) -> usize {
    let width = VECTORS * L::WIDTH;
    let mut place = memory.place::<K>(strip, i, width);
    let mut left = strip.end.wrapping_sub(strip.start);
    // SAFETY: the caller has checked the sizes; a block that would reach past the row works on padded copies.
    unsafe {
        if memory.replaced {
            let row = left.wrapping_mul(K::BYTES);
            copy_rows((place.w, place.w_row), (copy, row), ROWS, row);
            (place.w, place.w_row) = (copy, row);
        }
        let mut lanewise = Lanewise::<L>::none();
        let mut padded = Padded::uninit();
        while left > 0 {
            let mut here = place;
            if left < width {
                here = padded.place::<K>(&place, left, ROWS, width);
            }
            blocks::block::<L, K, W, SAMPLED, ROWS, VECTORS>(&here, strip.terms, &mut lanewise, &mut sums.unusual);
            if left < width {
                copy_rows((here.out, here.out_row), (place.out, place.out_row), ROWS, left.wrapping_mul(K::BYTES));
            }
            place = place.next::<K>(strip.panel);
            left = left.saturating_sub(width);
        }
        sums.wanted += blocks::total::<L>(lanewise.wanted);
        sums.along += blocks::total::<L>(lanewise.along);
        sums.changed = sums.changed.wrapping_add(lanewise.elements.wrapping_sub(K::count::<L>(lanewise.still)));
    }
    i.wrapping_add(ROWS)
}

/// Room for copies of a block that is wider than what is left of its rows.
struct Padded {
    w: MaybeUninit<[u8; MOST_ROWS * MOST_COLS * 4]>,
    out: MaybeUninit<[u8; MOST_ROWS * MOST_COLS * 4]>,
}

impl Padded {
    fn uninit() -> Padded {
        Padded { w: MaybeUninit::uninit(), out: MaybeUninit::uninit() }
    }

    /// Copies the `cols` columns of a block that are there. The rest are zeros, and never change.
    #[inline(always)]
    unsafe fn place<K: Kind>(&mut self, place: &Place, cols: usize, rows: usize, width: usize) -> Place {
        let (w, out) = (self.w.as_mut_ptr().cast::<u8>(), self.out.as_mut_ptr().cast::<u8>());
        let row = width.wrapping_mul(K::BYTES);
        // SAFETY: the copies have room for the largest block.
        unsafe {
            w.write_bytes(0, MOST_ROWS * MOST_COLS * 4);
            copy_rows((place.w, place.w_row), (w, row), rows, cols.wrapping_mul(K::BYTES));
        }
        Place { w, w_row: row, out, out_row: row, cols, ..*place }
    }
}

/// Copies the beginnings of some rows; each pointer comes with the bytes its rows are apart.
#[inline(always)]
unsafe fn copy_rows(from: (*const u8, usize), to: (*mut u8, usize), rows: usize, bytes: usize) {
    for r in 0..rows {
        let (from, to) = (from.0.wrapping_add(r.wrapping_mul(from.1)), to.0.wrapping_add(r.wrapping_mul(to.1)));
        // SAFETY: the caller has that many bytes of each row on both sides.
        unsafe { to.copy_from_nonoverlapping(from, bytes) };
    }
}

/// Packs the columns of a strip: panel after panel; in a panel term after term, in a term row after row of `a`. Columns
/// past the end are zeros.
#[inline(always)]
unsafe fn pack<L: Lanes, K: Kind, const VECTORS: usize>(strip: &Strip, lines: *mut f32) {
    let width = VECTORS * L::WIDTH;
    let mut to = lines; // where the row goes in the first panel
    for term in strip.terms {
        for k in 0..term.rank {
            let row = &term.a[k * term.a_stride..][strip.start..strip.end];
            let mut to_panel = to;
            for from in row.chunks(width) {
                let mut padded = [0f32; MOST_COLS];
                let source = if from.len() == width {
                    from.as_ptr()
                } else {
                    padded[..from.len()].copy_from_slice(from);
                    padded.as_ptr()
                };
                for pair in 0..VECTORS / 2 {
                    let at = 2 * pair * L::WIDTH;
                    // SAFETY: `source` has `width` values, and each panel `panel`, of which this row takes `width`.
                    unsafe {
                        let mut x = [L::loadu(source.add(at)), L::loadu(source.add(at + L::WIDTH))];
                        if K::INTERLEAVED {
                            x = L::deinterleave(x);
                        }
                        L::storeu(to_panel.add(at), x[0]);
                        L::storeu(to_panel.add(at + L::WIDTH), x[1]);
                    }
                }
                to_panel = to_panel.wrapping_add(strip.panel);
            }
            to = to.wrapping_add(width);
        }
    }
}
