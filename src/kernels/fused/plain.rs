//! The definition: plain loops, one element after the other, and the end of the step (rounding, and what is counted)
//! that the vector variants use for elements out of the ordinary.

use half::{bf16, f16};

use super::{Element, Moved, Step, Term, Weights, sample};

/// The one NaN that comes out, whatever went in.
const NAN: f32 = f32::from_bits(0x7fc0_0000);
const NAN64: f64 = f64::from_bits(0x7ff8_0000_0000_0000);

pub(super) fn run(step: Step) -> Moved {
    let Step { element, weights, rows, cols, terms, .. } = step;
    let size = element.bytes();
    let mut moved = Moved { elements: rows as u64 * cols as u64, ..Moved::default() };
    match weights {
        Weights::Apart { w, out } => {
            let (olds, news) = (w.chunks_exact(size), out.chunks_exact_mut(size));
            let places = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j)));
            for ((old, new), place) in olds.zip(news).zip(places) {
                one(element, old, new, place, sample::run(place.0, rows).0, terms, &mut moved);
            }
        }
        Weights::Tile(values) => {
            for (i, row) in values.chunks_exact_mut(cols).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    let mut new = [0u8; 4];
                    let sampled = sample::run(i, rows).0;
                    one(element, &value.to_le_bytes(), &mut new, (i, j), sampled, terms, &mut moved);
                    *value = f32::from_le_bytes(new);
                }
            }
        }
    }
    moved.scaled_up(rows)
}

/// One element.
fn one(
    element: Element,
    old: &[u8],
    new: &mut [u8],
    (i, j): (usize, usize),
    sampled: bool,
    terms: &[Term],
    moved: &mut Moved,
) {
    if element == Element::F64 {
        let before = f64::from_le_bytes(old.try_into().unwrap_or_default());
        let (mut v, mut wanted) = (before, 0f64);
        for t in terms {
            let d = factors(t, i, j).fold(0f64, |d, (b, a)| f64::from(b).mul_add(f64::from(a), d));
            v = f64::from(t.scale).mul_add(d, v);
            wanted = f64::from(t.scale).mul_add(d, wanted);
        }
        let after = if v.is_nan() { NAN64 } else { v };
        new.copy_from_slice(&after.to_le_bytes());
        return count(old == new, after.is_finite(), sampled.then_some(wanted), after - before, moved);
    }
    let (mut v, mut wanted) = (load(element, old), 0f32);
    for t in terms {
        let d = factors(t, i, j).fold(0f32, |d, (b, a)| b.mul_add(a, d));
        v = t.scale.mul_add(d, v);
        wanted = t.scale.mul_add(d, wanted);
    }
    settle(element, v, sampled.then_some(wanted), old, new, moved);
}

/// The pairs (b[i, k], a[k, j]) over k.
fn factors(t: &Term, i: usize, j: usize) -> impl Iterator<Item = (f32, f32)> {
    (0..t.rank).map(move |k| (t.b[i * t.b_stride + k], t.a[k * t.a_stride + j]))
}

/// The end of the step for one element of up to 32 bits: rounds v into `new` and counts what happened, in rows of the
/// sample with what was wanted.
pub(super) fn settle(element: Element, v: f32, wanted: Option<f32>, old: &[u8], new: &mut [u8], moved: &mut Moved) {
    let after = store(element, if v.is_nan() { NAN } else { v }, new);
    count(old == new, after.is_finite(), wanted.map(f64::from), (after - load(element, old)).into(), moved);
}

fn count(still: bool, finite: bool, wanted: Option<f64>, realised: f64, moved: &mut Moved) {
    moved.still += u64::from(still);
    moved.nonfinite += u64::from(!finite);
    if let Some(wanted) = wanted.filter(|wanted| finite && wanted.is_finite()) {
        moved.wanted += wanted * wanted;
        moved.along += wanted * realised;
    }
}

fn load(element: Element, b: &[u8]) -> f32 {
    match (element, b) {
        (Element::F16, &[x, y]) => f16::from_le_bytes([x, y]).to_f32(),
        (Element::BF16, &[x, y]) => bf16::from_le_bytes([x, y]).to_f32(),
        (_, &[x, y, z, u]) => f32::from_le_bytes([x, y, z, u]),
        _ => 0.0, // chunks have the size of the element
    }
}

/// Rounds, and returns the value that is now stored.
fn store(element: Element, v: f32, out: &mut [u8]) -> f32 {
    match element {
        Element::F16 => {
            let h = f16::from_f32(v);
            out.copy_from_slice(&h.to_le_bytes());
            h.to_f32()
        }
        Element::BF16 => {
            let h = bf16::from_f32(v);
            out.copy_from_slice(&h.to_le_bytes());
            h.to_f32()
        }
        _ => {
            out.copy_from_slice(&v.to_le_bytes());
            v
        }
    }
}
