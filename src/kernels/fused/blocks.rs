//! Register blocks, for any vector width: the products are summed in registers, and the sum is added, rounded, stored
//! and counted without leaving them.
//!
//! Elements out of the ordinary cost little: where NaN or infinity is stored, the magnitudes seen in the block tell, or,
//! in rows of the sample, its sums, which are not finite either (the realised change is not, or the wanted one is not).
//! Such a block is ended again by the plain code.

use std::slice::{from_raw_parts, from_raw_parts_mut};

use super::lanes::{Kind, Lanes, MOST_ROWS, Seen};
use super::way::{Merge, Place, Sums, Unusual, Way, in_order};
use super::{Element, Term, plain};

/// What a sweep counts in vectors.
pub(super) struct Lanewise<L: Lanes> {
    pub wanted: L::F,
    pub along: L::F,
    pub still: L::N,
    pub elements: u64,
}

impl<L: Lanes> Lanewise<L> {
    #[inline(always)]
    pub unsafe fn none() -> Self {
        // SAFETY: the caller's promise is handed on.
        unsafe { Lanewise { wanted: L::zero(), along: L::zero(), still: L::none(), elements: 0 } }
    }

    /// Takes over what was seen of a block; in every case, so that it is not put off into a branch, with what it is
    /// made of kept in memory until then.
    #[inline(always)]
    fn note<const ROWS: usize, const VECTORS: usize>(&mut self, seen: Seen<L>) {
        self.still = seen.still;
        self.elements = self.elements.wrapping_add((ROWS * VECTORS * L::WIDTH) as u64);
    }
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

/// One register block.
#[inline(always)]
pub(super) unsafe fn block<
    L: Lanes,
    K: Kind,
    W: Way<L, K>,
    const SAMPLED: bool,
    const ROWS: usize,
    const VECTORS: usize,
>(
    place: &Place,
    terms: &[Term],
    lanewise: &mut Lanewise<L>,
    unusual: &mut Unusual,
) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        fetch_ahead::<L, K, ROWS, VECTORS>(place);
        if let [term] = terms {
            let d = product::<L, ROWS, VECTORS>(term, place.i, place.lines);
            if W::MERGES {
                finish::<L, K, W, SAMPLED, false, ROWS, VECTORS>(place, &d, &d, term.scale, lanewise, unusual);
            } else {
                take_back::<L, K, W, ROWS, VECTORS>(place, &d, term.scale, unusual);
            }
        } else {
            several::<L, K, SAMPLED, ROWS, VECTORS>(place, terms, lanewise, unusual);
        }
    }
}

/// Asks for weights that are due soon. The rows are as many streams, of which each block takes little.
#[inline(always)]
unsafe fn fetch_ahead<L: Lanes, K: Kind, const ROWS: usize, const VECTORS: usize>(place: &Place) {
    const AHEAD: usize = 256; // bytes
    const LINE: usize = 64;
    for r in 0..ROWS {
        for at in (0..VECTORS * L::WIDTH * K::BYTES).step_by(LINE) {
            // SAFETY: nothing is read, whatever the address.
            unsafe { L::fetch(place.row(r).0.wrapping_add(AHEAD + at)) };
        }
    }
}

/// One block of several terms: sums from the weight and, for the sample, from zero, side by side.
#[inline(always)]
unsafe fn several<L: Lanes, K: Kind, const SAMPLED: bool, const ROWS: usize, const VECTORS: usize>(
    place: &Place,
    terms: &[Term],
    lanewise: &mut Lanewise<L>,
    unusual: &mut Unusual,
) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        let mut v = [[L::zero(); VECTORS]; ROWS];
        let mut wanted = v;
        for (r, v) in v.iter_mut().enumerate() {
            for n in (0..VECTORS).step_by(2) {
                [v[n], v[n + 1]] = K::read::<L>(place.row(r).0.wrapping_add(n * L::WIDTH * K::BYTES));
            }
        }
        let mut lines = place.lines;
        for term in terms {
            let d = product::<L, ROWS, VECTORS>(term, place.i, lines);
            let scale = L::splat(term.scale);
            for r in 0..ROWS {
                for n in 0..VECTORS {
                    v[r][n] = L::fma(scale, d[r][n], v[r][n]);
                    if SAMPLED {
                        wanted[r][n] = L::fma(scale, d[r][n], wanted[r][n]);
                    }
                }
            }
            lines = lines.wrapping_add(term.rank.wrapping_mul(VECTORS * L::WIDTH));
        }
        finish::<L, K, Merge, SAMPLED, true, ROWS, VECTORS>(place, &v, &wanted, 1.0, lanewise, unusual);
    }
}

