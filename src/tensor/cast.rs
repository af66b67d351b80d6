//! Conversions between stored element types and f32. This is where rounding is defined: to nearest, ties to even,
//! once. Values beyond the largest finite number become infinite for f16, bf16 and e5m2, as IEEE 754 has it; e4m3 has no
//! infinity, and they become NaN, which is noticed where a number would not be. (PyTorch 2.15 holds them at 448, even
//! infinity.)

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;

use super::parallel::on_all;
use crate::error::{Error, Result};

/// Widens the little-endian elements in `bytes` into `out`; exact for every type but f64, which is rounded once.
pub fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    match dtype {
        Dtype::F32 => each(bytes, out, |b: [u8; 4]| f32::from_le_bytes(b)),
        Dtype::BF16 => each(bytes, out, |b: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F16 => widen_f16(bytes, out),
        Dtype::F64 => each(bytes, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        Dtype::F8_E4M3 => each(bytes, out, |[b]: [u8; 1]| E4M3_VALUES[usize::from(b)]),
        Dtype::F8_E5M2 => each(bytes, out, |[b]: [u8; 1]| E5M2_VALUES[usize::from(b)]),
        other => Err(Error::unsupported(format!("dtype {other} holds no numbers to compute with"))),
    }
}

/// Widens into f64; exact for every type.
pub fn widen_f64(dtype: Dtype, bytes: &[u8]) -> Result<Vec<f64>> {
    if dtype == Dtype::F64 {
        let (words, _) = bytes.as_chunks::<8>();
        return Ok(words.iter().map(|b| f64::from_le_bytes(*b)).collect());
    }
    let size = dtype.bitsize().div_ceil(8).max(1);
    let mut out = vec![0f64; bytes.len() * 8 / dtype.bitsize()];
    let step = |(bytes, out): (&[u8], &mut [f64])| {
        let mut run = [0f32; RUN];
        for (bytes, out) in bytes.chunks(RUN * size).zip(out.chunks_mut(RUN)) {
            let run = &mut run[..out.len()];
            widen(dtype, bytes, run)?;
            out.iter_mut().zip(run).for_each(|(o, v)| *o = f64::from(*v));
        }
        Ok(())
    };
    if out.len() <= PART {
        step((bytes, &mut out))?; // not worth a thread
    } else {
        let out = &mut out;
        on_all(|| bytes.par_chunks(PART * size).zip(out.par_chunks_mut(PART)).try_for_each(step))?;
    }
    Ok(out)
}

/// The elements of `bytes` in another type: rounded to nearest even, once.
pub fn converted(from: Dtype, to: Dtype, bytes: &[u8]) -> Result<Vec<u8>> {
    let (old, new) = (from.bitsize().div_ceil(8).max(1), to.bitsize().div_ceil(8).max(1));
    let mut out = vec![0; bytes.len() / old * new];
    for (bytes, out) in bytes.chunks(RUN * old).zip(out.chunks_mut(RUN * new)) {
        convert(from, to, bytes, out)?;
    }
    Ok(out)
}

/// Not more than [`RUN`] elements. Only f64 does not go by way of f32 without loss.
fn convert(from: Dtype, to: Dtype, bytes: &[u8], out: &mut [u8]) -> Result<()> {
    if from == Dtype::F64 {
        return narrow_f64(to, &widen_f64(from, bytes)?, out);
    }
    let mut values = [0f32; RUN];
    let values = &mut values[..bytes.len() * 8 / from.bitsize()];
    widen(from, bytes, values)?;
    narrow(to, values, out)
}

/// How many elements are other numbers in another type, and the first that is finite and would not be.
pub fn losses(from: Dtype, to: Dtype, bytes: &[u8]) -> Result<(u64, Option<f64>)> {
    let old = from.bitsize().div_ceil(8).max(1);
    let step = |bytes: &[u8]| {
        let (mut changed, mut lost, mut out) = (0, None, [0; 8 * RUN]);
        for bytes in bytes.chunks(RUN * old) {
            let out = &mut out[..bytes.len() / old * to.bitsize() / 8];
            convert(from, to, bytes, out)?;
            if is_same(from, bytes, to, out)? {
                continue;
            }
            let (values, found) = (widen_f64(from, bytes)?, widen_f64(to, out)?);
            let pairs = || values.iter().zip(&found);
            changed += pairs().filter(|(v, found)| v != found && !v.is_nan()).count() as u64;
            lost = lost.or_else(|| Some(*pairs().find(|(v, found)| v.is_finite() && !found.is_finite())?.0));
        }
        Ok((changed, lost))
    };
    if bytes.len() <= PART * old {
        return step(bytes);
    }
    let parts: Vec<(u64, Option<f64>)> = on_all(|| bytes.par_chunks(PART * old).map(step).collect::<Result<_>>())?;
    Ok((parts.iter().map(|part| part.0).sum(), parts.iter().find_map(|part| part.1)))
}

/// Whether not more than [`RUN`] elements are the same numbers in two types, none of them NaN.
fn is_same(first: Dtype, one: &[u8], second: Dtype, other: &[u8]) -> Result<bool> {
    if first == Dtype::F64 || second == Dtype::F64 {
        return Ok(widen_f64(first, one)? == widen_f64(second, other)?);
    }
    let (mut a, mut b) = ([0f32; RUN], [0f32; RUN]);
    let count = one.len() * 8 / first.bitsize();
    let (a, b) = (&mut a[..count], &mut b[..count]);
    widen(first, one, a)?;
    widen(second, other, b)?;
    Ok(a.iter().zip(&*b).fold(0, |differ, (a, b)| differ | u32::from(a != b)) == 0)
}

/// Bits of mantissa, and the exponent of infinity.
fn form(dtype: Dtype) -> Option<(u32, i32)> {
    match dtype {
        Dtype::BF16 => Some((7, 255)),
        Dtype::F16 => Some((10, 31)),
        Dtype::F32 => Some((23, 255)),
        _ => None,
    }
}

/// The exponent of a power of two.
pub fn power_of_two(scale: f64) -> Option<i32> {
    let power = (scale.to_bits() >> 52) as i32 - 1023;
    (scale.is_normal() && scale == f64::powi(2.0, power)).then_some(power)
}

/// Whether all elements times 2^`power` are numbers of their own type that differ in the exponent alone: zeros are, and
/// what is and stays normal. False also for types that are not looked at.
pub fn is_shift(dtype: Dtype, bytes: &[u8], power: i32) -> bool {
    let Some((mantissa, top)) = form(dtype).filter(|(_, top)| power.abs() < *top) else { return false };
    let (least, most) = (1.max(1 - power), (top - 1).min(top - 1 - power));
    if least > most {
        return false;
    }
    let (least, most) = ((least as u32) << mantissa, ((most as u32 + 1) << mantissa) - 1);
    if dtype == Dtype::F32 {
        let leaves = |all: u32, w: &[u8; 4]| {
            let size = u32::from_le_bytes(*w) & 0x7fff_ffff;
            all | u32::from(size != 0) & (u32::from(size < least) | u32::from(size > most))
        };
        return bytes.as_chunks().0.iter().fold(0, leaves) == 0;
    }
    let (least, most) = (least as u16, most as u16); // fifteen bits
    let leaves = |all: u16, w: &[u8; 2]| {
        let size = u16::from_le_bytes(*w) & 0x7fff;
        all | u16::from(size != 0) & (u16::from(size < least) | u16::from(size > most))
    };
    bytes.as_chunks().0.iter().fold(0, leaves) == 0
}

/// All elements times 2^`power`, where [`is_shift`] says that this is their exponent.
pub fn shifted(dtype: Dtype, bytes: &[u8], power: i32) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let Some((mantissa, _)) = form(dtype) else { return out };
    let step = (power as u32).wrapping_shl(mantissa);
    if dtype == Dtype::F32 {
        for w in out.as_chunks_mut::<4>().0 {
            let bits = u32::from_le_bytes(*w);
            *w = bits.wrapping_add(if bits & 0x7fff_ffff == 0 { 0 } else { step }).to_le_bytes();
        }
        return out;
    }
    let step = step as u16;
    for w in out.as_chunks_mut::<2>().0 {
        let bits = u16::from_le_bytes(*w);
        *w = bits.wrapping_add(if bits & 0x7fff == 0 { 0 } else { step }).to_le_bytes();
    }
    out
}

