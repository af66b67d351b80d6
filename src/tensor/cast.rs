//! Conversions between stored element types and f32. This is where rounding is defined: to nearest, ties to even,
//! once. Values beyond the largest finite number become infinite for f16 and bf16, as IEEE 754 has it.

use half::f16;
use half::slice::HalfFloatSliceExt;
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
    let mut out = vec![0f32; bytes.len() * 8 / dtype.bitsize()];
    widen(dtype, bytes, &mut out)?;
    Ok(out.into_iter().map(f64::from).collect())
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
        Dtype::BF16 => back(values, out, |v| to_bf16(to_odd(v)).to_le_bytes()),
        Dtype::F16 => back(values, out, |v| f16::from_f32(to_odd(v)).to_le_bytes()),
        other => Err(Error::unsupported(format!("cannot round to dtype {other}"))),
    }
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
