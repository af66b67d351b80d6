//! The step in register blocks, for any vector width: what the instruction sets share. [`Lanes`] is what each brings.
//!
//! Columns are taken in strips. The part of every `a` that belongs to a strip is packed once a call, in the order in
//! which it is read; then each block of rows sweeps over the strip, a register block at a time: the products are
//! summed in registers, and the sum is added, rounded, stored and counted without leaving them. After the layered
//! design of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008), with the merge in
//! place of the update of C.
//!
//! Elements out of the ordinary cost nothing here: where NaN or infinity is stored, the block's sums are not finite
//! either (the realised change is not, or the wanted one is not), and such a block is ended again by the plain code.

use std::cell::RefCell;

use super::{Element, Moved, Step, Term, plain};

/// Most columns of a strip: longer ones gain nothing.
const STRIP_COLS: usize = 2048;
/// Bytes of packed `a` that stay in the cache near the core (L2) beside the weights that stream through it.
const STRIP_BYTES: usize = 512 << 10;
/// Columns of the widest register block.
const MOST_COLS: usize = 64;
/// Rows of the tallest register block.
const MOST_ROWS: usize = 8;

/// The instructions of one variant. A *pair* is two vectors that hold neighbouring columns: first half and second
/// half, or, where the element type is [`Kind::INTERLEAVED`], the even and the odd ones.
///
/// # Safety
///
/// Every method needs the processor features of the variant, and its pointers must be good for a pair of the element
/// in question; none needs to be aligned but those of `load`.
pub(super) trait Lanes: Copy {
    /// f32 lanes of a vector.
    const WIDTH: usize;
    /// A vector of f32.
    type F: Copy;
    /// A vector of integer counters.
    type N: Copy;

    unsafe fn zero() -> Self::F;
    unsafe fn none() -> Self::N;
    unsafe fn splat(x: f32) -> Self::F;
    /// Reads an aligned vector.
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn loadu(p: *const f32) -> Self::F;
    unsafe fn storeu(p: *mut f32, x: Self::F);
    unsafe fn add(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn sub(x: Self::F, y: Self::F) -> Self::F;
    /// `x · y + z`, rounded once.
    unsafe fn fma(x: Self::F, y: Self::F, z: Self::F) -> Self::F;
    /// True where no lane is NaN or infinite.
    unsafe fn finite(x: Self::F) -> bool;
    /// The even and the odd columns of two neighbouring vectors, and back.
    unsafe fn deinterleave(pair: [Self::F; 2]) -> [Self::F; 2];
    unsafe fn interleave(pair: [Self::F; 2]) -> [Self::F; 2];

    unsafe fn read_f32(p: *const u8) -> [Self::F; 2];
    unsafe fn read_f16(p: *const u8) -> [Self::F; 2];
    unsafe fn read_bf16(p: *const u8) -> [Self::F; 2];
    /// Rounds a pair to `out`, counts in `still` what is stored in `old` already, and returns what is stored now.
    unsafe fn write_f32(out: *mut u8, v: [Self::F; 2], old: *const u8, still: &mut Self::N) -> [Self::F; 2];
    unsafe fn write_f16(out: *mut u8, v: [Self::F; 2], old: *const u8, still: &mut Self::N) -> [Self::F; 2];
    unsafe fn write_bf16(out: *mut u8, v: [Self::F; 2], old: *const u8, still: &mut Self::N) -> [Self::F; 2];
    /// The sum of counters of 16 bits, and of 32.
    unsafe fn count16(n: Self::N) -> u64;
    unsafe fn count32(n: Self::N) -> u64;
}

/// Defines the methods of [`Lanes`], each always inlined into the function that has the features.
macro_rules! methods {
    ($(fn $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)? $body:block)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $type),*) $(-> $out)? {
                // SAFETY: the caller has the features of the variant, and pointers to what is read or written.
                unsafe { $body }
            }
        )*
    };
}
pub(super) use methods;

