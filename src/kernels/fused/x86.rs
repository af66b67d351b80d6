//! AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::blocks::{self, Lanes};
use super::{Moved, Step};

/// True where [`avx2`] can run.
pub(super) fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// True where [`avx512`] can run.
pub(super) fn has_avx512() -> bool {
    has_avx2()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

/// Six rows by 16 columns: 12 sums, 2 vectors of a and one of b in 16 registers.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn avx2(step: Step) -> Moved {
    // SAFETY: the features are those of this function; the step has been checked where it was made.
    unsafe { blocks::run::<Avx2, 6, 2>(step) }
}

/// Four rows by 64 columns: 16 sums, 4 vectors of a and one of b in 32 registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn avx512(step: Step) -> Moved {
    // SAFETY: the features are those of this function; the step has been checked where it was made.
    unsafe { blocks::run::<Avx512, 4, 4>(step) }
}

/// To nearest even, whatever the mode of the processor is.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

/// Bits of which the upper 16 are the bf16: adding half a unit, less one where the last bit is even, carries into them.
#[inline]
#[target_feature(enable = "avx2")]
fn round256(v: __m256) -> __m256i {
    let bits = _mm256_castps_si256(v);
    let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), last)
}

/// As [`round256`].
#[inline]
#[target_feature(enable = "avx512f")]
fn round512(v: __m512) -> __m512i {
    let bits = _mm512_castps_si512(v);
    let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), last)
}

#[derive(Clone, Copy)]
struct Avx2;

impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    type F = __m256;
    type N = __m256i;

    blocks::methods! {
        fn zero() -> __m256 { _mm256_setzero_ps() }
        fn none() -> __m256i { _mm256_setzero_si256() }
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load(p: *const f32) -> __m256 { _mm256_load_ps(p) }
        fn loadu(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        fn storeu(p: *mut f32, x: __m256) { _mm256_storeu_ps(p, x) }
        fn add(x: __m256, y: __m256) -> __m256 { _mm256_add_ps(x, y) }
        fn sub(x: __m256, y: __m256) -> __m256 { _mm256_sub_ps(x, y) }
        fn fma(x: __m256, y: __m256, z: __m256) -> __m256 { _mm256_fmadd_ps(x, y, z) }
        fn finite(x: __m256) -> bool {
            let zero = _mm256_cmp_ps::<_CMP_EQ_OQ>(_mm256_sub_ps(x, x), _mm256_setzero_ps());
            _mm256_movemask_ps(zero) == 0xff
        }
        fn deinterleave(pair: [__m256; 2]) -> [__m256; 2] {
            // Within each half of a vector first, then the quarters of 64 bits into order.
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(pair[0], pair[1]));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(pair[0], pair[1]));
            let even = _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even));
            let odd = _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd));
            [even, odd]
        }
        fn interleave(pair: [__m256; 2]) -> [__m256; 2] {
            let (low, high) = (_mm256_unpacklo_ps(pair[0], pair[1]), _mm256_unpackhi_ps(pair[0], pair[1]));
            [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)]
        }
        fn read_f32(p: *const u8) -> [__m256; 2] {
            [_mm256_loadu_ps(p.cast()), _mm256_loadu_ps(p.add(32).cast())]
        }
        fn read_f16(p: *const u8) -> [__m256; 2] {
            [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))]
        }
        fn read_bf16(p: *const u8) -> [__m256; 2] {
            let both = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(HIGH));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
        }
        fn write_f32(out: *mut u8, v: [__m256; 2], old: *const u8, still: &mut __m256i) -> [__m256; 2] {
            for (half, x) in v.iter().enumerate() {
                let bits = _mm256_castps_si256(*x);
                _mm256_storeu_si256(out.add(32 * half).cast(), bits);
                let same = _mm256_cmpeq_epi32(bits, _mm256_loadu_si256(old.add(32 * half).cast()));
                *still = _mm256_sub_epi32(*still, same);
            }
            v
        }
        fn write_f16(out: *mut u8, v: [__m256; 2], old: *const u8, still: &mut __m256i) -> [__m256; 2] {
            let h = [_mm256_cvtps_ph::<NEAREST>(v[0]), _mm256_cvtps_ph::<NEAREST>(v[1])];
            let both = _mm256_set_m128i(h[1], h[0]);
            _mm256_storeu_si256(out.cast(), both);
            *still = _mm256_sub_epi16(*still, _mm256_cmpeq_epi16(both, _mm256_loadu_si256(old.cast())));
            [_mm256_cvtph_ps(h[0]), _mm256_cvtph_ps(h[1])]
        }
        fn write_bf16(out: *mut u8, v: [__m256; 2], old: *const u8, still: &mut __m256i) -> [__m256; 2] {
            let (even, odd) = (round256(v[0]), round256(v[1]));
            let both = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd);
            _mm256_storeu_si256(out.cast(), both);
            *still = _mm256_sub_epi16(*still, _mm256_cmpeq_epi16(both, _mm256_loadu_si256(old.cast())));
            let high = _mm256_set1_epi32(HIGH);
            [_mm256_castsi256_ps(_mm256_and_si256(even, high)), _mm256_castsi256_ps(_mm256_and_si256(odd, high))]
        }
        fn count16(n: __m256i) -> u64 {
            let mut out = [0u16; 16];
            _mm256_storeu_si256(out.as_mut_ptr().cast(), n);
            out.iter().map(|&n| u64::from(n)).sum()
        }
        fn count32(n: __m256i) -> u64 {
            let mut out = [0u32; 8];
            _mm256_storeu_si256(out.as_mut_ptr().cast(), n);
            out.iter().map(|&n| u64::from(n)).sum()
        }
    }
}