/// Whether it can be seen from the bits that no element is NaN or infinite: none has all bits of its exponent. False may
/// also mean that this type is not looked at so.
pub fn is_finite(dtype: Dtype, bytes: &[u8]) -> bool {
    match dtype {
        Dtype::BF16 => is_finite_u16(bytes, 0x7f80),
        Dtype::F16 => is_finite_u16(bytes, 0x7c00),
        Dtype::F32 => {
            const MASK: u32 = 0x7f80_0000;
            let found = |all: u32, w: &[u8; 4]| all | u32::from(u32::from_le_bytes(*w) & MASK == MASK);
            bytes.as_chunks().0.iter().fold(0, found) == 0
        }
        Dtype::F8_E4M3 => bytes.iter().fold(0, |all, b| all | u8::from(b & 0x7f == 0x7f)) == 0,
        Dtype::F8_E5M2 => bytes.iter().fold(0, |all, b| all | u8::from(b & 0x7c == 0x7c)) == 0,
        _ => false,
    }
}

fn is_finite_u16(bytes: &[u8], mask: u16) -> bool {
    let found = |all: u16, w: &[u8; 2]| all | u16::from(u16::from_le_bytes(*w) & mask == mask);
    bytes.as_chunks().0.iter().fold(0, found) == 0
}