/// An element type, as the blocks see it. Safety as for [`Lanes`].
pub(super) trait Kind {
    const ELEMENT: Element;
    const BYTES: usize;
    /// Whether a pair holds even and odd columns, which for bf16 makes widening and rounding shifts and masks.
    const INTERLEAVED: bool;
    unsafe fn read<L: Lanes>(p: *const u8) -> [L::F; 2];
    unsafe fn write<L: Lanes>(out: *mut u8, v: [L::F; 2], old: *const u8, still: &mut L::N) -> [L::F; 2];
    unsafe fn count<L: Lanes>(n: L::N) -> u64;
}

macro_rules! kind {
    ($name:ident, $element:ident, $bytes:literal, $interleaved:literal, $read:ident, $write:ident, $count:ident) => {
        pub(super) struct $name;
        impl Kind for $name {
            const ELEMENT: Element = Element::$element;
            const BYTES: usize = $bytes;
            const INTERLEAVED: bool = $interleaved;
            #[inline(always)]
            unsafe fn read<L: Lanes>(p: *const u8) -> [L::F; 2] {
                // SAFETY: the caller's promise is handed on.
                unsafe { L::$read(p) }
            }
            #[inline(always)]
            unsafe fn write<L: Lanes>(out: *mut u8, v: [L::F; 2], old: *const u8, still: &mut L::N) -> [L::F; 2] {
                // SAFETY: the caller's promise is handed on.
                unsafe { L::$write(out, v, old, still) }
            }
            #[inline(always)]
            unsafe fn count<L: Lanes>(n: L::N) -> u64 {
                // SAFETY: the caller's promise is handed on.
                unsafe { L::$count(n) }
            }
        }
    };
}
kind!(F32, F32, 4, false, read_f32, write_f32, count32);
kind!(F16, F16, 2, false, read_f16, write_f16, count16);
kind!(BF16, BF16, 2, true, read_bf16, write_bf16, count16);

/// A cache line of packed values; its alignment is that of the widest vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

thread_local! {
    /// The packed strip, kept for the next call.
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
            Element::BF16 => strips::<L, BF16, ROWS, VECTORS>(step),
            Element::F16 => strips::<L, F16, ROWS, VECTORS>(step),
            Element::F32 => strips::<L, F32, ROWS, VECTORS>(step),
            Element::F64 => plain::run(step),
        }
    }
}

/// Strip after strip: packs, then sweeps over it with each block of rows.
#[inline(always)]
unsafe fn strips<L: Lanes, K: Kind, const ROWS: usize, const VECTORS: usize>(step: Step) -> Moved {
    let Step { w, out, rows, cols, terms, .. } = step;
    let width = VECTORS * L::WIDTH;
    let depth: usize = terms.iter().map(|t| t.rank).sum();
    let panel = depth * width; // values of `a` behind one register block
    let most = (STRIP_COLS / width).min(STRIP_BYTES / 4 / panel.max(1)).max(1);
    let mut packed = PACKED.take();
    if packed.len() < (panel * most).div_ceil(16) {
        packed.resize((panel * most).div_ceil(16), Line([0.0; 16]));
    }
    let lines = packed.as_mut_ptr().cast::<f32>();
    let mut sums = Sums::default();
    for start in (0..cols).step_by(most * width) {
        let end = cols.min(start + most * width);
        // SAFETY: `lines` has room for `most` panels; start..end are columns of every term and of the weights.
        unsafe { pack::<L, K, VECTORS>(terms, start, end, panel, lines) };
        let mut i = 0;
        while i < rows {
            let strip = Strip { w: w.as_ptr(), out: out.as_mut_ptr(), cols, start, end, panel, lines, terms };
            let left = rows - i;
            // SAFETY: as above, and the rows from i on are as many as the sweep takes.
            i += unsafe {
                match left {
                    _ if left >= ROWS => sweep::<L, K, ROWS, VECTORS>(&strip, i, &mut sums),
                    4.. => sweep::<L, K, 4, VECTORS>(&strip, i, &mut sums),
                    2.. => sweep::<L, K, 2, VECTORS>(&strip, i, &mut sums),
                    _ => sweep::<L, K, 1, VECTORS>(&strip, i, &mut sums),
                }
            };
        }
    }
    PACKED.set(packed);
    let elements = (rows * cols) as u64;
    let factor = if let [term] = terms { f64::from(term.scale) } else { 1.0 };
    let Sums { wanted, along, changed, unusual } = sums;
    Moved {
        elements,
        still: elements - changed - (unusual.elements - unusual.still),
        wanted: wanted * factor * factor + unusual.wanted,
        along: along * factor + unusual.along,
        nonfinite: unusual.nonfinite,
    }
}

