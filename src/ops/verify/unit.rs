//! The unit of rounding of an element: the distance of neighbours in the stored type, at the largest of the values that
//! took part in making it.
//!
//! A program that rounds the change before it adds it, or that adds in the stored type, is off by no more than a unit
//! where the result is small because the summands cancel; in units in the last place of the result that may be many.

use crate::tensor::Dtype;

/// Bias of the exponent of an f32.
const BIAS: u32 = 127;
/// Bias of the exponent of an f64.
const WIDE_BIAS: i64 = 1023;
/// Bits of the fraction of an f32, the type changes are computed in.
const F32_BITS: i64 = 23;
/// The sign of an f32.
const MAGNITUDE: u32 = 0x7fff_ffff;

/// How a type rounds.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// Bits of the fraction.
    bits: i64,
    /// Exponent of the smallest normal number, biased as in an f32: below it the distance stays.
    least: u32,
}

impl Unit {
    /// The unit of a type that weights are merged in.
    pub fn of(dtype: Dtype) -> Option<Unit> {
        match dtype {
            Dtype::BF16 => Some(Unit { bits: 7, least: 1 }),
            Dtype::F16 => Some(Unit { bits: 10, least: BIAS - 14 }),
            Dtype::F32 => Some(Unit { bits: F32_BITS, least: 1 }),
            Dtype::F64 => Some(Unit { bits: 52, least: 1 }),
            _ => None,
        }
    }

    /// Units of elements: of the base's values, the file's, and the wanted change, all as f32. Never finer than the
    /// change, which is computed in f32 whatever the stored type. All slices are as long as `units`.
    pub fn measure(self, base: &[f32], file: &[f32], change: &[f32], units: &mut [f64]) {
        let finest = if self.bits > F32_BITS { F32_BITS } else { self.bits };
        for (((unit, w), v), c) in units.iter_mut().zip(base).zip(file).zip(change) {
            let c = c.to_bits() & MAGNITUDE;
            let all = (w.to_bits() & MAGNITUDE).max(v.to_bits() & MAGNITUDE).max(c);
            let exponent = |magnitude: u32, bits: i64| i64::from((magnitude >> 23).max(self.least)) - bits;
            let exponent = exponent(all, self.bits).max(exponent(c, finest));
            *unit = f64::from_bits(((WIDE_BIAS - i64::from(BIAS) + exponent) as u64) << 52);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    fn unit(dtype: Dtype, base: f32, file: f32, change: f32) -> f64 {
        let mut out = [0.0];
        Unit::of(dtype).unwrap().measure(&[base], &[file], &[change], &mut out);
        out[0]
    }

    #[test]
    fn a_unit_is_the_distance_of_neighbours() {
        for value in [1.0f32, 1.5, -3.0, 6e-5, 6e-8, 0.0, 60000.0] {
            let next = f16::from_bits(f16::from_f32(value.abs()).to_bits() + 1).to_f64();
            let own = f16::from_f32(value.abs()).to_f64();
            assert_eq!(unit(Dtype::F16, value, 0.0, 0.0), next - own, "{value}");
        }
        for value in [1.0f32, 1e-30, 0.3, 1e-39, 0.0] {
            let own = bf16::from_f32(value);
            let next = bf16::from_bits(own.to_bits() + 1).to_f64();
            assert_eq!(unit(Dtype::BF16, 0.0, own.to_f32(), 0.0), next - own.to_f64(), "{value}");
        }
        assert_eq!(unit(Dtype::F32, 1.0, 0.0, 0.0), f64::from(f32::EPSILON));
        assert_eq!(unit(Dtype::F64, 1.0, 0.0, 0.0), f64::EPSILON);
    }

    #[test]
    fn it_is_that_of_the_largest_value() {
        assert_eq!(unit(Dtype::BF16, 0.1, 0.1, -5.0), 4.0 / 128.0);
        // The change of an f64 weight has the precision of f32.
        assert_eq!(unit(Dtype::F64, 100.0, 0.0, 1.0), f64::from(f32::EPSILON));
    }
}