/// Rounds `values` into little-endian elements of `dtype`: to nearest even, once.
pub fn narrow(dtype: Dtype, values: &[f32], out: &mut [u8]) -> Result<()> {
    match dtype {
        Dtype::F32 => back(values, out, f32::to_le_bytes),
        Dtype::BF16 => back(values, out, |v| to_bf16(v).to_le_bytes()),
        Dtype::F16 => narrow_f16(values, out),
        Dtype::F64 => back(values, out, |v| f64::from(v).to_le_bytes()),
        Dtype::F8_E4M3 => back(values, out, |v| [E4M3.round(v)]),
        Dtype::F8_E5M2 => back(values, out, |v| [E5M2.round(v)]),
        other => Err(Error::unsupported(format!("cannot round to dtype {other}"))),
    }
}

/// Rounds f64 values into little-endian elements of `dtype`: to nearest even, once.
pub fn narrow_f64(dtype: Dtype, values: &[f64], out: &mut [u8]) -> Result<()> {
    match dtype {
        Dtype::F64 => back(values, out, f64::to_le_bytes),
        Dtype::F32 => back(values, out, |v| (v as f32).to_le_bytes()),
        Dtype::BF16 | Dtype::F16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => narrow_by_f32(dtype, values, out),
        other => Err(Error::unsupported(format!("cannot round to dtype {other}"))),
    }
}

/// To 16 or 8 bits, by the f32 of [`to_odd`].
fn narrow_by_f32(dtype: Dtype, values: &[f64], out: &mut [u8]) -> Result<()> {
    let size = dtype.bitsize() / 8;
    if out.len() != size * values.len() {
        return Err(Error::mismatch(format!("{} elements of {size} bytes for {} bytes", values.len(), out.len())));
    }
    let step = |(values, out): (&[f64], &mut [u8])| {
        let mut run = [0f32; RUN];
        for (values, out) in values.chunks(RUN).zip(out.chunks_mut(size * RUN)) {
            let run = &mut run[..values.len()];
            run.iter_mut().zip(values).for_each(|(near, v)| *near = to_odd(*v));
            narrow(dtype, run, out)?;
        }
        Ok(())
    };
    if values.len() <= PART {
        return step((values, out));
    }
    on_all(|| values.par_chunks(PART).zip(out.par_chunks_mut(size * PART)).try_for_each(step))
}

/// The f32 on the way from an f64 to 16 bits or 8: cut off, and its last bit set where anything was. It has more than two bits
/// more than those, so that rounding it gives what rounding the f64 would (Boldo and Melquiond, IEEE Transactions on
/// Computers 57 (2008) 462). `half` leaves out the lower 32 bits instead, and takes what lies beside a middle for one.
#[inline(always)]
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    let wide = f64::from(near);
    let cut = near.to_bits().wrapping_sub(u32::from(wide.abs() > v.abs()));
    f32::from_bits(cut | u32::from(wide != v))
}

