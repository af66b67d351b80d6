//! Where a register block lies, and what is done with it beside the merge: what [`blocks`](super::blocks) and
//! [`back`](super::back) share.

use super::Moved;
use super::lanes::{Kind, Lanes};

/// Where a block lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub w: *const u8,
    /// Bytes between rows of the weights.
    pub w_row: usize,
    pub out: *mut u8,
    /// Bytes between rows of the result.
    pub out_row: usize,
    /// Columns that are not padding.
    pub cols: usize,
    /// Columns of a block.
    pub width: usize,
    /// Its first row.
    pub i: usize,
    /// Its panel.
    pub lines: *const f32,
    /// Where pairs of weights in doubt go, that are found back from results just merged.
    pub pairs: *mut u32,
    /// Words between rows of those.
    pub pairs_row: usize,
    /// How many are there already, for each row.
    pub counts: *mut u32,
    /// Where it is said which weights are in doubt, a bit for each, that are found back from what was merged before.
    pub doubt: *mut u8,
    /// Bytes between rows of the bits.
    pub doubt_row: usize,
}

impl Place {
    /// Where row r of the block is read and written.
    #[inline(always)]
    pub fn row(&self, r: usize) -> (*const u8, *mut u8) {
        (self.w.wrapping_add(r.wrapping_mul(self.w_row)), self.out.wrapping_add(r.wrapping_mul(self.out_row)))
    }

    /// The pairs of row r, and how many there are.
    ///
    /// # Safety
    ///
    /// The step is one that merges and takes back, and nobody else holds the count.
    #[inline(always)]
    pub unsafe fn pairs<'a>(&self, r: usize) -> (*mut u32, &'a mut u32) {
        // SAFETY: there is a count for each row of the step.
        let count = unsafe { &mut *self.counts.wrapping_add(r) };
        (self.pairs.wrapping_add(r.wrapping_mul(self.pairs_row)), count)
    }

    /// The bits of row r.
    #[inline(always)]
    pub fn doubt(&self, r: usize) -> *mut u8 {
        self.doubt.wrapping_add(r.wrapping_mul(self.doubt_row))
    }

    /// The neighbour to the right.
    #[inline(always)]
    pub fn next<K: Kind>(&self, panel: usize) -> Place {
        let bytes = self.width.wrapping_mul(K::BYTES);
        Place {
            w: self.w.wrapping_add(bytes),
            out: self.out.wrapping_add(bytes),
            lines: self.lines.wrapping_add(panel),
            doubt: self.doubt.wrapping_add(self.width / 8),
            ..*self
        }
    }
}

/// The sums of a block.
pub(super) type Sums<L, const ROWS: usize, const VECTORS: usize> = [[<L as Lanes>::F; VECTORS]; ROWS];

/// What the plain code did in blocks out of the ordinary.
#[derive(Default)]
pub(super) struct Unusual {
    pub moved: Moved,
    /// Elements that had been counted as still before.
    pub seen_still: u64,
    /// Whether a weight that was taken back and is not in doubt is not what it was, or may not be.
    pub wrong: bool,
}

/// What a step does with its blocks.
pub(super) trait Way<L: Lanes, K: Kind> {
    /// Whether a weight is read and its result written, or the other way about.
    const MERGES: bool;
    /// What is seen of a block.
    type Seen: Copy;

    unsafe fn nothing() -> Self::Seen;
    /// Takes back a pair of row r, which holds `packed`, widened `merged`; d is its product.
    unsafe fn pair(
        place: &Place,
        at: (usize, usize),
        merged: (*const u8, [L::F; 2]),
        d: [L::F; 2],
        scale: f32,
        seen: &mut Self::Seen,
    );
    /// Whether all of a block was within what the vector code is for; notes whether a weight was found wrong.
    unsafe fn note(seen: Self::Seen, unusual: &mut Unusual) -> bool;
    /// The same by plain code.
    unsafe fn settle<const ROWS: usize, const VECTORS: usize>(place: &Place, d: &Sums<L, ROWS, VECTORS>, scale: f32);
}

/// Merges and looks no further.
pub(super) struct Merge;

impl<L: Lanes, K: Kind> Way<L, K> for Merge {
    const MERGES: bool = true;
    type Seen = ();

    #[inline(always)]
    unsafe fn nothing() {}
    #[inline(always)]
    unsafe fn pair(_: &Place, _: (usize, usize), _: (*const u8, [L::F; 2]), _: [L::F; 2], _: f32, (): &mut Self::Seen) {
    }
    #[inline(always)]
    unsafe fn note((): (), _: &mut Unusual) -> bool {
        true
    }
    #[inline(always)]
    unsafe fn settle<const ROWS: usize, const VECTORS: usize>(_: &Place, _: &Sums<L, ROWS, VECTORS>, _: f32) {}
}

/// A pair as values in the order of their columns.
#[inline(always)]
pub(super) unsafe fn in_order<L: Lanes, K: Kind>(pair: [L::F; 2]) -> [f32; 32] {
    let mut out = [0f32; 32];
    // SAFETY: no vector has more than 16 lanes.
    unsafe {
        let pair = if K::INTERLEAVED { L::interleave(pair) } else { pair };
        L::storeu(out.as_mut_ptr(), pair[0]);
        L::storeu(out.as_mut_ptr().add(L::WIDTH), pair[1]);
    }
    out
}