/// What a call has counted so far. A single term is summed without its scale.
#[derive(Default)]
struct Sums {
    wanted: f64,
    along: f64,
    changed: u64,
    unusual: Moved,
}

/// The columns start..end of a step.
struct Strip<'a> {
    w: *const u8,
    out: *mut u8,
    cols: usize,
    start: usize,
    end: usize,
    panel: usize,
    lines: *const f32,
    terms: &'a [Term<'a>],
}

/// Packs the columns start..end: panel after panel; in a panel term after term, in a term row after row of `a`. Columns
/// past the end are zeros.
#[inline(always)]
unsafe fn pack<L: Lanes, K: Kind, const VECTORS: usize>(
    terms: &[Term],
    start: usize,
    end: usize,
    panel: usize,
    lines: *mut f32,
) {
    let width = VECTORS * L::WIDTH;
    let mut above = 0; // rows of the panel that earlier terms take
    for term in terms {
        for k in 0..term.rank {
            let row = &term.a[k * term.a_stride..][start..end];
            for (number, from) in row.chunks(width).enumerate() {
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
                        let to = lines.add(number * panel + (above + k) * width + at);
                        L::storeu(to, x[0]);
                        L::storeu(to.add(L::WIDTH), x[1]);
                    }
                }
            }
        }
        above += term.rank;
    }
}

/// What a sweep counts in vectors.
struct Lanewise<L: Lanes> {
    wanted: L::F,
    along: L::F,
    still: L::N,
    elements: u64,
}

/// One block of rows, from i on, over all of the strip; returns the number of rows.
#[inline(always)]
unsafe fn sweep<L: Lanes, K: Kind, const ROWS: usize, const VECTORS: usize>(
    strip: &Strip,
    i: usize,
    sums: &mut Sums,
) -> usize {
    let width = VECTORS * L::WIDTH;
    let row_bytes = strip.cols * K::BYTES;
    // SAFETY: the caller has checked the sizes; a block that would reach past the row works on copies.
    unsafe {
        let mut lanewise = Lanewise::<L> { wanted: L::zero(), along: L::zero(), still: L::none(), elements: 0 };
        let mut lines = strip.lines;
        let mut j = strip.start;
        while j < strip.end {
            let at = i * row_bytes + j * K::BYTES;
            let (w, out) = (strip.w.add(at), strip.out.add(at));
            let place = Place { w, out, row_bytes, cols: width, i, lines };
            if j + width <= strip.end {
                block::<L, K, ROWS, VECTORS>(&place, strip.terms, &mut lanewise, &mut sums.unusual);
            } else {
                edge::<L, K, ROWS, VECTORS>(&place, strip.end - j, strip.terms, &mut lanewise, &mut sums.unusual);
            }
            lines = lines.add(strip.panel);
            j += width;
        }
        sums.wanted += total::<L>(lanewise.wanted);
        sums.along += total::<L>(lanewise.along);
        sums.changed += lanewise.elements - K::count::<L>(lanewise.still);
    }
    ROWS
}

