//! What is missing between predicted elements and the true ones, without loss and small.
//!
//! For every element in doubt the distance between the ordinals of truth and prediction is stored, in order; their
//! places are known to the reader, who has the same prediction. For all other elements only those that differ are
//! stored: by the gaps between them where they are rare, else one distance for each. Distances are folded (0, −1, 1,
//! −2 … become 0, 1, 2, 3 …) and lie in streams of bytes, which zstd packs: its entropy coder does the rest. Nothing
//! missing takes no bytes at all.

use crate::error::{Error, Result};
use crate::tensor::ordinal::{ordinal, pattern};

/// Compression level: the streams are nearly pure entropy, a higher one gains nothing.
const LEVEL: i32 = 1;
/// The largest distance that a byte holds; this value says that more bytes follow.
const ESCAPE: u64 = 255;

/// The elements a residual is of.
#[derive(Clone, Copy, Debug)]
pub struct Elements {
    /// Bytes of one: 1, 2, 4 or 8.
    pub size: usize,
    /// Signed magnitudes, as floats are, and not whole numbers.
    pub float: bool,
}

/// A prediction, and the numbers of the elements in doubt in rising order.
#[derive(Debug)]
pub struct Predicted<'a> {
    /// Elements; those in doubt are put right on the way.
    pub bytes: &'a mut [u8],
    /// Those in doubt.
    pub doubtful: &'a [u32],
}

impl Elements {
    #[inline(always)]
    fn get(self, bytes: &[u8], index: usize) -> i64 {
        fn at<const N: usize>(bytes: &[u8], index: usize) -> [u8; N] {
            bytes.as_chunks::<N>().0[index]
        }
        let bits = match self.size {
            1 => u64::from(bytes[index]),
            2 => u64::from(u16::from_le_bytes(at(bytes, index))),
            4 => u64::from(u32::from_le_bytes(at(bytes, index))),
            _ => u64::from_le_bytes(at(bytes, index)),
        };
        if self.float { ordinal(bits, 8 * self.size as u32) } else { bits as i64 }
    }

    #[inline(always)]
    fn set(self, bytes: &mut [u8], index: usize, value: i64) {
        let bits = if self.float { pattern(value, 8 * self.size as u32) } else { value as u64 };
        match self.size {
            1 => bytes[index] = bits as u8,
            2 => bytes.as_chunks_mut::<2>().0[index] = (bits as u16).to_le_bytes(),
            4 => bytes.as_chunks_mut::<4>().0[index] = (bits as u32).to_le_bytes(),
            _ => bytes.as_chunks_mut::<8>().0[index] = bits.to_le_bytes(),
        }
    }

    /// Distance from `from` to `to`, folded. Whole numbers go round at the end of their range.
    #[inline(always)]
    fn distance(self, from: i64, to: i64) -> u64 {
        let wide = to.wrapping_sub(from);
        let unused = 64 - 8 * self.size as u32;
        let d = if self.float { wide } else { wide << unused >> unused };
        (d << 1 ^ d >> 63) as u64
    }

