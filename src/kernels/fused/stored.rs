//! Stored types by the patterns of their bits: widening and rounding one element in operations that every compiler turns
//! into vector code.

/// A stored type of up to 32 bits, its patterns in the lower bits of a u32.
pub(super) trait Stored {
    const BYTES: usize;
    /// The sign bit.
    const SIGN: u32;
    /// The pattern of infinity.
    const INFINITY: u32;
    fn widen(pattern: u32) -> f32;
    /// To nearest, ties to even. What NaN becomes is not defined.
    fn narrow(value: f32) -> u32;
    /// Whether a value rounds to this pattern.
    #[inline(always)]
    fn rounds_to(value: f32, pattern: u32) -> bool {
        Self::narrow(value) == pattern
    }
}

pub(super) struct Bf16;
pub(super) struct F16;
pub(super) struct F32;

impl Stored for Bf16 {
    const BYTES: usize = 2;
    const SIGN: u32 = 0x8000;
    const INFINITY: u32 = 0x7f80;
    #[inline(always)]
    fn widen(pattern: u32) -> f32 {
        f32::from_bits(pattern << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> u32 {
        let bits = value.to_bits();
        bits.wrapping_add(0x7fff).wrapping_add(bits >> 16 & 1) >> 16
    }
    /// Half a unit to both sides, in steps of f32; the ends belong to even patterns.
    #[inline(always)]
    fn rounds_to(value: f32, pattern: u32) -> bool {
        let odd = pattern & 1;
        let first = (pattern << 16).wrapping_sub(0x8000).wrapping_add(odd);
        value.to_bits().wrapping_sub(first) <= 0x1_0000u32.wrapping_sub(odd << 1)
    }
}

impl Stored for F16 {
    const BYTES: usize = 2;
    const SIGN: u32 = 0x8000;
    const INFINITY: u32 = 0x7c00;
    #[inline(always)]
    fn widen(pattern: u32) -> f32 {
        // The exponent moves to its place with a bias that is 112 too small; the product makes up for it, exactly.
        let size = f32::from_bits((pattern & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
        let size = if pattern & 0x7c00 == 0x7c00 { f32::from_bits(0xff << 23 | (pattern & 0x3ff) << 13) } else { size };
        f32::from_bits(size.to_bits() | (pattern & 0x8000) << 16)
    }
    #[inline(always)]
    fn narrow(value: f32) -> u32 {
        let sign = value.to_bits() >> 16 & 0x8000;
        let size = value.to_bits() & 0x7fff_ffff;
        // Small values: adding half puts the last bit of a subnormal where f32 rounds.
        let small = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
        let usual = size.wrapping_sub(112 << 23).wrapping_add(0xfff).wrapping_add(size >> 13 & 1) >> 13;
        let finite = if size < 113 << 23 { small } else { usual };
        (if size >= 143 << 23 { 0x7c00 } else { finite }) | sign
    }
}

impl Stored for F32 {
    const BYTES: usize = 4;
    const SIGN: u32 = 0x8000_0000;
    const INFINITY: u32 = 0x7f80_0000;
    #[inline(always)]
    fn widen(pattern: u32) -> f32 {
        f32::from_bits(pattern)
    }
    #[inline(always)]
    fn narrow(value: f32) -> u32 {
        value.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn patterns_widen_and_round_as_in_half() {
        for pattern in 0..=0xffffu32 {
            let (b, h) = (bf16::from_bits(pattern as u16).to_f32(), f16::from_bits(pattern as u16).to_f32());
            if !b.is_nan() {
                assert_eq!((Bf16::widen(pattern).to_bits(), Bf16::narrow(b)), (b.to_bits(), pattern));
            }
            if !h.is_nan() {
                assert_eq!((F16::widen(pattern).to_bits(), F16::narrow(h)), (h.to_bits(), pattern), "{pattern:#x}");
            }
        }
        for high in 0..=0x7f80u32 {
            for low in [0, 1, 0xfff, 0x1000, 0x1001, 0x2000, 0x7fff, 0x8000, 0x8001, 0xefff, 0xf000, 0xffff] {
                let v = f32::from_bits(high << 16 | low);
                if v.is_nan() {
                    continue;
                }
                assert_eq!(F16::narrow(v), u32::from(f16::from_f32(v).to_bits()), "{v:e}");
                assert_eq!(F16::narrow(-v), u32::from(f16::from_f32(-v).to_bits()), "{v:e}");
                assert_eq!(Bf16::narrow(v), u32::from(bf16::from_f32(v).to_bits()), "{v:e}");
            }
        }
    }
}
