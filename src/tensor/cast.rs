//! Conversions between stored element types and f32. This is where rounding is defined: to nearest, ties to even,
//! once. Values beyond the largest finite number become infinite for f16 and bf16, as IEEE 754 has it.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::Dtype;

use crate::error::{Error, Result};

/// Widens the little-endian elements in `bytes` into `out`; exact for every type but f64, which is rounded once.
pub fn widen(dtype: Dtype, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    match dtype {
        Dtype::F32 => each(bytes, out, |b: [u8; 4]| f32::from_le_bytes(b)),
        Dtype::BF16 => each(bytes, out, |b: [u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)),
        Dtype::F16 => widen_f16(bytes, out),
        Dtype::F64 => each(bytes, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
        Dtype::F8_E4M3 => each(bytes, out, |[b]: [u8; 1]| e4m3(b)),
        Dtype::F8_E5M2 => each(bytes, out, |[b]: [u8; 1]| f16::from_bits(u16::from(b) << 8).to_f32()),
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
        bytes.par_chunks(PART * size).zip(out.par_chunks_mut(PART)).try_for_each(step)?;
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
    let parts: Vec<(u64, Option<f64>)> = bytes.par_chunks(PART * old).map(step).collect::<Result<_>>()?;
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
        other => Err(Error::unsupported(format!("cannot round to dtype {other}"))),
    }
}

/// Rounds f64 values into little-endian elements of `dtype`: to nearest even, once.
pub fn narrow_f64(dtype: Dtype, values: &[f64], out: &mut [u8]) -> Result<()> {
    match dtype {
        Dtype::F64 => back(values, out, f64::to_le_bytes),
        Dtype::F32 => back(values, out, |v| (v as f32).to_le_bytes()),
        Dtype::BF16 | Dtype::F16 => narrow_by_f32(dtype, values, out),
        other => Err(Error::unsupported(format!("cannot round to dtype {other}"))),
    }
}

/// To 16 bits, by the f32 of [`to_odd`].
fn narrow_by_f32(dtype: Dtype, values: &[f64], out: &mut [u8]) -> Result<()> {
    if out.len() != 2 * values.len() {
        return Err(Error::mismatch(format!("{} elements of 2 bytes for {} bytes", values.len(), out.len())));
    }
    let step = |(values, out): (&[f64], &mut [u8])| {
        let mut run = [0f32; RUN];
        for (values, out) in values.chunks(RUN).zip(out.chunks_mut(2 * RUN)) {
            let run = &mut run[..values.len()];
            // As a rule they are all f32 already, which a loop without branches finds out and does.
            let mut differ = false;
            for (near, v) in run.iter_mut().zip(values) {
                *near = *v as f32;
                differ |= f64::from(*near) != *v;
            }
            if differ {
                run.iter_mut().zip(values).for_each(|(near, v)| *near = to_odd(*v));
            }
            narrow(dtype, run, out)?;
        }
        Ok(())
    };
    if values.len() <= PART {
        return step((values, out));
    }
    values.par_chunks(PART).zip(out.par_chunks_mut(2 * PART)).try_for_each(step)
}

/// The f32 on the way from an f64 to 16 bits: cut off, and its last bit set where anything was. It has more than two bits
/// more than those, so that rounding it gives what rounding the f64 would (Boldo and Melquiond, IEEE Transactions on
/// Computers 57 (2008) 462). `half` leaves out the lower 32 bits instead, and takes what lies beside a middle for one.
fn to_odd(v: f64) -> f32 {
    let near = v as f32;
    if f64::from(near) == v || v.is_nan() {
        return near;
    }
    let cut = near.to_bits() - u32::from(f64::from(near).abs() > v.abs());
    f32::from_bits(cut | 1)
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

/// The 8-bit float with four exponent bits (bias 7) and no infinities; 0x7f and 0xff are NaN.
fn e4m3(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => sign * mantissa / 8.0 * 2f32.powi(-6),
        _ => sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
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
        assert_eq!((e4m3(0x7e), e4m3(0x08), e4m3(0x01)), (448.0, 2f32.powi(-6), 2f32.powi(-9)));
        let mut out = [0f32];
        widen(Dtype::F8_E5M2, &[0x7b], &mut out).unwrap();
        assert_eq!(out, [57344.0]);
    }
}