/// Integer elements as i64, for index tensors.
pub fn integers(dtype: Dtype, bytes: &[u8]) -> Result<Vec<i64>> {
    Ok(match dtype {
        Dtype::U8 => bytes.iter().map(|&b| i64::from(b)).collect(),
        Dtype::I32 => bytes.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        Dtype::U32 => bytes.as_chunks::<4>().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
        Dtype::I16 => bytes.as_chunks::<2>().0.iter().map(|b| i64::from(i16::from_le_bytes(*b))).collect(),
        Dtype::U16 => bytes.as_chunks::<2>().0.iter().map(|b| i64::from(u16::from_le_bytes(*b))).collect(),
        Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        other => return Err(Error::mismatch(format!("dtype {other}, expected integers"))),
    })
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) -> Result<()> {
    let (words, rest) = bytes.as_chunks::<N>();
    if words.len() != out.len() || !rest.is_empty() {
        return Err(Error::mismatch(format!("{} bytes for {} elements of {N} bytes", bytes.len(), out.len())));
    }
    for (o, w) in out.iter_mut().zip(words) {
        *o = f(*w);
    }
    Ok(())
}

fn back<T: Copy, const N: usize>(values: &[T], out: &mut [u8], f: impl Fn(T) -> [u8; N]) -> Result<()> {
    let bytes = out.len();
    let (words, rest) = out.as_chunks_mut::<N>();
    if words.len() != values.len() || !rest.is_empty() {
        return Err(Error::mismatch(format!("{} elements of {N} bytes for {bytes} bytes", values.len())));
    }
    for (w, v) in words.iter_mut().zip(values) {
        *w = f(*v);
    }
    Ok(())
}