/// Where a block lies.
struct Place {
    w: *const u8,
    out: *mut u8,
    row_bytes: usize,
    /// Columns that are not padding.
    cols: usize,
    /// Its first row.
    i: usize,
    /// Its panel.
    lines: *const f32,
}

impl Place {
    /// Where row r of the block is read and written.
    #[inline(always)]
    fn row(&self, r: usize) -> (*const u8, *mut u8) {
        let at = r.wrapping_mul(self.row_bytes);
        (self.w.wrapping_add(at), self.out.wrapping_add(at))
    }
}

/// A block that is wider than what is left of its rows, by way of padded copies. Padding never changes.
#[inline(always)]
unsafe fn edge<L: Lanes, K: Kind, const ROWS: usize, const VECTORS: usize>(
    place: &Place,
    cols: usize,
    terms: &[Term],
    lanewise: &mut Lanewise<L>,
    unusual: &mut Moved,
) {
    let mut w = [0u8; MOST_ROWS * MOST_COLS * 4];
    let mut out = [0u8; MOST_ROWS * MOST_COLS * 4];
    let row_bytes = VECTORS * L::WIDTH * K::BYTES;
    // SAFETY: `cols` elements are left of each row, no more than the copies' rows hold.
    unsafe {
        for r in 0..ROWS {
            let from = place.w.add(r * place.row_bytes);
            w.as_mut_ptr().add(r * row_bytes).copy_from_nonoverlapping(from, cols * K::BYTES);
        }
        let padded = Place { w: w.as_ptr(), out: out.as_mut_ptr(), row_bytes, cols, ..*place };
        block::<L, K, ROWS, VECTORS>(&padded, terms, lanewise, unusual);
        for r in 0..ROWS {
            let to = place.out.add(r * place.row_bytes);
            to.copy_from_nonoverlapping(out.as_ptr().add(r * row_bytes), cols * K::BYTES);
        }
    }
}

/// One register block.
#[inline(always)]
unsafe fn block<L: Lanes, K: Kind, const ROWS: usize, const VECTORS: usize>(
    place: &Place,
    terms: &[Term],
    lanewise: &mut Lanewise<L>,
    unusual: &mut Moved,
) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        if let [term] = terms {
            let d = product::<L, ROWS, VECTORS>(term, place.i, place.lines);
            finish::<L, K, false, ROWS, VECTORS>(place, &d, &d, term.scale, lanewise, unusual);
        } else {
            several::<L, K, ROWS, VECTORS>(place, terms, lanewise, unusual);
        }
    }
}

/// One block of several terms: sums from the weight and from zero, side by side.
#[inline(always)]
unsafe fn several<L: Lanes, K: Kind, const ROWS: usize, const VECTORS: usize>(
    place: &Place,
    terms: &[Term],
    lanewise: &mut Lanewise<L>,
    unusual: &mut Moved,
) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        let mut v = [[L::zero(); VECTORS]; ROWS];
        let mut wanted = v;
        for (r, v) in v.iter_mut().enumerate() {
            for n in (0..VECTORS).step_by(2) {
                [v[n], v[n + 1]] = K::read::<L>(place.w.add(r * place.row_bytes + n * L::WIDTH * K::BYTES));
            }
        }
        let mut lines = place.lines;
        for term in terms {
            let d = product::<L, ROWS, VECTORS>(term, place.i, lines);
            let scale = L::splat(term.scale);
            for r in 0..ROWS {
                for n in 0..VECTORS {
                    v[r][n] = L::fma(scale, d[r][n], v[r][n]);
                    wanted[r][n] = L::fma(scale, d[r][n], wanted[r][n]);
                }
            }
            lines = lines.add(term.rank * VECTORS * L::WIDTH);
        }
        finish::<L, K, true, ROWS, VECTORS>(place, &v, &wanted, 1.0, lanewise, unusual);
    }
}