    #[inline(always)]
    fn moved(self, from: i64, folded: u64) -> i64 {
        from.wrapping_add((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    #[inline(always)]
    fn apply(self, bytes: &mut [u8], index: usize, folded: u64) {
        self.set(bytes, index, self.moved(self.get(bytes, index), folded));
    }

    /// Most bytes that a residual of so many elements unpacks to.
    fn limit(self, elements: usize) -> usize {
        64 + elements.saturating_mul(2 * (self.size + 2))
    }
}

/// The residual; empty where the prediction is the truth and nothing is in doubt.
pub fn encode(elements: Elements, predicted: Predicted, truth: &[u8]) -> Result<Vec<u8>> {
    let count = truth.len() / elements.size;
    let Predicted { bytes, doubtful } = predicted;
    let in_doubt = match elements {
        // The usual case with its constants.
        Elements { size: 2, float: true } => settle(Elements { size: 2, float: true }, bytes, doubtful, truth),
        other => settle(other, bytes, doubtful, truth),
    };
    let mut wrong = Vec::new(); // number among those not in doubt, distance
    let (mut skipped, mut passed) = (doubtful.iter().peekable(), 0usize);
    for_each_difference(elements.size, bytes, truth, |i| {
        while skipped.next_if(|&&d| (d as usize) < i).is_some() {
            passed += 1;
        }
        wrong.push((i - passed, elements.distance(elements.get(bytes, i), elements.get(truth, i))));
    });
    if in_doubt.is_empty() && wrong.is_empty() {
        return Ok(Vec::new());
    }
    let mut out = Vec::new();
    put_list(&in_doubt, elements, &mut out);
    let others = count - in_doubt.len();
    let dense = wrong.len() > others / 8;
    if dense {
        let mut all = vec![0u64; others];
        wrong.iter().for_each(|&(i, d)| all[i] = d);
        out.push(1);
        put_list(&all, elements, &mut out);
    } else {
        put_exceptions(&wrong, elements, &mut out);
    }
    pack(&out)
}

/// The residual of floats of 16 bits where none but those in doubt are off, an element at a time: the same bytes as
/// [`encode`] gives.
#[derive(Clone, Debug)]
pub struct InDoubt {
    /// A list as [`put_list`] begins it.
    list: Vec<u8>,
    /// The distances that a byte does not hold.
    large: Vec<u64>,
}

impl Default for InDoubt {
    fn default() -> InDoubt {
        InDoubt { list: vec![0], large: Vec::new() }
    }
}

impl InDoubt {
    /// The next elements in doubt: of each the pattern that was predicted in the lower half, the true one in the upper.
    pub fn extend(&mut self, pairs: &[u32]) {
        let start = self.list.len();
        self.list.extend(pairs.iter().map(|&pair| folded(pair).min(ESCAPE as u32) as u8));
        if self.list[start..].iter().any(|&b| u64::from(b) == ESCAPE) {
            self.large.extend(pairs.iter().map(|&pair| u64::from(folded(pair))).filter(|&d| d >= ESCAPE));
        }
    }

    /// Room for so many more.
    pub fn reserve(&mut self, count: usize) {
        self.list.reserve(count);
    }

    /// The residual; empty where nothing was in doubt.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        let count = self.list.len() - 1;
        if count == 0 {
            return Ok(Vec::new());
        }
        let elements = Elements { size: 2, float: true };
        let mut out = if self.large.len() * 3 < count {
            self.large.iter().for_each(|&v| put_number(v - ESCAPE, &mut self.list));
            self.list
        } else {
            let mut large = self.large.iter();
            let whole =
                |&b: &u8| if u64::from(b) < ESCAPE { u64::from(b) } else { large.next().copied().unwrap_or(ESCAPE) };
            let (list, mut out) = (self.list[1..].iter().map(whole).collect::<Vec<_>>(), Vec::new());
            put_list(&list, elements, &mut out);
            out
        };
        put_exceptions(&[], elements, &mut out);
        pack(&out)
    }
}

/// The folded distance between the floats of 16 bits in the lower and the upper half.
#[inline(always)]
fn folded(pair: u32) -> u32 {
    // As for [`ordinal`], in 32 bits.
    let ordinal = |p: u32| (p & 0x7fff) as i32 ^ ((p << 16) as i32 >> 31);
    let d = ordinal(pair >> 16) - ordinal(pair & 0xffff);
    (d << 1 ^ d >> 31) as u32
}

/// Corrections of few elements that are not in doubt: how many they are, the gaps between them, and their distances.
fn put_exceptions(wrong: &[(usize, u64)], elements: Elements, out: &mut Vec<u8>) {
    let mut next = 0;
    let gaps: Vec<u64> = wrong.iter().map(|&(i, _)| (i - std::mem::replace(&mut next, i + 1)) as u64).collect();
    out.push(0);
    put_number(wrong.len() as u64, out);
    put_list(&gaps, Elements { size: 4, float: true }, out);
    put_list(&wrong.iter().map(|w| w.1).collect::<Vec<_>>(), elements, out);
}

fn pack(bytes: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(bytes, LEVEL).map_err(|e| Error::io("cannot compress", e))
}

/// The distances of the elements in doubt, which are put right on the way, so that only the others differ.
#[inline(always)]
fn settle(elements: Elements, bytes: &mut [u8], doubtful: &[u32], truth: &[u8]) -> Vec<u64> {
    let one = |&i: &u32| {
        let (from, to) = (elements.get(bytes, i as usize), elements.get(truth, i as usize));
        elements.set(bytes, i as usize, to);
        elements.distance(from, to)
    };
    doubtful.iter().map(one).collect()
}

/// Makes the prediction in `bytes` the truth.
pub fn decode(elements: Elements, packed: &[u8], doubtful: &[u32], bytes: &mut [u8]) -> Result<()> {
    if packed.is_empty() && doubtful.is_empty() {
        return Ok(());
    }
    let count = bytes.len() / elements.size;
    let unpacked =
        zstd::bulk::decompress(packed, elements.limit(count)).map_err(|e| damaged(&format!("does not unpack: {e}")))?;
    let mut rest = unpacked.as_slice();
    let distances = take_list(&mut rest, doubtful.len(), elements)?;
    match elements {
        // The usual case with its constants.
        Elements { size: 2, float: true } => apply_all(Elements { size: 2, float: true }, &distances, doubtful, bytes),
        other => apply_all(other, &distances, doubtful, bytes),
    }
    let mut apply = |i: usize, folded: u64| elements.apply(bytes, i, folded);
    let others = count - doubtful.len().min(count);
    let mut places = Others::new(doubtful);
    match take(&mut rest, 1)?[0] {
        1 => {
            for (number, folded) in take_list(&mut rest, others, elements)?.into_iter().enumerate() {
                if folded != 0 {
                    apply(places.element(number), folded);
                }
            }
        }
        0 => {
            let wrong = usize::try_from(take_number(&mut rest)?).unwrap_or(usize::MAX);
            if wrong > others {
                return Err(damaged("more corrections than elements"));
            }
            let gaps = take_list(&mut rest, wrong, Elements { size: 4, float: true })?;
            let mut next = 0usize;
            for (gap, folded) in gaps.into_iter().zip(take_list(&mut rest, wrong, elements)?) {
                let number = usize::try_from(gap).ok().and_then(|gap| next.checked_add(gap)).filter(|&n| n < others);
                let number = number.ok_or_else(|| damaged("a correction beyond the last element"))?;
                apply(places.element(number), folded);
                next = number + 1;
            }
        }
        other => return Err(damaged(&format!("correction form {other}"))),
    }
    if rest.is_empty() { Ok(()) } else { Err(damaged("more corrections than there is room for")) }
}

#[inline(always)]
fn apply_all(elements: Elements, distances: &[u64], doubtful: &[u32], bytes: &mut [u8]) {
    for (&i, &folded) in doubtful.iter().zip(distances) {
        elements.apply(bytes, i as usize, folded);
    }
}

fn damaged(what: &str) -> Error {
    Error::malformed(format!("the corrections in the undo record are damaged: {what}"))
}

/// From numbers among the elements not in doubt, in rising order, to elements.
struct Others<'a> {
    doubtful: std::iter::Peekable<std::slice::Iter<'a, u32>>,
    passed: usize,
}

impl<'a> Others<'a> {
    fn new(doubtful: &'a [u32]) -> Self {
        Others { doubtful: doubtful.iter().peekable(), passed: 0 }
    }

