//! Elements as numbers in the order of their values, so that neighbours differ by one: what units in the last place
//! are counted in.
//!
//! A float is a sign and a magnitude; its ordinal is the magnitude, or for a negative sign −1 − magnitude. So −0 lies
//! directly below +0, infinities lie beyond the largest finite values, and NaN beyond those. Integers are taken by
//! their bits.

use safetensors::Dtype;

use super::dtype;

/// The ordinal of an element of `bits` bits with this pattern. Without a branch: signs of weights cannot be predicted.
#[inline]
pub fn ordinal(pattern: u64, bits: u32) -> i64 {
    let sign = 1u64 << (bits - 1);
    let negative = ((pattern >> (bits - 1) & 1) as i64).wrapping_neg(); // all ones, or none
    (pattern & sign.wrapping_sub(1)) as i64 ^ negative
}

/// The pattern with this ordinal.
#[inline]
pub fn pattern(ordinal: i64, bits: u32) -> u64 {
    let sign = 1u64 << (bits - 1);
    let negative = ordinal >> 63;
    (ordinal ^ negative) as u64 & sign.wrapping_sub(1) | negative as u64 & sign
}

/// Ordinals of the little-endian elements in `bytes`; none for types whose elements are no whole bytes.
pub fn ordinals(dtype: Dtype, bytes: &[u8]) -> Option<Box<dyn Iterator<Item = i64> + '_>> {
    let bits = dtype.bitsize();
    let size = bits / 8;
    if !matches!(bits, 8 | 16 | 32 | 64) {
        return None;
    }
    let float = dtype::is_float(dtype);
    Some(Box::new(bytes.chunks_exact(size).map(move |element| {
        let mut word = [0u8; 8];
        word[..size].copy_from_slice(element);
        let pattern = u64::from_le_bytes(word);
        if float { ordinal(pattern, bits as u32) } else { pattern as i64 }
    })))
}

/// How many values lie between two elements given by their ordinals: 0 for equal ones and for +0 and −0, 1 for
/// neighbours.
pub fn ulps(a: i64, b: i64) -> u64 {
    // Without the step between the two zeros.
    let value = |o: i64| if o < 0 { o.wrapping_add(1) } else { o };
    value(a).abs_diff(value(b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn ordinals_are_in_the_order_of_values() {
        let mut last = f32::NEG_INFINITY;
        for o in ordinal(0xff80, 16)..=ordinal(0x7f80, 16) {
            let bits = pattern(o, 16) as u16;
            assert_eq!(ordinal(u64::from(bits), 16), o);
            let value = bf16::from_bits(bits).to_f32();
            assert!(value >= last, "{value} after {last}");
            last = value;
        }
        assert_eq!(last, f32::INFINITY);
    }

    #[test]
    fn zeros_are_no_distance_apart() {
        assert_eq!(ordinal(0x8000, 16), -1);
        assert_eq!((ulps(-1, 0), ulps(-2, 1), ulps(3, 3)), (0, 2, 0));
    }

    #[test]
    fn every_whole_byte_type_is_read() {
        let one: Vec<i64> = ordinals(Dtype::F32, &1f32.to_le_bytes()).unwrap().collect();
        assert_eq!(one, [0x3f80_0000]);
        assert_eq!(ordinals(Dtype::F64, &(-0.0f64).to_le_bytes()).unwrap().next(), Some(-1));
        assert_eq!(ordinals(Dtype::U8, &[200]).unwrap().next(), Some(200));
        assert!(ordinals(Dtype::F4, &[0]).is_none());
    }
}
