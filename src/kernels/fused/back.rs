//! The merge step backwards in registers, for bf16 and one product: the chain that a block has just summed serves the
//! weight and its inverse. What is found is what [`super::inverse`] defines, to the last bit; blocks with something
//! out of the ordinary are ended by its plain code.

use std::slice::{from_raw_parts, from_raw_parts_mut};

use super::lanes::{BF16, Kind, Lanes};
use super::way::{Place, Sums, Unusual, Way, in_order};
use super::{inverse, stored};

/// What the inverse needs beside [`Lanes`]: pairs of bf16 columns in one vector of integers, in order.
///
/// # Safety
///
/// As for [`Lanes`].
pub(super) trait Packed: Lanes {
    /// One truth value for each column.
    type M: Copy;

    unsafe fn mul(x: Self::F, y: Self::F) -> Self::F;
    unsafe fn load16(p: *const u8) -> Self::N;
    unsafe fn store16(p: *mut u8, x: Self::N);
    /// Even and odd columns, widened.
    unsafe fn split16(x: Self::N) -> [Self::F; 2];
    /// The upper halves as they are, and rounded to nearest, ties to even.
    unsafe fn round16(v: [Self::F; 2]) -> [Self::N; 2];
    unsafe fn add16(x: Self::N, by: i16) -> Self::N;
    /// The largest magnitude so far, and of x.
    unsafe fn top16(top: Self::N, x: Self::N) -> Self::N;
    unsafe fn equal16(x: Self::N, y: Self::N) -> Self::M;
    /// Where x is +0 or −0.
    unsafe fn zero16(x: Self::N) -> Self::M;
    /// Where the magnitude of x is no more than [`NONE_SMALLER`], or lies [`FAR`] or more below that of y.
    unsafe fn far_below16(x: Self::N, y: Self::N) -> Self::M;
    /// x, and zero where m is true.
    unsafe fn clear16(x: Self::N, m: Self::M) -> Self::N;
    unsafe fn never() -> Self::M;
    /// The first `count` columns.
    unsafe fn first(count: usize) -> Self::M;
    unsafe fn or(x: Self::M, y: Self::M) -> Self::M;
    unsafe fn and(x: Self::M, y: Self::M) -> Self::M;
    /// Where neither is true.
    unsafe fn nor(x: Self::M, y: Self::M) -> Self::M;
    unsafe fn any(m: Self::M) -> bool;
    /// One bit for each column, the first one lowest.
    unsafe fn put_bits(p: *mut u8, m: Self::M);
    /// Writes a word for each column where m is true, in order: x in its lower half, y in the upper one. There is room
    /// for as many words as there are columns. Gives how many were written.
    unsafe fn put_pairs(p: *mut u32, x: Self::N, y: Self::N, m: Self::M) -> u32;
}

/// Where zero gives a result m, the scaled product rounds to m, and what is left of it is at most half a unit of m in
/// the last place: by its exponent it lies 8 powers of two below m, in patterns 8 · 128 with one to spare.
pub(super) const FAR: i16 = 7 << 7;
/// Below m = 2^(9 − 127) that half unit has no exponent of its own; it is less than this pattern.
pub(super) const NONE_SMALLER: i16 = 1 << 7;

/// Merges, and takes the result back at once (MERGED), or takes back what was merged before.
pub(super) struct Back<const MERGED: bool>;

/// What is seen of a block while it is taken back.
#[derive(Clone, Copy)]
pub(super) struct Taken<L: Packed> {
    /// Largest magnitude of what was rounded, and of the results where no merge has seen to that.
    top: L::N,
    /// Weights that are not in doubt and were others.
    wrong: L::M,
}

impl<const MERGED: bool, L: Packed> Way<L, BF16> for Back<MERGED> {
    const MERGES: bool = MERGED;
    type Seen = Taken<L>;

    #[inline(always)]
    unsafe fn nothing() -> Taken<L> {
        // SAFETY: the caller's promise is handed on.
        unsafe { Taken { top: L::none(), wrong: L::never() } }
    }