/// Bits of the bf16 next to a value, without a branch, so that the loop around it becomes vector code. Adding half a
/// unit, less one where the last bit is even, carries into the bits that stay; NaN keeps its sign and upper bits and
/// is made quiet.
fn to_bf16(v: f32) -> u16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff).wrapping_add(bits >> 16 & 1) >> 16;
    (if v.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// Elements converted at a time: `half` looks for the processor's instructions once for each slice.
const RUN: usize = 256;
/// Elements that a thread takes at a time, where there are more.
const PART: usize = 1 << 18;

fn widen_f16(bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let (words, rest) = bytes.as_chunks::<2>();
    if words.len() != out.len() || !rest.is_empty() {
        return Err(Error::mismatch(format!("{} bytes for {} elements of 2 bytes", bytes.len(), out.len())));
    }
    let mut run = [f16::ZERO; RUN];
    for (words, out) in words.chunks(RUN).zip(out.chunks_mut(RUN)) {
        let run = &mut run[..words.len()];
        for (h, w) in run.iter_mut().zip(words) {
            *h = f16::from_le_bytes(*w);
        }
        run.convert_to_f32_slice(out);
    }
    Ok(())
}

fn narrow_f16(values: &[f32], out: &mut [u8]) -> Result<()> {
    let bytes = out.len();
    let (words, rest) = out.as_chunks_mut::<2>();
    if words.len() != values.len() || !rest.is_empty() {
        return Err(Error::mismatch(format!("{} elements of 2 bytes for {bytes} bytes", values.len())));
    }
    let mut run = [f16::ZERO; RUN];
    for (words, values) in words.chunks_mut(RUN).zip(values.chunks(RUN)) {
        let run = &mut run[..words.len()];
        run.convert_from_f32_slice(values);
        for (w, h) in words.iter_mut().zip(run) {
            *w = h.to_le_bytes();
        }
    }
    Ok(())
}

/// An 8-bit float: a sign, an exponent and a few bits of mantissa (OCP 8-bit floating point specification, 2023).
struct Eight {
    /// Bits of mantissa.
    mantissa: u32,
    /// What is added to exponents.
    bias: u32,
    /// The largest finite pattern, and the one of everything above it.
    largest: u8,
    above: u8,
}

/// Four bits of exponent and no infinity: only 0x7f and 0xff are none of the numbers.
const E4M3: Eight = Eight { mantissa: 3, bias: 7, largest: 0x7e, above: 0x7f };
/// Five bits of exponent, the upper half of an f16.
const E5M2: Eight = Eight { mantissa: 2, bias: 15, largest: 0x7b, above: 0x7c };
const NAN_8: u8 = 0x7f;

const E4M3_VALUES: [f32; 256] = E4M3.values();
const E5M2_VALUES: [f32; 256] = E5M2.values();

impl Eight {
    /// The number of every pattern.
    const fn values(&self) -> [f32; 256] {
        let mut out = [0f32; 256];
        let mut byte = 0;
        while byte < 256 {
            let magnitude = (byte & 0x7f) as u8;
            let (exponent, digits) = (magnitude as u32 >> self.mantissa, magnitude as u32 & ((1 << self.mantissa) - 1));
            let value = if magnitude > self.largest {
                if magnitude == self.above && self.above != NAN_8 { f32::INFINITY } else { f32::NAN }
            } else if exponent == 0 {
                digits as f32 * f32::from_bits((127 + 1 - self.bias - self.mantissa) << 23)
            } else {
                f32::from_bits((127 + exponent - self.bias) << 23 | digits << (23 - self.mantissa))
            };
            out[byte] = if byte < 128 { value } else { -value };
            byte += 1;
        }
        out
    }

    /// The pattern next to a value, of two that are as near the even one. Without a branch, and inlined so that the loop
    /// around it becomes vector code of constants.
    #[inline(always)]
    fn round(&self, v: f32) -> u8 {
        let bits = v.to_bits();
        let (sign, magnitude) = ((bits >> 24) as u8 & 0x80, bits & 0x7fff_ffff);
        let dropped = 23 - self.mantissa;
        // Normal numbers: the exponent counted anew, half a unit added, less one where the last digit is even.
        let normal = magnitude
            .wrapping_sub((127 - self.bias) << 23)
            .wrapping_add((1 << (dropped - 1)) - 1)
            .wrapping_add(magnitude >> dropped & 1)
            >> dropped;
        // Below them the unit stays: a sum with the f32 whose unit that is rounds to it.
        let shift = f32::from_bits((127 + 1 - self.bias + dropped) << 23);
        let small = (f32::from_bits(magnitude) + shift).to_bits().wrapping_sub(shift.to_bits());
        let least = (127 + 1 - self.bias) << 23;
        let rounded = if magnitude < least { small } else { normal };
        let rounded = if rounded > u32::from(self.largest) { u32::from(self.above) } else { rounded };
        let rounded = if magnitude > 0x7f80_0000 { u32::from(NAN_8) } else { rounded };
        rounded as u8 | sign
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn sixteen_bit_types_survive_the_round_trip() {
        let stored: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for dtype in [Dtype::BF16, Dtype::F16] {
            let (mut wide, mut again) = (vec![0f32; 65536], vec![0u8; 131_072]);
            widen(dtype, &stored, &mut wide).unwrap();
            narrow(dtype, &wide, &mut again).unwrap();
            for (i, value) in wide.iter().enumerate() {
                assert!(value.is_nan() || stored[2 * i..2 * i + 2] == again[2 * i..2 * i + 2], "{dtype} {i:#x}");
            }
        }
    }

    #[test]
    fn what_lies_beside_a_middle_goes_to_its_own_side() {
        let little = f64::powi(2.0, -45);
        for (dtype, unit) in [(Dtype::BF16, f64::powi(2.0, -7)), (Dtype::F16, f64::powi(2.0, -10))] {
            for (value, wanted) in [
                (1.0 + unit / 2.0, 1.0),
                (1.0 + unit / 2.0 + little, 1.0 + unit),
                (1.0 + 1.5 * unit, 1.0 + 2.0 * unit),
                (1.0 + 1.5 * unit - little, 1.0 + unit),
                (-1.0 - unit / 2.0 - little, -1.0 - unit),
                (1e300, f64::INFINITY),
                (-1e-300, 0.0),
            ] {
                let mut out = [0u8; 2];
                narrow_f64(dtype, &[value], &mut out).unwrap();
                assert_eq!(widen_f64(dtype, &out).unwrap(), [wanted], "{dtype}: {value}");
            }
        }
    }

    /// Against `half`: all upper halves, with lower halves around every kind of rounding.
    #[test]
    fn rounding_is_that_of_half() {
        let lower = [0, 1, 0xfff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xffff];
        let values: Vec<f32> =
            (0..=0xffffu32).flat_map(|high| lower.map(|low| f32::from_bits(high << 16 | low))).collect();
        let mut out = vec![0u8; 2 * values.len()];
        narrow(Dtype::BF16, &values, &mut out).unwrap();
        for (v, w) in values.iter().zip(out.as_chunks::<2>().0) {
            assert_eq!(*w, bf16::from_f32(*v).to_le_bytes(), "{:#x}", v.to_bits());
        }
        narrow(Dtype::F16, &values, &mut out).unwrap();
        for (v, w) in values.iter().zip(out.as_chunks::<2>().0) {
            assert_eq!(*w, f16::from_f32(*v).to_le_bytes(), "{:#x}", v.to_bits());
        }
    }

    #[test]
    fn conversion_counts_what_it_changes() {
        let stored = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>();
        let values = [1.0, 1.0 + f32::EPSILON, -0.0, f32::NAN, f32::INFINITY, 70000.0, -1e30];
        assert_eq!(losses(Dtype::F32, Dtype::F16, &stored(&values)).unwrap(), (3, Some(70000.0)));
        let long: Vec<f32> = (0..PART as u32 + 1000).map(|i| i as f32).collect();
        let rounded: Vec<_> = long.iter().map(|v| bf16::from_f32(*v)).collect();
        let changed = long.iter().zip(&rounded).filter(|(v, r)| **v != r.to_f32()).count() as u64;
        assert_eq!(losses(Dtype::F32, Dtype::BF16, &stored(&long)).unwrap(), (changed, None));
        let out = converted(Dtype::F32, Dtype::BF16, &stored(&long)).unwrap();
        assert_eq!(out, rounded.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        // From f64 not by way of f32: 1 + 2⁻¹¹ + 2⁻⁴⁰ is above the middle of two f16.
        let above = 1.0 + f64::powi(2.0, -11) + f64::powi(2.0, -40);
        let out = converted(Dtype::F64, Dtype::F16, &above.to_le_bytes()).unwrap();
        assert_eq!(f16::from_le_bytes([out[0], out[1]]).to_f64(), 1.0 + f64::powi(2.0, -10));
        assert_eq!(losses(Dtype::F64, Dtype::F16, &above.to_le_bytes()).unwrap(), (1, None));
    }

    #[test]
    fn a_power_of_two_moves_the_exponent_or_nothing() {
        assert_eq!(
            [0.25, 1.0, 4096.0, 3.0, -2.0, 0.0].map(power_of_two),
            [Some(-2), Some(0), Some(12), None, None, None]
        );
        for power in [-130, -20, -1, 0, 1, 5, 100, 300] {
            let scale = f64::powi(2.0, power);
            for bits in 0..=u16::MAX {
                let checks = [
                    (Dtype::BF16, bits.to_le_bytes().to_vec(), bf16::from_bits(bits).to_f64()),
                    (Dtype::F16, bits.to_le_bytes().to_vec(), f16::from_bits(bits).to_f64()),
                    (Dtype::F32, (u32::from(bits) << 16).to_le_bytes().to_vec(), bf16::from_bits(bits).to_f64()),
                ];
                for (dtype, bytes, value) in checks {
                    if is_shift(dtype, &bytes, power) {
                        let out = widen_f64(dtype, &shifted(dtype, &bytes, power)).unwrap()[0];
                        assert_eq!(out.to_bits(), (value * scale).to_bits(), "{dtype} {bits:#x} {power}");
                    } else {
                        // Only what is not normal, before or after.
                        let (least, most) = match dtype {
                            Dtype::BF16 => (f64::from(f32::MIN_POSITIVE), bf16::MAX.to_f64()),
                            Dtype::F16 => (f16::MIN_POSITIVE.to_f64(), f16::MAX.to_f64()),
                            _ => (f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX)),
                        };
                        let is_normal = |v: f64| (least..=most).contains(&v.abs());
                        assert!(!is_normal(value) || !is_normal(value * scale), "{dtype} {bits:#x} {power}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_finite_is_seen_from_the_bits() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            assert_eq!(is_finite(Dtype::BF16, &bytes), bf16::from_bits(bits).is_finite(), "{bits:#x}");
            assert_eq!(is_finite(Dtype::F16, &bytes), f16::from_bits(bits).is_finite(), "{bits:#x}");
            let wide = f32::from_bits(u32::from(bits) << 16);
            assert_eq!(is_finite(Dtype::F32, &wide.to_le_bytes()), wide.is_finite(), "{bits:#x}");
        }
    }

    #[test]
    fn long_slices_are_converted_like_short_ones() {
        let values: Vec<f64> = (0..PART + 3 * RUN + 5).map(|i| (i as f64 - 1e5) / 3.0).collect();
        for dtype in [Dtype::BF16, Dtype::F16] {
            let (mut all, mut one) = (vec![0; 2 * values.len()], [0; 2]);
            narrow_f64(dtype, &values, &mut all).unwrap();
            let wide = widen_f64(dtype, &all).unwrap();
            for (i, value) in values.iter().enumerate().step_by(61) {
                narrow_f64(dtype, &[*value], &mut one).unwrap();
                assert_eq!(
                    (&all[2 * i..2 * i + 2], wide[i]),
                    (&one[..], widen_f64(dtype, &one).unwrap()[0]),
                    "{value}"
                );
            }
        }
    }

    #[test]
    fn ties_go_to_even() {
        let (mut out, half) = ([0u8; 2], 2f32.powi(-8));
        for (value, bits) in [(1.0 + half, 0x3f80u16), (1.0 + 3.0 * half, 0x3f82)] {
            narrow(Dtype::BF16, &[value], &mut out).unwrap();
            assert_eq!(u16::from_le_bytes(out), bits, "{value}");
        }
    }

    #[test]
    fn eight_bit_values_from_the_format_table() {
        // OCP 8-bit floating point specification, table 2: largest, smallest normal, smallest subnormal.
        let mut out = [0f32; 3];
        widen(Dtype::F8_E4M3, &[0x7e, 0x08, 0x01], &mut out).unwrap();
        assert_eq!(out, [448.0, 2f32.powi(-6), 2f32.powi(-9)]);
        widen(Dtype::F8_E5M2, &[0x7b, 0x04, 0x01], &mut out).unwrap();
        assert_eq!(out, [57344.0, 2f32.powi(-14), 2f32.powi(-16)]);
    }

    /// The formula in f64: the multiple of the unit that is nearest, of two as near the even one.
    fn nearest(value: f64, mantissa: i32, least: i32, largest: f64) -> f64 {
        let exponent = ((value.abs().to_bits() >> 52) as i32 - 1023).max(least);
        let unit = f64::powi(2.0, exponent - mantissa);
        let rounded = (value / unit).round_ties_even() * unit;
        if rounded.abs() > largest { f64::INFINITY.copysign(value) } else { rounded }
    }

    /// Of all 8-bit values the values themselves, the middles to their neighbours, and what lies next to those.
    #[test]
    fn eight_bits_are_rounded_to_nearest_even() {
        let forms = [(Dtype::F8_E4M3, 3, -6, 448.0), (Dtype::F8_E5M2, 2, -14, 57344.0)];
        for (dtype, mantissa, least, largest) in forms {
            let patterns: Vec<u8> = (0..=255).collect();
            let values = widen_f64(dtype, &patterns).unwrap();
            let mut given: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
            given.extend(values.windows(2).map(|w| f64::midpoint(w[0], w[1])).filter(|v| v.is_finite()));
            given.extend([largest * 1.03, largest * 1.07, 464.0, 464.1, 480.0, 61440.0, 61439.9, 1e9, 1e-9, 1e-30]);
            let beside: Vec<f64> = given.iter().flat_map(|v| [v * (1.0 - 1e-6), v * (1.0 + 1e-6), -v]).collect();
            given.extend(beside);
            let narrow32: Vec<f32> = given.iter().map(|&v| v as f32).collect();
            let (mut by_32, mut by_64) = (vec![0; given.len()], vec![0; given.len()]);
            narrow(dtype, &narrow32, &mut by_32).unwrap();
            narrow_f64(dtype, &given, &mut by_64).unwrap();
            let (by_32, by_64) = (widen_f64(dtype, &by_32).unwrap(), widen_f64(dtype, &by_64).unwrap());
            for (i, &v) in given.iter().enumerate() {
                let same = |found: f64, wanted: f64| {
                    found == wanted || (dtype == Dtype::F8_E4M3 && wanted.is_infinite() && found.is_nan())
                };
                let wide = f64::from(narrow32[i]);
                assert!(same(by_32[i], nearest(wide, mantissa, least, largest)), "{dtype} {wide}: {}", by_32[i]);
                assert!(same(by_64[i], nearest(v, mantissa, least, largest)), "{dtype} {v}: {}", by_64[i]);
            }
            // What is stored comes back, also the sign of zero.
            let (mut wide, mut again) = (vec![0f32; 256], vec![0u8; 256]);
            widen(dtype, &patterns, &mut wide).unwrap();
            narrow(dtype, &wide, &mut again).unwrap();
            for i in 0..256 {
                assert!(wide[i].is_nan() || again[i] == patterns[i], "{dtype} {i:#x}");
                assert_eq!(is_finite(dtype, &patterns[i..=i]), wide[i].is_finite(), "{dtype} {i:#x}");
            }
        }
    }

    const EIGHT_GIVEN: [u32; 48] = [
        0x0, 0x80000000, 0x3f800000, 0x3f880000, 0x3f980000, 0x3f900000, 0x3fb00000, 0xbf880000, 0x43e00000,
        0x43e7f333, 0x43e80000, 0x43e80ccd, 0x43ef8000, 0x43f00000, 0x43fa0000, 0x4e6e6b28, 0x7f800000, 0xff800000,
        0x3c800000, 0x3c000000, 0x3b000000, 0x3a800000, 0x3b400000, 0x3a800347, 0x3ba00000, 0x3be00000, 0x3c700000,
        0x3c6fff2e, 0x3dcccccd, 0xbe99999a, 0x40490fd0, 0x47600000, 0x476fff00, 0x47700000, 0x47700100, 0x47800000,
        0x38800000, 0x37800000, 0x37000000, 0x37c00000, 0x38200000, 0x38600000, 0xda24260, 0x1, 0xb089705f, 0x43700000,
        0x43680000, 0x43780000,
    ];
    const EIGHT_E4M3: [u8; 48] = [
        0x0, 0x80, 0x38, 0x38, 0x3a, 0x39, 0x3b, 0xb8, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0xfe, 0x8,
        0x4, 0x1, 0x0, 0x2, 0x1, 0x2, 0x4, 0x8, 0x7, 0x1d, 0xaa, 0x45, 0x7e, 0x7e, 0x7e, 0x7e, 0x7e, 0x0, 0x0, 0x0,
        0x0, 0x0, 0x0, 0x0, 0x0, 0x80, 0x77, 0x76, 0x78,
    ];
    const EIGHT_E5M2: [u8; 48] = [
        0x0, 0x80, 0x3c, 0x3c, 0x3d, 0x3c, 0x3e, 0xbc, 0x5f, 0x5f, 0x5f, 0x5f, 0x5f, 0x60, 0x60, 0x7c, 0x7c, 0xfc,
        0x24, 0x20, 0x18, 0x14, 0x1a, 0x14, 0x1d, 0x1f, 0x24, 0x23, 0x2e, 0xb5, 0x42, 0x7b, 0x7b, 0x7c, 0x7c, 0x7c,
        0x4, 0x1, 0x0, 0x2, 0x2, 0x4, 0x0, 0x0, 0x80, 0x5c, 0x5b, 0x5c,
    ];

    /// What PyTorch 2.15 casts to (`tensor.to(torch.float8_e4m3fn)`, `float8_e5m2`): ties, numbers below the normal ones,
    /// and beyond the largest, where it holds e4m3 at 448.
    #[test]
    fn eight_bits_are_those_of_pytorch() {
        let given = EIGHT_GIVEN;
        for (dtype, wanted) in [(Dtype::F8_E4M3, EIGHT_E4M3), (Dtype::F8_E5M2, EIGHT_E5M2)] {
            let mut out = vec![0; given.len()];
            narrow(dtype, &given.map(f32::from_bits), &mut out).unwrap();
            for ((bits, found), wanted) in given.iter().zip(out).zip(wanted) {
                let above = dtype == Dtype::F8_E4M3 && f32::from_bits(*bits).abs() > 464.0;
                let wanted = if above { wanted | 0x7f } else { wanted };
                assert_eq!(found, wanted, "{dtype} {}", f32::from_bits(*bits));
            }
        }
    }
}