/// `b · a` of one block of rows and one panel: the chain over the rank.
#[inline(always)]
unsafe fn product<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    term: &Term,
    i: usize,
    mut lines: *const f32,
) -> [[L::F; VECTORS]; ROWS] {
    // SAFETY: rows i.. of b have `rank` values each, and the panel has `rank` rows for this term.
    unsafe {
        let mut b = [term.b.as_ptr().add(i.wrapping_mul(term.b_stride)); ROWS];
        for r in 1..ROWS {
            b[r] = b[r - 1].add(term.b_stride);
        }
        let mut d = [[L::zero(); VECTORS]; ROWS];
        let mut a = [L::zero(); VECTORS];
        for k in 0..term.rank {
            for (n, a) in a.iter_mut().enumerate() {
                *a = L::load(lines.add(n * L::WIDTH));
            }
            lines = lines.add(VECTORS * L::WIDTH);
            for r in 0..ROWS {
                let b = L::splat(*b[r].add(k));
                for n in 0..VECTORS {
                    d[r][n] = L::fma(b, a[n], d[r][n]);
                }
            }
        }
        d
    }
}

/// The sums of one block, by halves of a pair so that no chain of additions is long.
struct Partial<L: Lanes> {
    squares: [L::F; 2],
    along: [L::F; 2],
    still: L::N,
}

/// Does something for each row of a block, unrolled: what is indexed by the row stays in registers.
macro_rules! each_row {
    ($rows:ident, $r:ident => $body:expr) => {
        each_row!(@ $rows, $r => $body; 0 1 2 3 4 5 6 7)
    };
    (@ $rows:ident, $r:ident => $body:expr; $($n:literal)*) => {
        $(if $n < $rows {
            let $r: usize = $n;
            $body
        })*
    };
}

/// Rounds, stores and counts a block. `factor · wanted` is the change; the element before rounding is `v` where it was
/// SUMMED already, and otherwise one more multiply-add away.
#[inline(always)]
unsafe fn finish<L: Lanes, K: Kind, const SUMMED: bool, const ROWS: usize, const VECTORS: usize>(
    place: &Place,
    v: &[[L::F; VECTORS]; ROWS],
    wanted: &[[L::F; VECTORS]; ROWS],
    factor: f32,
    lanewise: &mut Lanewise<L>,
    unusual: &mut Moved,
) {
    const { assert!(ROWS <= MOST_ROWS) };
    // SAFETY: the block lies inside of the weights, or of padded copies.
    unsafe {
        let scale = L::splat(factor);
        let mut sums = Partial::<L> { squares: [L::zero(); 2], along: [L::zero(); 2], still: lanewise.still };
        each_row!(ROWS, r => {
            let (w, out) = place.row(r);
            finish_row::<L, K, SUMMED, VECTORS>(w, out, &v[r], &wanted[r], scale, &mut sums);
        });
        let (squares, along) = (L::add(sums.squares[0], sums.squares[1]), L::add(sums.along[0], sums.along[1]));
        if L::finite(L::add(squares, along)) {
            lanewise.wanted = L::add(lanewise.wanted, squares);
            lanewise.along = L::add(lanewise.along, along);
            lanewise.still = sums.still;
            lanewise.elements = lanewise.elements.wrapping_add((ROWS * VECTORS * L::WIDTH) as u64);
            return;
        }
        each_row!(ROWS, r => {
            let (w, out) = place.row(r);
            settle_row::<L, K, SUMMED, VECTORS>(w, out, &v[r], &wanted[r], factor, place.cols, unusual);
        });
    }
}

/// A pair before rounding.
#[inline(always)]
unsafe fn value<L: Lanes, const SUMMED: bool, const VECTORS: usize>(
    v: &[L::F; VECTORS],
    wanted: &[L::F; VECTORS],
    scale: L::F,
    old: [L::F; 2],
    n: usize,
) -> [L::F; 2] {
    if SUMMED {
        return [v[n], v[n + 1]];
    }
    // SAFETY: the caller's promise is handed on.
    unsafe { [L::fma(scale, wanted[n], old[0]), L::fma(scale, wanted[n + 1], old[1])] }
}