    fn element(&mut self, number: usize) -> usize {
        while self.doubtful.next_if(|&&d| d as usize <= number + self.passed).is_some() {
            self.passed += 1;
        }
        number + self.passed
    }
}

/// Calls `f` with every element that differs; equal stretches are compared in one go.
fn for_each_difference(size: usize, a: &[u8], b: &[u8], mut f: impl FnMut(usize)) {
    const STRETCH: usize = 256;
    let step = STRETCH * size;
    for (block, (x, y)) in a.chunks(step).zip(b.chunks(step)).enumerate() {
        if x != y {
            for (i, (x, y)) in x.chunks_exact(size).zip(y.chunks_exact(size)).enumerate() {
                if x != y {
                    f(block * STRETCH + i);
                }
            }
        }
    }
}

/// A list of folded distances. Most fit a byte: then one stream of bytes, with escapes behind it. Where most do not,
/// the bytes of all by significance.
fn put_list(list: &[u64], elements: Elements, out: &mut Vec<u8>) {
    let large = list.iter().filter(|&&v| v >= ESCAPE).count();
    let widest = list.iter().map(|v| 64 - v.leading_zeros() as usize).max().unwrap_or(0).div_ceil(8);
    debug_assert!(widest <= elements.size + 1 || elements.size == 8);
    if large * 3 < list.len() || list.is_empty() {
        out.push(0);
        out.extend(list.iter().map(|&v| v.min(ESCAPE) as u8));
        list.iter().filter(|&&v| v >= ESCAPE).for_each(|&v| put_number(v - ESCAPE, out));
    } else {
        out.push(widest as u8);
        for plane in 0..widest {
            out.extend(list.iter().map(|v| v.to_le_bytes()[plane]));
        }
    }
}

fn take_list(rest: &mut &[u8], count: usize, elements: Elements) -> Result<Vec<u64>> {
    let planes = usize::from(take(rest, 1)?[0]);
    if planes > 8 || planes > elements.size + 1 {
        return Err(damaged(&format!("distances of {planes} bytes")));
    }
    if planes > 0 {
        let mut out = vec![0u64; count];
        for plane in 0..planes {
            for (value, byte) in out.iter_mut().zip(take(rest, count)?) {
                *value |= u64::from(*byte) << (8 * plane);
            }
        }
        return Ok(out);
    }
    let mut out: Vec<u64> = take(rest, count)?.iter().map(|&b| u64::from(b)).collect();
    for value in out.iter_mut().filter(|v| **v == ESCAPE) {
        *value = take_number(rest)?.checked_add(ESCAPE).ok_or_else(|| damaged("a distance overflows"))?;
    }
    Ok(out)
}

/// Seven bits a byte, lowest first; the eighth says that more follow.
fn put_number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_number(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1)?[0];
        if shift == 63 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(damaged("a number of more than 64 bits"))
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> Result<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(count).ok_or_else(|| damaged("they end too soon"))?;
    *rest = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        }
    }

    fn round_trip(elements: Elements, predicted: &[u8], doubtful: &[u32], truth: &[u8]) -> usize {
        let packed = encode(elements, Predicted { bytes: &mut predicted.to_vec(), doubtful }, truth).unwrap();
        let mut bytes = predicted.to_vec();
        decode(elements, &packed, doubtful, &mut bytes).unwrap();
        assert_eq!(bytes, truth, "{elements:?}");
        packed.len()
    }

    #[test]
    fn every_size_and_density_comes_back() {
        let mut next = numbers(3);
        for size in [1, 2, 4, 8] {
            for float in [false, true] {
                let elements = Elements { size, float };
                for one_in in [1, 2, 20, 300] {
                    for count in [0usize, 1, 7, 1000] {
                        let truth: Vec<u8> = (0..count * size).map(|_| next() as u8).collect();
                        let mut predicted = truth.clone();
                        for i in 0..count {
                            if next().is_multiple_of(one_in) {
                                predicted[i * size] = next() as u8;
                            }
                            if next().is_multiple_of(10 * one_in) {
                                predicted[(i + 1) * size - 1] = next() as u8;
                            }
                        }
                        let doubtful: Vec<u32> = (0..count as u32).filter(|_| next().is_multiple_of(5)).collect();
                        round_trip(elements, &predicted, &doubtful, &truth);
                        round_trip(elements, &predicted, &[], &truth);
                    }
                }
            }
        }
    }

    /// One element at a time: the same bytes, for distances of every size.
    #[test]
    fn doubt_alone_gives_the_same_bytes() {
        let mut next = numbers(11);
        for (count, mask) in [(0, 0), (1, 1), (1, 0xffff), (500, 0x8003), (500, 0x1ff), (500, 0xffff), (40_000, 0x8007)]
        {
            let truth: Vec<u16> = (0..3 * count).map(|_| next() as u16).collect();
            let mut predicted = truth.clone();
            let doubtful: Vec<u32> = (0..count).map(|i| 3 * i + 1).collect();
            let mut in_doubt = InDoubt::default();
            for &i in &doubtful {
                predicted[i as usize] ^= next() as u16 & mask;
                in_doubt.extend(&[u32::from(predicted[i as usize]) | u32::from(truth[i as usize]) << 16]);
            }
            let bytes = |v: &[u16]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
            let predicted = Predicted { bytes: &mut bytes(&predicted), doubtful: &doubtful };
            let expected = encode(Elements { size: 2, float: true }, predicted, &bytes(&truth)).unwrap();
            assert!(in_doubt.finish().unwrap() == expected, "{count} {mask:#x}");
        }
    }

    #[test]
    fn a_right_prediction_takes_nothing() {
        let elements = Elements { size: 2, float: true };
        assert_eq!(round_trip(elements, &[1; 2000], &[], &[1; 2000]), 0);
    }

    /// One bit each for 10,000 elements in doubt that are off by one or not; zstd takes up to two.
    #[test]
    fn doubt_costs_its_entropy() {
        let mut next = numbers(5);
        let elements = Elements { size: 2, float: true };
        let predicted: Vec<u8> = (0..2_000_000).map(|_| next() as u8 & 0x3f).collect();
        let mut truth = predicted.clone();
        let doubtful: Vec<u32> = (0..10_000).map(|i| i * 100).collect();
        for &i in &doubtful {
            truth[2 * i as usize] += (next() % 2) as u8;
        }
        let size = round_trip(elements, &predicted, &doubtful, &truth);
        assert!(size < 10_000 / 8 * 2, "{size} bytes");
    }

    #[test]
    fn damage_is_an_error() {
        let mut next = numbers(9);
        let elements = Elements { size: 2, float: true };
        let (predicted, mut truth) = (vec![0u8; 4000], vec![0u8; 4000]);
        (0..400).for_each(|i| truth[i * 10] = next() as u8);
        let packed = encode(elements, Predicted { bytes: &mut predicted.clone(), doubtful: &[3, 9] }, &truth).unwrap();
        for cut in 0..packed.len() {
            assert!(decode(elements, &packed[..cut], &[3, 9], &mut predicted.clone()).is_err(), "{cut}");
        }
        // Whatever a stranger packs: an error or some bytes, never a panic.
        for _ in 0..2000 {
            let text: Vec<u8> = (0..next() % 40).map(|_| next() as u8 % 5).collect();
            let packed = zstd::bulk::compress(&text, 1).unwrap();
            let _ = decode(elements, &packed, &[0, 5], &mut [0u8; 40]);
        }
    }
}
