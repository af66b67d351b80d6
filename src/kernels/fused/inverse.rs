//! The merge step backwards: from a stored result to the weight it was made of, as far as the result tells.
//!
//! A merge takes w to `round(g · (w + Σ scale · d))`, which never falls as w grows (for g > 0; without g where there
//! is none). Its inverse is therefore one value of the base's type for most results, and a run of neighbours for the
//! rest: where the result is coarser than the weight was. For each element this finds the nearest candidate, and says
//! whether a neighbour would have given the same result: only there has anything been lost. (Zero is always said to be
//! in doubt: its neighbours are the other zero and the smallest numbers.)
//!
//! All operations are single f32 operations in a fixed order, so every machine finds the same candidates and the same
//! elements to be in doubt. The loops are written for the compiler to turn into vector code.

use super::stored::{Bf16, F16, F32, Stored};
use super::{Element, Variant};

/// Elements worked on side by side.
const N: usize = 64;

/// What was added to each element: `scale · values[i]`.
#[derive(Clone, Copy, Debug)]
pub struct Addend<'a> {
    /// One number for each element, row by row.
    pub values: &'a [f32],
    /// Their multiplier.
    pub scale: f32,
}

/// What rows or columns were multiplied by after the sum.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// Nothing.
    None,
    /// A number for each row.
    Rows(&'a [f32]),
    /// A number for each column.
    Cols(&'a [f32]),
}

/// A merge of each element by itself.
#[derive(Clone, Copy, Debug)]
pub struct Pointwise<'a> {
    /// What was added, in order.
    pub addends: &'a [Addend<'a>],
    /// What came after it.
    pub factor: Factor<'a>,
}

/// For stored results of type `merged_as`, the nearest weights of type `base` that give them, into `base_bytes`; the
/// numbers of the elements whose neighbours give the same are appended to `doubtful`. Where zero is among the
/// candidates of a doubtful element, it is the one chosen. Results that no finite weight gives come out as zero and
/// are not doubtful.
///
/// # Panics
///
/// Where a buffer does not have the size that `rows` and `cols` ask for, and for f64, which this is not written for.
pub fn invert(
    variant: Variant,
    (base, merged_as): (Element, Element),
    merged: &[u8],
    (rows, cols): (usize, usize),
    step: Pointwise,
    base_bytes: &mut [u8],
    doubtful: &mut Vec<u32>,
) {
    let elements = rows * cols;
    assert!(merged.len() == elements * merged_as.bytes(), "merged elements of another size");
    assert!(base_bytes.len() == elements * base.bytes(), "base elements of another size");
    assert!(step.addends.iter().all(|a| a.values.len() == elements), "addends of another size");
    assert!(match step.factor {
        Factor::None => true,
        Factor::Rows(f) => f.len() == rows,
        Factor::Cols(f) => f.len() == cols,
    });
    let call = Call { merged, rows, cols, step, base: base_bytes, doubtful };
    match (base, merged_as) {
        (Element::BF16, Element::BF16) => dispatch::<Bf16, Bf16>(variant, call),
        (Element::BF16, Element::F16) => dispatch::<Bf16, F16>(variant, call),
        (Element::BF16, Element::F32) => dispatch::<Bf16, F32>(variant, call),
        (Element::F16, Element::BF16) => dispatch::<F16, Bf16>(variant, call),
        (Element::F16, Element::F16) => dispatch::<F16, F16>(variant, call),
        (Element::F16, Element::F32) => dispatch::<F16, F32>(variant, call),
        (Element::F32, Element::BF16) => dispatch::<F32, Bf16>(variant, call),
        (Element::F32, Element::F16) => dispatch::<F32, F16>(variant, call),
        (Element::F32, Element::F32) => dispatch::<F32, F32>(variant, call),
        (Element::F64, _) | (_, Element::F64) => assert!(elements == 0, "no inverse step for f64"),
    }
}

struct Call<'a> {
    merged: &'a [u8],
    rows: usize,
    cols: usize,
    step: Pointwise<'a>,
    base: &'a mut [u8],
    doubtful: &'a mut Vec<u32>,
}

