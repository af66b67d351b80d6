//! What a merge leaves of the weights, found while it is made: [`inverse`] for bf16 and one product,
//! without a second forming of the product and without a tile of it in memory. All variants find the same, which is
//! also what [`inverse::invert`] finds.

use super::inverse::{self, Addend, Factor, Pointwise};
use super::{Element, Moved, Step, Term, Variant, Weights};

/// Columns whose bits lie in a word.
const WORD: usize = u64::BITS as usize;

/// Which elements of some rows are in doubt: a bit for each. Rows begin with a word of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doubt {
    bits: Vec<u64>,
    rows: usize,
    cols: usize,
}

/// The weights of some rows that are in doubt after a merge: of each the nearest one, and the true one.
#[derive(Clone, Debug, Default)]
pub struct Guess {
    pairs: Vec<u32>,
    /// How many there are of each row.
    counts: Vec<u32>,
    cols: usize,
    right: bool,
}

/// Words behind the columns of a row, as whole vectors are written: those of the widest.
const SPARE: usize = 16;

/// What a step finds back, row by row.
pub(super) enum Found<'a> {
    /// Of what it has merged: guess and truth where there is doubt, as the halves of words.
    Pairs {
        pairs: &'a mut [u32],
        /// Words between rows.
        row: usize,
        counts: &'a mut [u32],
        /// Made false where a weight is not in doubt and was another, or may have been.
        right: &'a mut bool,
    },
    /// Of what was merged before, beside the weights themselves: which are in doubt.
    Bits {
        bits: &'a mut [u64],
        /// Words of a row.
        words: usize,
    },
}

impl Doubt {
    /// Makes room for so many rows, with nothing in doubt.
    pub fn reset(&mut self, rows: usize, cols: usize) {
        self.bits.clear();
        self.bits.resize(rows * cols.div_ceil(WORD), 0);
        (self.rows, self.cols) = (rows, cols);
    }

    fn words(&self) -> usize {
        self.cols.div_ceil(WORD)
    }

    /// Appends the numbers of the elements in doubt, counted row by row from `first` on.
    pub fn append_to(&self, first: u32, out: &mut Vec<u32>) {
        let count: usize = self.bits.iter().map(|bits| bits.count_ones() as usize).sum();
        let start = out.len();
        out.resize(start + count, 0);
        let mut slots = out[start..].iter_mut();
        for (row, words) in self.bits.chunks_exact(self.words().max(1)).enumerate() {
            for (word, &bits) in words.iter().enumerate() {
                // Fits: the caller counts the elements of these rows with 32 bits.
                let at = first.wrapping_add((row * self.cols + word * WORD) as u32);
                let mut left = bits;
                while left != 0 {
                    if let Some(slot) = slots.next() {
                        *slot = at.wrapping_add(left.trailing_zeros());
                    }
                    left &= left.wrapping_sub(1);
                }
            }
        }
    }
}

impl Guess {
    /// Makes room for so many rows. What was found before is void.
    pub fn reset(&mut self, rows: usize, cols: usize) {
        let words = rows * (cols + SPARE);
        if self.pairs.len() < words {
            self.pairs.resize(words, 0);
        }
        self.counts.clear();
        self.counts.resize(rows, 0);
        self.cols = cols;
        self.right = true;
    }

    /// Whether every weight that is not in doubt is the guess. Where this is false, which it may also be because
    /// something out of the ordinary was met, nothing of it is of use.
    pub fn is_right(&self) -> bool {
        self.right
    }

    /// How many weights are in doubt.
    pub fn count(&self) -> usize {
        self.counts.iter().map(|&n| n as usize).sum()
    }

    /// Of each row the weights in doubt, in order: the pattern of the guess in the lower half of each word, that of the
    /// truth in the upper one.
    pub fn doubtful(&self) -> impl Iterator<Item = &[u32]> {
        let rows = self.pairs.chunks_exact(self.cols + SPARE);
        rows.zip(&self.counts).map(|(pairs, &count)| pairs.get(..count as usize).unwrap_or(pairs))
    }

    /// Where the rows from `first` on leave what they find.
    fn found(&mut self, first: usize, rows: usize) -> Found<'_> {
        let row = self.cols + SPARE;
        let (rows, words) = (first..first + rows, first * row..(first + rows) * row);
        let (pairs, counts) = (&mut self.pairs[words], &mut self.counts[rows]);
        Found::Pairs { pairs, row, counts, right: &mut self.right }
    }
}

/// The merge step on bf16 with one term, as [`add_products_with`](super::add_products_with); what is found back of the
/// weights goes to the rows of `guess` from `first` on.
///
/// # Panics
///
/// Where a buffer does not have the size that `rows` and `cols` ask for.
pub fn add_product_with(
    variant: Variant,
    w: &[u8],
    out: &mut [u8],
    (rows, cols): (usize, usize),
    term: Term,
    (guess, first): (&mut Guess, usize),
) -> Moved {
    require(w, (rows, cols), &term);
    assert!(out.len() == w.len(), "weights of another size");
    assert!(guess.cols == cols, "a guess of another width");
    if w.is_empty() {
        return Moved::default();
    }
    let found = Some(guess.found(first, rows));
    let terms = [term];
    let step = Step { element: Element::BF16, weights: Weights::Apart { w, out }, rows, cols, terms: &terms, found };
    dispatch::<true>(variant, step)
}

