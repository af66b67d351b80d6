//! The unit of rounding of an element: the distance of neighbours in the stored type, at the largest of the values that
//! took part in making it.
//!
//! A program that rounds the change before it adds it, or that adds in the stored type, is off by no more than a unit
//! where the result is small because the summands cancel; in units in the last place of the result that may be many.

use crate::tensor::Dtype;

/// Bits of the fraction of an f32, the type changes are computed in.
const F32_BITS: u32 = 23;
/// An f32 without its sign, and the largest of them that is finite.
const MAGNITUDE: u32 = 0x7fff_ffff;
const LARGEST: u32 = 0x7f7f_ffff;
/// The exponent of an f32.
const EXPONENT: u32 = 0x7f80_0000;

/// How a type rounds.
#[derive(Clone, Copy, Debug)]
pub struct Unit {
    /// The unit of 1.
    of_one: f64,
    /// The smallest normal number: below it the unit stays. Of types with more exponents than f32, the smallest that an
    /// f32 has.
    least: f32,
}

impl Unit {
    /// The unit of a type that weights are merged in.
    pub fn of(dtype: Dtype) -> Option<Unit> {
        let (bits, least) = match dtype {
            Dtype::BF16 => (7, f32::MIN_POSITIVE),
            Dtype::F16 => (10, half::f16::MIN_POSITIVE.to_f32()),
            Dtype::F32 => (F32_BITS, f32::MIN_POSITIVE),
            Dtype::F64 => (52, f32::MIN_POSITIVE),
            Dtype::F8_E4M3 => (3, 1.0 / 64.0),
            Dtype::F8_E5M2 => (2, 1.0 / 16384.0),
            _ => return None,
        };
        Some(Unit { of_one: power_of_half(bits), least })
    }

    /// That of elements which are multiplied by a scale: the power of two next to it, which is not more than twice or
    /// less than half as much.
    #[must_use]
    pub fn scaled(self, scale: f32) -> Unit {
        Unit { least: (self.least * scale).clamp(f32::MIN_POSITIVE, f32::MAX), ..self }
    }

    /// Units of elements: of the base's values, the file's, and the wanted change, all as f32. Never finer than the
    /// change, which is computed in f32 whatever the stored type. All slices are as long as `units`.
    pub fn measure(self, base: &[f32], file: &[f32], change: &[f32], units: &mut [f64]) {
        let least = self.least.to_bits();
        // The power of two below a magnitude, which has no sign.
        let scale = |magnitude: u32| f64::from(f32::from_bits(magnitude.clamp(least, LARGEST) & EXPONENT));
        let magnitude = |value: &f32| value.to_bits() & MAGNITUDE;
        for (((unit, w), v), c) in units.iter_mut().zip(base).zip(file).zip(change) {
            *unit = scale(magnitude(w).max(magnitude(v)).max(magnitude(c))) * self.of_one;
        }
        let finest = power_of_half(F32_BITS);
        if self.of_one < finest {
            for (unit, c) in units.iter_mut().zip(change) {
                *unit = unit.max(scale(magnitude(c)) * finest);
            }
        }
    }
}

/// 2⁻ⁿ.
fn power_of_half(n: u32) -> f64 {
    f64::from_bits((1023 - u64::from(n)) << 52)
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