fn dispatch<B: Stored, S: Stored>(variant: Variant, call: Call) {
    match variant {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the variant needs.
        Variant::Avx2 if variant.runs_here() => unsafe { avx2::<B, S>(call) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has what the variant needs.
        Variant::Avx512 if variant.runs_here() => unsafe { avx512::<B, S>(call) },
        _ => run::<B, S, Products>(call),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn avx2<B: Stored, S: Stored>(call: Call) {
    run::<B, S, Signs>(call);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn avx512<B: Stored, S: Stored>(call: Call) {
    run::<B, S, Mask>(call);
}

#[inline(always)]
fn load<S: Stored>(bytes: &[u8], out: &mut [u32; N]) {
    if S::BYTES == 2 {
        for (word, out) in bytes.as_chunks::<2>().0.iter().zip(out) {
            *out = u32::from(u16::from_le_bytes(*word));
        }
    } else {
        for (word, out) in bytes.as_chunks::<4>().0.iter().zip(out) {
            *out = u32::from_le_bytes(*word);
        }
    }
}

#[inline(always)]
fn store<B: Stored>(patterns: &[u32; N], out: &mut [u8]) {
    if B::BYTES == 2 {
        for (pattern, out) in patterns.iter().zip(out.as_chunks_mut::<2>().0) {
            *out = (*pattern as u16).to_le_bytes();
        }
    } else {
        for (pattern, out) in patterns.iter().zip(out.as_chunks_mut::<4>().0) {
            *out = pattern.to_le_bytes();
        }
    }
}

#[inline(always)]
fn run<B: Stored, S: Stored, G: Gather>(call: Call) {
    let Call { merged, rows, cols, step, base, doubtful } = call;
    if let Factor::None = step.factor {
        return line::<B, S, G>(merged, 0, rows * cols, step.addends, &Gain::None, base, doubtful);
    }
    for row in 0..rows {
        let gain = match step.factor {
            Factor::None => Gain::None,
            Factor::Rows(factors) => Gain::One(factors[row]),
            Factor::Cols(factors) => Gain::Each(factors),
        };
        line::<B, S, G>(merged, row * cols, cols, step.addends, &gain, base, doubtful);
    }
}

enum Gain<'a> {
    None,
    One(f32),
    Each(&'a [f32]),
}

/// `len` elements from number `from` on.
#[inline(always)]
fn line<B: Stored, S: Stored, G: Gather>(
    merged: &[u8],
    from: usize,
    len: usize,
    addends: &[Addend],
    gain: &Gain,
    base: &mut [u8],
    doubtful: &mut Vec<u32>,
) {
    let mut done = 0;
    while done < len {
        let at = from + done;
        let count = N.min(len - done);
        let (mut found, mut doubt) = ([0u32; N], [0u8; N]);
        let mut gains = [1f32; N];
        match gain {
            Gain::None => {}
            Gain::One(g) => gains = [*g; N],
            Gain::Each(g) => gains[..count].copy_from_slice(&g[done..done + count]),
        }
        let gains = if let Gain::None = gain { None } else { Some(&gains) };
        let mut results = [0u32; N];
        load::<S>(&merged[at * S::BYTES..(at + count) * S::BYTES], &mut results);
        chunk::<B, S>(&results, addends, at, count, gains, &mut found, &mut doubt);
        push(G::bits(&doubt), at, count, doubtful);
        store::<B>(&found, &mut base[at * B::BYTES..(at + count) * B::BYTES]);
        done += count;
    }
}

/// How a family of processors gathers the ones among N bytes as bits.
trait Gather {
    fn bits(bytes: &[u8; N]) -> u64;
}

/// Any processor: with products.
struct Products;

impl Gather for Products {
    #[inline(always)]
    fn bits(bytes: &[u8; N]) -> u64 {
        let mut out = 0;
        for (i, eight) in bytes.as_chunks::<8>().0.iter().enumerate() {
            // Byte k, which is 0 or 1, is moved to bit 56 + k: the factor has a one at bit 56 − 7·k for each.
            let gathered = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            out |= gathered << (8 * i);
        }
        out
    }
}

/// AVX2.
#[cfg(target_arch = "x86_64")]
struct Signs;

#[cfg(target_arch = "x86_64")]
impl Gather for Signs {
    #[inline(always)]
    fn bits(bytes: &[u8; N]) -> u64 {
        // SAFETY: only `avx2` uses this type.
        unsafe { x86::signs(bytes) }
    }
}

/// AVX-512.
#[cfg(target_arch = "x86_64")]
struct Mask;

#[cfg(target_arch = "x86_64")]
impl Gather for Mask {
    #[inline(always)]
    fn bits(bytes: &[u8; N]) -> u64 {
        // SAFETY: only `avx512` uses this type.
        unsafe { x86::mask(bytes) }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::N;

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn signs(bytes: &[u8; N]) -> u64 {
        let at = bytes.as_ptr();
        // SAFETY: 32 bytes are there behind each of the two.
        let (low, high) = unsafe { (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())) };
        let of = |v| _mm256_movemask_epi8(_mm256_cmpgt_epi8(v, _mm256_setzero_si256())) as u32;
        u64::from(of(low)) | u64::from(of(high)) << 32
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    pub fn mask(bytes: &[u8; N]) -> u64 {
        // SAFETY: 64 bytes are there.
        let all = unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) };
        _mm512_test_epi8_mask(all, all)
    }
}

/// Appends the numbers of the bits that are set, of the first `count`.
#[inline(always)]
fn push(mut bits: u64, at: usize, count: usize, out: &mut Vec<u32>) {
    bits &= u64::MAX >> (N - count);
    if bits == 0 {
        return;
    }
    out.reserve(N);
    while bits != 0 {
        out.push(at as u32 + bits.trailing_zeros());
        bits &= bits.wrapping_sub(1);
    }
}

/// Up to N elements: patterns of the nearest candidates, and ones where there are more.
#[inline(always)]
fn chunk<B: Stored, S: Stored>(
    merged: &[u32; N],
    addends: &[Addend],
    at: usize,
    count: usize,
    gains: Option<&[f32; N]>,
    found: &mut [u32; N],
    doubt: &mut [u8; N],
) {
    match (addends, gains) {
        ([only], None) if count == N => {
            let values = only.values[at..].first_chunk::<N>();
            one::<B, S>(merged, only.scale, values.unwrap_or(&[0.0; N]), found, doubt);
        }
        _ => several::<B, S>(merged, addends, at, count, gains, found, doubt),
    }
}

/// The usual case: one sum and nothing else, in one loop.
#[inline(always)]
fn one<B: Stored, S: Stored>(merged: &[u32; N], scale: f32, d: &[f32; N], found: &mut [u32; N], doubt: &mut [u8; N]) {
    for i in 0..N {
        let doubted;
        (found[i], doubted) = element::<B, S>(merged[i], scale, d[i]);
        doubt[i] = u8::from(doubted);
    }
    sure_where_not_finite::<S>(merged, doubt);
}

/// One element of one sum: the nearest candidate, and whether there are more, for a result that is finite.
#[inline(always)]
pub(super) fn element<B: Stored, S: Stored>(merged: u32, scale: f32, d: f32) -> (u32, bool) {
    let v = (-scale).mul_add(d, S::widen(merged));
    let nearest = settle::<B, S>(v, merged);
    let away = scale.mul_add(d, B::widen(nearest.wrapping_add(1)));
    let towards = scale.mul_add(d, B::widen(nearest.wrapping_sub(1)));
    let others = S::rounds_to(away, merged) | S::rounds_to(towards, merged);
    let zero = S::rounds_to(scale * d + 0.0, merged);
    let doubted = others | (nearest & !B::SIGN == 0);
    (if doubted & zero { 0 } else { nearest }, doubted)
}

/// The pattern nearest to v; zero where v or the result are not finite.
#[inline(always)]
fn settle<B: Stored, S: Stored>(v: f32, merged: u32) -> u32 {
    let pattern = B::narrow(v);
    // The comparison is false for NaN, too.
    let finite = v.abs() < f32::INFINITY && pattern & !B::SIGN < B::INFINITY && merged & !S::SIGN < S::INFINITY;
    if finite { pattern } else { 0 }
}

/// Nothing is said to be in doubt where the result is not finite: no weight would be found.
#[inline(always)]
fn sure_where_not_finite<S: Stored>(merged: &[u32; N], doubt: &mut [u8; N]) {
    for (doubt, m) in doubt.iter_mut().zip(merged) {
        *doubt &= u8::from(m & !S::SIGN < S::INFINITY);
    }
}

/// Any number of sums, and a factor.
#[inline(always)]
fn several<B: Stored, S: Stored>(
    merged: &[u32; N],
    addends: &[Addend],
    at: usize,
    count: usize,
    gains: Option<&[f32; N]>,
    found: &mut [u32; N],
    doubt: &mut [u8; N],
) {
    let mut v = [0f32; N];
    for (v, m) in v.iter_mut().zip(merged) {
        *v = S::widen(*m);
    }
    if let Some(gains) = gains {
        for (v, g) in v.iter_mut().zip(gains) {
            *v /= g;
        }
    }
    for addend in addends.iter().rev() {
        let d = values(addend, at, count);
        for (v, d) in v.iter_mut().zip(&d) {
            *v = (-addend.scale).mul_add(*d, *v);
        }
    }
    let (mut away, mut towards) = ([0f32; N], [0f32; N]);
    for i in 0..N {
        found[i] = settle::<B, S>(v[i], merged[i]);
        away[i] = B::widen(found[i].wrapping_add(1));
        towards[i] = B::widen(found[i].wrapping_sub(1));
    }
    for neighbours in [&mut away, &mut towards] {
        for addend in addends {
            let d = values(addend, at, count);
            for (v, d) in neighbours.iter_mut().zip(&d) {
                *v = addend.scale.mul_add(*d, *v);
            }
        }
        if let Some(gains) = gains {
            for (v, g) in neighbours.iter_mut().zip(gains) {
                *v *= g;
            }
        }
    }
    let mut zero = [0f32; N];
    for addend in addends {
        let d = values(addend, at, count);
        for (v, d) in zero.iter_mut().zip(&d) {
            *v = addend.scale.mul_add(*d, *v);
        }
    }
    if let Some(gains) = gains {
        for (v, g) in zero.iter_mut().zip(gains) {
            *v *= g;
        }
    }
    for i in 0..N {
        let others = S::rounds_to(away[i], merged[i]) | S::rounds_to(towards[i], merged[i]);
        let doubted = others | (found[i] & !B::SIGN == 0);
        found[i] = if doubted & S::rounds_to(zero[i], merged[i]) { 0 } else { found[i] };
        doubt[i] = u8::from(doubted);
    }
    sure_where_not_finite::<S>(merged, doubt);
}

#[inline(always)]
fn values(addend: &Addend, at: usize, count: usize) -> [f32; N] {
    let mut out = [0f32; N];
    if count == N {
        out.copy_from_slice(&addend.values[at..at + N]);
    } else {
        out[..count].copy_from_slice(&addend.values[at..at + count]);
    }
    out
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Every bf16 weight, a sum that is small, large and opposite: the weight is found, or in doubt; and it is in doubt
    /// exactly where another weight gives the same result.
    #[test]
    fn what_is_not_in_doubt_is_right() {
        let weights: Vec<bf16> = (0..=0xffffu16).map(bf16::from_bits).filter(|w| w.is_finite()).collect();
        for sum in [0.0f32, 1e-3, -0.7, 3.0, 1e30] {
            let merged: Vec<bf16> = weights.iter().map(|w| bf16::from_f32(w.to_f32() + sum)).collect();
            let mut makers = std::collections::HashMap::new();
            for m in &merged {
                *makers.entry(m.to_bits()).or_insert(0) += 1;
            }
            let bytes: Vec<u8> = merged.iter().flat_map(|m| m.to_le_bytes()).collect();
            let values = vec![sum; weights.len()];
            let addends = [Addend { values: &values, scale: 1.0 }];
            for variant in Variant::present() {
                let (mut base, mut doubtful) = (vec![0; bytes.len()], Vec::new());
                let step = Pointwise { addends: &addends, factor: Factor::None };
                let both = (Element::BF16, Element::BF16);
                invert(variant, both, &bytes, (1, weights.len()), step, &mut base, &mut doubtful);
                let doubtful: std::collections::HashSet<u32> = doubtful.into_iter().collect();
                let mut needless = 0;
                for (i, (w, m)) in weights.iter().zip(&merged).enumerate() {
                    if !m.is_finite() {
                        continue;
                    }
                    let several = makers[&m.to_bits()] > 1;
                    let found = bf16::from_le_bytes([base[2 * i], base[2 * i + 1]]);
                    let doubted = doubtful.contains(&(i as u32));
                    // Not every doubt has a reason: the nearest value may be a neighbour of the only one that fits.
                    assert!(doubted || !several, "{w} + {sum}, found {found}");
                    assert!(doubted || found.to_bits() == w.to_bits(), "{w} + {sum}: {found}");
                    needless += usize::from(doubted && !several && found.to_bits() != 0);
                }
                assert!(needless < 100, "{needless} in doubt for nothing at {sum}");
            }
        }
    }

    #[test]
    fn all_variants_agree_with_factors_and_tails() {
        let cols = 3 * N + 7;
        let rows = 5;
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let merged: Vec<u8> = (0..rows * cols).flat_map(|_| f16::from_f32(next()).to_le_bytes()).collect();
        let (d1, d2): (Vec<f32>, Vec<f32>) = (0..rows * cols).map(|_| (next() * 0.1, next())).unzip();
        let addends = [Addend { values: &d1, scale: 0.5 }, Addend { values: &d2, scale: -0.01 }];
        let (by_row, by_col): (Vec<f32>, Vec<f32>) =
            ((0..rows).map(|_| 1.0 + 0.1 * next()).collect(), (0..cols).map(|_| 1.0 + 0.1 * next()).collect());
        for factor in [Factor::None, Factor::Rows(&by_row), Factor::Cols(&by_col)] {
            for base in [Element::BF16, Element::F16, Element::F32] {
                let results: Vec<_> = Variant::present()
                    .into_iter()
                    .map(|variant| {
                        let (mut out, mut doubtful) = (vec![0; rows * cols * base.bytes()], Vec::new());
                        let step = Pointwise { addends: &addends, factor };
                        let both = (base, Element::F16);
                        invert(variant, both, &merged, (rows, cols), step, &mut out, &mut doubtful);
                        (out, doubtful)
                    })
                    .collect();
                assert!(results.iter().all(|r| *r == results[0]), "{base:?} {factor:?}");
                assert!(!results[0].1.is_empty() && results[0].1.len() < rows * cols || base == Element::F32);
            }
        }
    }
}