/// `b · a` of one block of rows and one panel: the chain over the rank.
#[inline(always)]
unsafe fn product<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    term: &Term,
    i: usize,
    mut lines: *const f32,
) -> Sums<L, ROWS, VECTORS> {
    let mut b = [term.b.as_ptr().wrapping_add(i.wrapping_mul(term.b_stride)); ROWS];
    for r in 1..ROWS {
        b[r] = b[r - 1].wrapping_add(term.b_stride);
    }
    // SAFETY: rows i.. of b have `rank` values each, and the panel has `rank` rows for this term.
    unsafe {
        let mut d = [[L::zero(); VECTORS]; ROWS];
        let mut a = [L::zero(); VECTORS];
        for k in 0..term.rank {
            for (n, a) in a.iter_mut().enumerate() {
                *a = L::load(lines.add(n * L::WIDTH));
            }
            lines = lines.wrapping_add(VECTORS * L::WIDTH);
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

/// Rounds, stores and counts a block. `factor · wanted` is the change; the element before rounding is `v` where it was
/// SUMMED already, and otherwise one more multiply-add away.
#[inline(always)]
unsafe fn finish<
    L: Lanes,
    K: Kind,
    W: Way<L, K>,
    const SAMPLED: bool,
    const SUMMED: bool,
    const ROWS: usize,
    const VECTORS: usize,
>(
    place: &Place,
    v: &Sums<L, ROWS, VECTORS>,
    wanted: &Sums<L, ROWS, VECTORS>,
    factor: f32,
    lanewise: &mut Lanewise<L>,
    unusual: &mut Unusual,
) {
    const { assert!(ROWS <= MOST_ROWS) };
    // SAFETY: the block lies inside of the weights, or of padded copies.
    unsafe {
        let scale = L::splat(factor);
        let mut seen = Seen { still: lanewise.still, top: L::none() };
        let mut taken = W::nothing();
        // By halves of a pair, so that no chain of additions is long.
        let (mut squares, mut along) = ([L::zero(); 2], [L::zero(); 2]);
        each_row!(ROWS, r => {
            let (w, out) = place.row(r);
            for pair in 0..VECTORS / 2 {
                let [old, new] = finish_pair::<L, K, SUMMED, VECTORS>((w, out), &v[r], scale, pair, &mut seen);
                let stored = out.wrapping_add(2 * pair * L::WIDTH * K::BYTES).cast_const();
                let d = [v[r][2 * pair], v[r][2 * pair + 1]];
                W::pair(place, (r, pair), (stored, new), d, factor, &mut taken);
                if SAMPLED {
                    for half in 0..2 {
                        let x = wanted[r][2 * pair + half];
                        squares[half] = L::fma(x, x, squares[half]);
                        along[half] = L::fma(x, L::sub(new[half], old[half]), along[half]);
                    }
                }
            }
        });
        lanewise.note::<ROWS, VECTORS>(seen);
        let usual = W::note(taken, unusual);
        if SAMPLED {
            let (squares, along) = (L::add(squares[0], squares[1]), L::add(along[0], along[1]));
            if usual && L::finite(L::add(squares, along)) {
                lanewise.wanted = L::add(lanewise.wanted, squares);
                lanewise.along = L::add(lanewise.along, along);
                return;
            }
        } else if usual && K::finite::<L>(seen.top) {
            return;
        }
        settle_block::<L, K, SAMPLED, SUMMED, ROWS, VECTORS>(place, v, wanted, factor, unusual);
    }
}

/// A block of results whose weights are wanted.
#[inline(always)]
unsafe fn take_back<L: Lanes, K: Kind, W: Way<L, K>, const ROWS: usize, const VECTORS: usize>(
    place: &Place,
    d: &Sums<L, ROWS, VECTORS>,
    scale: f32,
    unusual: &mut Unusual,
) {
    // SAFETY: the block lies inside of the results, or of padded copies.
    unsafe {
        let mut taken = W::nothing();
        each_row!(ROWS, r => {
            for pair in 0..VECTORS / 2 {
                let merged = place.row(r).0.add(2 * pair * L::WIDTH * K::BYTES);
                let d = [d[r][2 * pair], d[r][2 * pair + 1]];
                W::pair(place, (r, pair), (merged, K::read::<L>(merged)), d, scale, &mut taken);
            }
        });
        if !W::note(taken, unusual) {
            W::settle::<ROWS, VECTORS>(place, d, scale);
        }
    }
}

/// Rounds and stores a pair of a row; returns what was and what is stored.
#[inline(always)]
unsafe fn finish_pair<L: Lanes, K: Kind, const SUMMED: bool, const VECTORS: usize>(
    (w, out): (*const u8, *mut u8),
    v: &[L::F; VECTORS],
    scale: L::F,
    pair: usize,
    seen: &mut Seen<L>,
) -> [[L::F; 2]; 2] {
    let (n, at) = (2 * pair, 2 * pair * L::WIDTH * K::BYTES);
    // SAFETY: the caller's promise is handed on.
    unsafe {
        let (w, out) = (w.add(at), out.add(at));
        let old = K::read::<L>(w);
        let v = value::<L, SUMMED>([v[n], v[n + 1]], scale, old);
        [old, K::write::<L>(out, v, w, seen)]
    }
}

/// A pair before rounding.
#[inline(always)]
unsafe fn value<L: Lanes, const SUMMED: bool>(v: [L::F; 2], scale: L::F, old: [L::F; 2]) -> [L::F; 2] {
    if SUMMED {
        return v;
    }
    // SAFETY: the caller's promise is handed on.
    unsafe { [L::fma(scale, v[0], old[0]), L::fma(scale, v[1], old[1])] }
}

/// Ends a block that holds something out of the ordinary.
#[inline(always)]
unsafe fn settle_block<
    L: Lanes,
    K: Kind,
    const SAMPLED: bool,
    const SUMMED: bool,
    const ROWS: usize,
    const VECTORS: usize,
>(
    place: &Place,
    v: &Sums<L, ROWS, VECTORS>,
    wanted: &Sums<L, ROWS, VECTORS>,
    factor: f32,
    unusual: &mut Unusual,
) {
    each_row!(ROWS, r => {
        let (w, out) = place.row(r);
        for pair in 0..VECTORS / 2 {
            let (n, at) = (2 * pair, 2 * pair * L::WIDTH * K::BYTES);
            let bytes = place.cols.saturating_sub(n * L::WIDTH).min(2 * L::WIDTH) * K::BYTES;
            // SAFETY: the caller's promise is handed on; the first `cols` columns are there.
            unsafe {
                let (w, out) = (w.add(at), out.add(at));
                let v = value::<L, SUMMED>([v[r][n], v[r][n + 1]], L::splat(factor), K::read::<L>(w));
                let values = [in_order::<L, K>(v), in_order::<L, K>([wanted[r][n], wanted[r][n + 1]])];
                let (old, new) = (from_raw_parts(w, bytes), from_raw_parts_mut(out, bytes));
                settle(K::ELEMENT, &values, SAMPLED.then_some(factor), old, new, unusual);
            }
        }
    });
}

/// Ends a pair the plain way; with a factor of what is wanted in rows of the sample.
#[cold]
#[inline(never)]
fn settle(
    element: Element,
    [v, wanted]: &[[f32; 32]; 2],
    factor: Option<f32>,
    old: &[u8],
    new: &mut [u8],
    unusual: &mut Unusual,
) {
    let (olds, news) = (old.chunks_exact(element.bytes()), new.chunks_exact_mut(element.bytes()));
    for (((old, new), v), wanted) in olds.zip(news).zip(v).zip(wanted) {
        unusual.seen_still += u64::from(old == new);
        plain::settle(element, *v, factor.map(|factor| factor * wanted), old, new, &mut unusual.moved);
    }
}

/// The sum of all lanes.
#[inline(always)]
pub(super) unsafe fn total<L: Lanes>(x: L::F) -> f64 {
    let mut out = [0f32; 16];
    // SAFETY: no vector has more than 16 lanes.
    unsafe { L::storeu(out.as_mut_ptr(), x) };
    out.iter().take(L::WIDTH).map(|&x| f64::from(x)).sum()
}