    #[inline(always)]
    unsafe fn pair(
        place: &Place,
        (r, pair): (usize, usize),
        (packed, merged): (*const u8, [L::F; 2]),
        d: [L::F; 2],
        scale: f32,
        seen: &mut Taken<L>,
    ) {
        // SAFETY: the caller's promise is handed on; there is room for what is found of every block.
        unsafe {
            let at = 2 * pair * L::WIDTH * BF16::BYTES;
            let d = [L::add(d[0], L::zero()), L::add(d[1], L::zero())]; // no -0, as in a tile of sums
            let (minus, scale) = (L::splat(-scale), L::splat(scale));
            let m = L::load16(packed);
            let [upper, nearest] = L::round16([L::fma(minus, d[0], merged[0]), L::fma(minus, d[1], merged[1])]);
            seen.top = L::top16(seen.top, upper);
            if !MERGED {
                seen.top = L::top16(seen.top, m);
            }
            let gives = |x: L::N| {
                let x = L::split16(x);
                let [_, result] = L::round16([L::fma(scale, d[0], x[0]), L::fma(scale, d[1], x[1])]);
                L::equal16(result, m)
            };
            let others = L::or(gives(L::add16(nearest, 1)), gives(L::add16(nearest, -1)));
            let mut doubted = L::or(others, L::zero16(nearest));
            if place.cols < place.width {
                doubted = L::and(doubted, L::first(place.cols.saturating_sub(2 * pair * L::WIDTH)));
            }
            let mut found = nearest;
            // Seldom: where nothing is far below its result, zero cannot have led to it.
            if L::any(L::far_below16(nearest, m)) {
                let of_zero = |d: L::F| L::add(L::mul(scale, d), L::zero());
                let [_, result] = L::round16([of_zero(d[0]), of_zero(d[1])]);
                found = L::clear16(nearest, L::and(doubted, L::equal16(result, m)));
            }
            if MERGED {
                let truth = L::load16(place.row(r).0.wrapping_add(at));
                seen.wrong = L::or(seen.wrong, L::nor(doubted, L::equal16(found, truth)));
                let (pairs, count) = place.pairs(r);
                *count += L::put_pairs(pairs.wrapping_add(*count as usize), found, truth, doubted);
            } else {
                L::store16(place.row(r).1.add(at), found);
                L::put_bits(place.doubt(r).add(pair * L::WIDTH / 4), doubted);
            }
        }
    }

    #[inline(always)]
    unsafe fn note(seen: Taken<L>, unusual: &mut Unusual) -> bool {
        // SAFETY: the caller's promise is handed on.
        unsafe {
            let ordinary = BF16::finite::<L>(seen.top);
            if MERGED && (!ordinary || L::any(seen.wrong)) {
                unusual.wrong = true;
            }
            ordinary || MERGED
        }
    }

    /// Of use only where nothing was merged: else what was found of the whole step is void.
    #[inline(always)]
    unsafe fn settle<const ROWS: usize, const VECTORS: usize>(place: &Place, d: &Sums<L, ROWS, VECTORS>, scale: f32) {
        if MERGED {
            return;
        }
        for (r, d) in d.iter().enumerate() {
            for pair in 0..VECTORS / 2 {
                let at = 2 * pair * L::WIDTH * BF16::BYTES;
                let bytes = place.cols.saturating_sub(2 * pair * L::WIDTH).min(2 * L::WIDTH) * BF16::BYTES;
                // SAFETY: the caller's promise is handed on; the first `cols` columns are there.
                unsafe {
                    let d = in_order::<L, BF16>([d[2 * pair], d[2 * pair + 1]]);
                    let (merged, out) = place.row(r);
                    let (merged, out) = (from_raw_parts(merged.add(at), bytes), from_raw_parts_mut(out.add(at), bytes));
                    let bits = place.doubt(r).add(pair * L::WIDTH / 4);
                    settle(merged, scale, &d, out, from_raw_parts_mut(bits, L::WIDTH / 4));
                }
            }
        }
    }
}

/// Takes back some elements the plain way.
#[cold]
#[inline(never)]
fn settle(merged: &[u8], scale: f32, d: &[f32], out: &mut [u8], bits: &mut [u8]) {
    use stored::{Bf16, Stored};
    bits.fill(0);
    let both = merged.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<2>().0);
    for (i, ((merged, out), &d)) in both.zip(d).enumerate() {
        let merged = u32::from(u16::from_le_bytes(*merged));
        let (found, doubted) = inverse::element::<Bf16, Bf16>(merged, scale, d + 0.0);
        let doubted = doubted && merged & !Bf16::SIGN < Bf16::INFINITY;
        *out = (found as u16).to_le_bytes();
        bits[i / 8] |= u8::from(doubted) << (i % 8);
    }
}