/// The nearest bf16 weights that one product takes to the results `merged`, into `out`, and which are in doubt.
///
/// # Panics
///
/// Where a buffer does not have the size that `rows` and `cols` ask for.
pub fn take_off_with(
    variant: Variant,
    merged: &[u8],
    out: &mut [u8],
    (rows, cols): (usize, usize),
    term: Term,
    doubt: &mut Doubt,
) {
    require(merged, (rows, cols), &term);
    assert!(out.len() == merged.len(), "weights of another size");
    doubt.reset(rows, cols);
    if merged.is_empty() {
        return;
    }
    let (words, terms) = (doubt.words(), [term]);
    let found = Some(Found::Bits { bits: &mut doubt.bits, words });
    let weights = Weights::Apart { w: merged, out };
    dispatch::<false>(variant, Step { element: Element::BF16, weights, rows, cols, terms: &terms, found });
}

fn require(bytes: &[u8], (rows, cols): (usize, usize), term: &Term) {
    assert!(rows.checked_mul(cols).and_then(|n| n.checked_mul(2)) == Some(bytes.len()), "weights of another size");
    assert!(term.covers(rows, cols), "a factor is too short");
}

fn dispatch<const MERGED: bool>(variant: Variant, step: Step) -> Moved {
    // As for the merge step.
    let ordinary = step.terms.iter().all(|t| t.scale.is_finite());
    match variant {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the variant needs, and all sizes were checked above.
        Variant::Avx2 if ordinary && variant.runs_here() => unsafe { super::x86::avx2_back::<MERGED>(step) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the variant needs, and all sizes were checked above.
        Variant::Avx512 if ordinary && variant.runs_here() => unsafe { super::x86::avx512_back::<MERGED>(step) },
        _ => step_by_step::<MERGED>(variant, step),
    }
}

/// The merge step and its inverse one after the other, with the products as a tile in between: what all variants are
/// held to.
fn step_by_step<const MERGED: bool>(variant: Variant, step: Step) -> Moved {
    /// Elements at a time.
    const TILE: usize = 1 << 15;
    let Step { element, weights, rows, cols, terms, found } = step;
    let (Weights::Apart { w, out }, Some(mut found), [term]) = (weights, found, terms) else { return Moved::default() };
    let mut moved = Moved::default();
    if MERGED {
        let weights = Weights::Apart { w, out: &mut *out };
        moved = super::dispatch(variant, Step { element, weights, rows, cols, terms, found: None });
    }
    let height = (TILE / cols).max(1);
    let (mut tile, mut base, mut doubtful) = (Vec::new(), Vec::new(), Vec::new());
    for first in (0..rows).step_by(height) {
        let dim = (height.min(rows - first), cols);
        let range = 2 * first * cols..2 * (first + dim.0) * cols;
        tile.clear();
        tile.resize(dim.0 * cols, 0.0);
        let part = Term { b: &term.b[(first * term.b_stride).min(term.b.len())..], scale: 1.0, ..*term };
        super::add_products_to_tile_with(variant, &mut tile, dim.0, cols, &[part]);
        base.resize(range.len(), 0);
        doubtful.clear();
        let pointwise = Pointwise { addends: &[Addend { values: &tile, scale: term.scale }], factor: Factor::None };
        let merged = if MERGED { &out[range.clone()] } else { &w[range.clone()] };
        inverse::invert(variant, (Element::BF16, Element::BF16), merged, dim, pointwise, &mut base, &mut doubtful);
        let places = doubtful.iter().map(|&i| (i as usize, first + i as usize / cols, i as usize % cols));
        match &mut found {
            Found::Bits { bits, words } => {
                places.for_each(|(_, row, col)| bits[row * *words + col / WORD] |= 1 << (col % WORD));
                out[range].copy_from_slice(&base);
            }
            Found::Pairs { pairs, row: stride, counts, right } => {
                let truth = &w[range];
                for (i, row, _) in places {
                    pairs[row * *stride + counts[row] as usize] = pair(&base, truth, i);
                    counts[row] += 1;
                }
                **right &= only_doubtful_differ(&base, truth, &doubtful);
            }
        }
    }
    moved
}

/// Guess and truth of element i.
fn pair(guess: &[u8], truth: &[u8], i: usize) -> u32 {
    let at = |bytes: &[u8]| u32::from(u16::from_le_bytes(bytes.as_chunks::<2>().0[i]));
    at(guess) | at(truth) << 16
}

fn only_doubtful_differ(guess: &[u8], truth: &[u8], doubtful: &[u32]) -> bool {
    let mut doubtful = doubtful.iter().peekable();
    let both = guess.as_chunks::<2>().0.iter().zip(truth.as_chunks::<2>().0);
    both.enumerate().all(|(i, (guess, truth))| doubtful.next_if(|&&d| d as usize == i).is_some() || guess == truth)
}