/// One row of [`finish`].
#[inline(always)]
unsafe fn finish_row<L: Lanes, K: Kind, const SUMMED: bool, const VECTORS: usize>(
    w: *const u8,
    out: *mut u8,
    v: &[L::F; VECTORS],
    wanted: &[L::F; VECTORS],
    scale: L::F,
    sums: &mut Partial<L>,
) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        for pair in 0..VECTORS / 2 {
            let (n, at) = (2 * pair, 2 * pair * L::WIDTH * K::BYTES);
            let old = K::read::<L>(w.add(at));
            let v = value::<L, SUMMED, VECTORS>(v, wanted, scale, old, n);
            let new = K::write::<L>(out.add(at), v, w.add(at), &mut sums.still);
            for half in 0..2 {
                let x = wanted[n + half];
                sums.squares[half] = L::fma(x, x, sums.squares[half]);
                sums.along[half] = L::fma(x, L::sub(new[half], old[half]), sums.along[half]);
            }
        }
    }
}

/// One row of a block that holds something out of the ordinary.
#[inline(always)]
unsafe fn settle_row<L: Lanes, K: Kind, const SUMMED: bool, const VECTORS: usize>(
    w: *const u8,
    out: *mut u8,
    v: &[L::F; VECTORS],
    wanted: &[L::F; VECTORS],
    factor: f32,
    cols: usize,
    unusual: &mut Moved,
) {
    // SAFETY: the caller's promise is handed on; the first `cols` columns are there.
    unsafe {
        for pair in 0..VECTORS / 2 {
            let (n, at) = (2 * pair, 2 * pair * L::WIDTH * K::BYTES);
            let old = K::read::<L>(w.add(at));
            let v = value::<L, SUMMED, VECTORS>(v, wanted, L::splat(factor), old, n);
            let values = [in_order::<L, K>(v), in_order::<L, K>([wanted[n], wanted[n + 1]])];
            let bytes = cols.saturating_sub(n * L::WIDTH).min(2 * L::WIDTH) * K::BYTES;
            let old = std::slice::from_raw_parts(w.add(at), bytes);
            let new = std::slice::from_raw_parts_mut(out.add(at), bytes);
            settle(K::ELEMENT, &values, factor, old, new, unusual);
        }
    }
}

/// A pair as values in the order of their columns.
#[inline(always)]
unsafe fn in_order<L: Lanes, K: Kind>(pair: [L::F; 2]) -> [f32; 32] {
    let mut out = [0f32; 32];
    // SAFETY: no vector has more than 16 lanes.
    unsafe {
        let pair = if K::INTERLEAVED { L::interleave(pair) } else { pair };
        L::storeu(out.as_mut_ptr(), pair[0]);
        L::storeu(out.as_mut_ptr().add(L::WIDTH), pair[1]);
    }
    out
}

/// Ends a pair the plain way.
#[cold]
#[inline(never)]
fn settle(element: Element, [v, wanted]: &[[f32; 32]; 2], factor: f32, old: &[u8], new: &mut [u8], moved: &mut Moved) {
    let (olds, news) = (old.chunks_exact(element.bytes()), new.chunks_exact_mut(element.bytes()));
    for (((old, new), v), wanted) in olds.zip(news).zip(v).zip(wanted) {
        moved.elements += 1;
        plain::settle(element, *v, factor * wanted, old, new, moved);
    }
}

/// The sum of all lanes.
#[inline(always)]
unsafe fn total<L: Lanes>(x: L::F) -> f64 {
    let mut out = [0f32; 16];
    // SAFETY: no vector has more than 16 lanes.
    unsafe { L::storeu(out.as_mut_ptr(), x) };
    out.iter().take(L::WIDTH).map(|&x| f64::from(x)).sum()
}