/// The upper half of 32 bits.
const HIGH: i32 = 0xffff_0000u32 as i32;

#[derive(Clone, Copy)]
struct Avx512;

impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    type F = __m512;
    type N = __m512i;

    blocks::methods! {
        fn zero() -> __m512 { _mm512_setzero_ps() }
        fn none() -> __m512i { _mm512_setzero_si512() }
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(p: *const f32) -> __m512 { _mm512_load_ps(p) }
        fn loadu(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        fn storeu(p: *mut f32, x: __m512) { _mm512_storeu_ps(p, x) }
        fn add(x: __m512, y: __m512) -> __m512 { _mm512_add_ps(x, y) }
        fn sub(x: __m512, y: __m512) -> __m512 { _mm512_sub_ps(x, y) }
        fn fma(x: __m512, y: __m512, z: __m512) -> __m512 { _mm512_fmadd_ps(x, y, z) }
        fn finite(x: __m512) -> bool {
            _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(_mm512_sub_ps(x, x), _mm512_setzero_ps()) == 0xffff
        }
        fn deinterleave(pair: [__m512; 2]) -> [__m512; 2] {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            [_mm512_permutex2var_ps(pair[0], even, pair[1]), _mm512_permutex2var_ps(pair[0], odd, pair[1])]
        }
        fn interleave(pair: [__m512; 2]) -> [__m512; 2] {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            [_mm512_permutex2var_ps(pair[0], low, pair[1]), _mm512_permutex2var_ps(pair[0], high, pair[1])]
        }
        fn read_f32(p: *const u8) -> [__m512; 2] {
            [_mm512_loadu_ps(p.cast()), _mm512_loadu_ps(p.add(64).cast())]
        }
        fn read_f16(p: *const u8) -> [__m512; 2] {
            [_mm512_cvtph_ps(_mm256_loadu_si256(p.cast())), _mm512_cvtph_ps(_mm256_loadu_si256(p.add(32).cast()))]
        }
        fn read_bf16(p: *const u8) -> [__m512; 2] {
            let both = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(HIGH));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        }
        fn write_f32(out: *mut u8, v: [__m512; 2], old: *const u8, still: &mut __m512i) -> [__m512; 2] {
            for (half, x) in v.iter().enumerate() {
                let bits = _mm512_castps_si512(*x);
                _mm512_storeu_si512(out.add(64 * half).cast(), bits);
                let same = _mm512_cmpeq_epi32_mask(bits, _mm512_loadu_si512(old.add(64 * half).cast()));
                *still = _mm512_mask_add_epi32(*still, same, *still, _mm512_set1_epi32(1));
            }
            v
        }
        fn write_f16(out: *mut u8, v: [__m512; 2], old: *const u8, still: &mut __m512i) -> [__m512; 2] {
            let h = [_mm512_cvtps_ph::<NEAREST>(v[0]), _mm512_cvtps_ph::<NEAREST>(v[1])];
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(h[0]), h[1]);
            _mm512_storeu_si512(out.cast(), both);
            let same = _mm512_cmpeq_epi16_mask(both, _mm512_loadu_si512(old.cast()));
            *still = _mm512_mask_add_epi16(*still, same, *still, _mm512_set1_epi16(1));
            [_mm512_cvtph_ps(h[0]), _mm512_cvtph_ps(h[1])]
        }
        fn write_bf16(out: *mut u8, v: [__m512; 2], old: *const u8, still: &mut __m512i) -> [__m512; 2] {
            let (even, odd) = (round512(v[0]), round512(v[1]));
            let (even, odd) = (_mm512_srli_epi32::<16>(even), _mm512_and_si512(odd, _mm512_set1_epi32(HIGH)));
            let both = _mm512_or_si512(even, odd);
            _mm512_storeu_si512(out.cast(), both);
            let same = _mm512_cmpeq_epi16_mask(both, _mm512_loadu_si512(old.cast()));
            *still = _mm512_mask_add_epi16(*still, same, *still, _mm512_set1_epi16(1));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(even)), _mm512_castsi512_ps(odd)]
        }
        fn count16(n: __m512i) -> u64 {
            let mut out = [0u16; 32];
            _mm512_storeu_si512(out.as_mut_ptr().cast(), n);
            out.iter().map(|&n| u64::from(n)).sum()
        }
        fn count32(n: __m512i) -> u64 {
            let mut out = [0u32; 16];
            _mm512_storeu_si512(out.as_mut_ptr().cast(), n);
            out.iter().map(|&n| u64::from(n)).sum()
        }
    }
}
