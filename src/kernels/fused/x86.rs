//! AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::back::{FAR, NONE_SMALLER, Packed};
use super::lanes::{self, Lanes, Seen};
use super::{Moved, Step, strips};

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
        && is_x86_feature_detected!("popcnt")
}

/// Six rows by 16 columns: 12 sums, 2 vectors of a and one of b in 16 registers.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn avx2(step: Step) -> Moved {
    // SAFETY: the features are those of this function; the step has been checked where it was made.
    unsafe { strips::run::<Avx2, 6, 2>(step) }
}

/// Four rows by 64 columns: 16 sums, 4 vectors of a and one of b in 32 registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c")]
pub(super) fn avx512(step: Step) -> Moved {
    // SAFETY: the features are those of this function; the step has been checked where it was made.
    unsafe { strips::run::<Avx512, 4, 4>(step) }
}

/// As [`avx2`], for bf16 and one term; with what is found back.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn avx2_back<const MERGED: bool>(step: Step) -> Moved {
    // SAFETY: the features are those of this function; the step has been checked where it was made.
    unsafe { strips::run_back::<Avx2, MERGED, 6, 2>(step) }
}

/// As [`avx512`], for bf16 and one term; with what is found back.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma,f16c,popcnt")]
pub(super) fn avx512_back<const MERGED: bool>(step: Step) -> Moved {
    // SAFETY: the features are those of this function; the step has been checked where it was made.
    unsafe { strips::run_back::<Avx512, MERGED, 4, 4>(step) }
}

/// To nearest even, whatever the mode of the processor is.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

/// The upper half of 32 bits.
const HIGH: i32 = 0xffff_0000u32 as i32;
/// All bits but the sign.
const SIZE16: i16 = 0x7fff;
const SIZE32: i32 = 0x7fff_ffff;

/// Rounds even and odd columns to bf16: the upper halves as they were, and rounded. They go up where the lower half is
/// more than half a unit, or half of one and the last bit that stays is odd.
#[inline]
#[target_feature(enable = "avx2")]
fn round_256(v: [__m256; 2]) -> [__m256i; 2] {
    let [even, odd] = [_mm256_castps_si256(v[0]), _mm256_castps_si256(v[1])];
    let upper = _mm256_blend_epi16::<0b1010_1010>(_mm256_srli_epi32::<16>(even), odd);
    let lower = _mm256_blend_epi16::<0b1010_1010>(even, _mm256_slli_epi32::<16>(odd));
    let least = _mm256_sub_epi16(_mm256_set1_epi16(LEAST), _mm256_and_si256(upper, _mm256_set1_epi16(1)));
    let up = _mm256_cmpeq_epi16(_mm256_max_epu16(lower, least), lower);
    [upper, _mm256_sub_epi16(upper, up)]
}

/// As [`round_256`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn round_512(v: [__m512; 2]) -> [__m512i; 2] {
    /// `x | y & z`.
    const OR_AND: i32 = 0xf8;
    /// `!(x & y) & z`.
    const NAND_AND: i32 = 0x2a;
    let [even, odd] = [_mm512_castps_si512(v[0]), _mm512_castps_si512(v[1])];
    let (high, low) = (_mm512_set1_epi32(HIGH), _mm512_set1_epi32(!HIGH));
    let upper = _mm512_ternarylogic_epi32::<OR_AND>(_mm512_srli_epi32::<16>(even), odd, high);
    let lower = _mm512_ternarylogic_epi32::<OR_AND>(_mm512_slli_epi32::<16>(odd), even, low);
    // LEAST less the last bit, as LEAST is odd.
    let least = _mm512_ternarylogic_epi32::<NAND_AND>(upper, _mm512_set1_epi16(1), _mm512_set1_epi16(LEAST));
    let up = _mm512_cmpge_epu16_mask(lower, least);
    [upper, _mm512_mask_add_epi16(upper, up, upper, _mm512_set1_epi16(1))]
}

/// The least lower half that goes up where the upper one is even.
const LEAST: i16 = 0x8001u16 as i16;

/// Notes of 16 elements which are what they were, and how large they are.
#[inline]
#[target_feature(enable = "avx2")]
fn note16_256(both: __m256i, size: __m256i, before: __m256i, seen: &mut Seen<Avx2>) {
    seen.still = _mm256_sub_epi16(seen.still, _mm256_cmpeq_epi16(both, before));
    seen.top = _mm256_max_epu16(seen.top, _mm256_and_si256(size, _mm256_set1_epi16(SIZE16)));
}

/// As [`note16_256`], of 32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn note16_512(both: __m512i, size: __m512i, before: __m512i, seen: &mut Seen<Avx512>) {
    let same = _mm512_cmpeq_epi16_mask(both, before);
    seen.still = _mm512_mask_add_epi16(seen.still, same, seen.still, _mm512_set1_epi16(1));
    seen.top = _mm512_max_epu16(seen.top, _mm512_and_si512(size, _mm512_set1_epi16(SIZE16)));
}

#[derive(Clone, Copy)]
struct Avx2;

impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    type F = __m256;
    type N = __m256i;

    lanes::methods! {
        fn zero() -> __m256 { _mm256_setzero_ps() }
        fn none() -> __m256i { _mm256_setzero_si256() }
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load(p: *const f32) -> __m256 { _mm256_load_ps(p) }
        fn loadu(p: *const f32) -> __m256 { _mm256_loadu_ps(p) }
        fn storeu(p: *mut f32, x: __m256) { _mm256_storeu_ps(p, x) }
        fn fetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
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
        fn write_f32(out: *mut u8, v: [__m256; 2], old: *const u8, seen: &mut Seen<Avx2>) -> [__m256; 2] {
            for (half, x) in v.iter().enumerate() {
                let bits = _mm256_castps_si256(*x);
                let before = _mm256_loadu_si256(old.add(32 * half).cast());
                seen.still = _mm256_sub_epi32(seen.still, _mm256_cmpeq_epi32(bits, before));
                seen.top = _mm256_max_epu32(seen.top, _mm256_and_si256(bits, _mm256_set1_epi32(SIZE32)));
                _mm256_storeu_si256(out.add(32 * half).cast(), bits);
            }
            v
        }
        fn write_f16(out: *mut u8, v: [__m256; 2], old: *const u8, seen: &mut Seen<Avx2>) -> [__m256; 2] {
            let h = [_mm256_cvtps_ph::<NEAREST>(v[0]), _mm256_cvtps_ph::<NEAREST>(v[1])];
            let both = _mm256_set_m128i(h[1], h[0]);
            note16_256(both, both, _mm256_loadu_si256(old.cast()), seen);
            _mm256_storeu_si256(out.cast(), both);
            [_mm256_cvtph_ps(h[0]), _mm256_cvtph_ps(h[1])]
        }
        fn write_bf16(out: *mut u8, v: [__m256; 2], old: *const u8, seen: &mut Seen<Avx2>) -> [__m256; 2] {
            let [upper, both] = round_256(v);
            note16_256(both, upper, _mm256_loadu_si256(old.cast()), seen);
            _mm256_storeu_si256(out.cast(), both);
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(HIGH));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
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
        fn below16(n: __m256i, limit: i16) -> bool {
            _mm256_movemask_epi8(_mm256_cmpgt_epi16(_mm256_set1_epi16(limit), n)) == -1
        }
        fn below32(n: __m256i, limit: i32) -> bool {
            _mm256_movemask_epi8(_mm256_cmpgt_epi32(_mm256_set1_epi32(limit), n)) == -1
        }
    }
}

/// One bit for each truth value of 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn bits_256(m: __m256i) -> u16 {
    // Packed within each half: bytes 0 to 7 and 16 to 23 hold the columns.
    let bits = _mm256_movemask_epi8(_mm256_packs_epi16(m, _mm256_setzero_si256()));
    (bits & 0xff | bits >> 8 & 0xff00) as u16
}

impl Packed for Avx2 {
    type M = __m256i;

    lanes::methods! {
        fn mul(x: __m256, y: __m256) -> __m256 { _mm256_mul_ps(x, y) }
        fn load16(p: *const u8) -> __m256i { _mm256_loadu_si256(p.cast()) }
        fn store16(p: *mut u8, x: __m256i) { _mm256_storeu_si256(p.cast(), x) }
        fn split16(x: __m256i) -> [__m256; 2] {
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(HIGH));
            [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(x)), _mm256_castsi256_ps(odd)]
        }
        fn round16(v: [__m256; 2]) -> [__m256i; 2] { round_256(v) }
        fn add16(x: __m256i, by: i16) -> __m256i { _mm256_add_epi16(x, _mm256_set1_epi16(by)) }
        fn top16(top: __m256i, x: __m256i) -> __m256i {
            _mm256_max_epu16(top, _mm256_and_si256(x, _mm256_set1_epi16(SIZE16)))
        }
        fn equal16(x: __m256i, y: __m256i) -> __m256i { _mm256_cmpeq_epi16(x, y) }
        fn zero16(x: __m256i) -> __m256i {
            _mm256_cmpeq_epi16(_mm256_and_si256(x, _mm256_set1_epi16(SIZE16)), _mm256_setzero_si256())
        }
        fn far_below16(x: __m256i, y: __m256i) -> __m256i {
            let size = _mm256_set1_epi16(SIZE16);
            let limit = _mm256_subs_epu16(_mm256_and_si256(y, size), _mm256_set1_epi16(FAR));
            let limit = _mm256_max_epi16(limit, _mm256_set1_epi16(NONE_SMALLER));
            let above = _mm256_cmpgt_epi16(_mm256_and_si256(x, size), limit);
            _mm256_xor_si256(above, _mm256_set1_epi16(-1))
        }
        fn clear16(x: __m256i, m: __m256i) -> __m256i { _mm256_andnot_si256(m, x) }
        fn never() -> __m256i { _mm256_setzero_si256() }
        fn first(count: usize) -> __m256i {
            let numbers = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            _mm256_cmpgt_epi16(_mm256_set1_epi16(count.min(16) as i16), numbers)
        }
        fn or(x: __m256i, y: __m256i) -> __m256i { _mm256_or_si256(x, y) }
        fn and(x: __m256i, y: __m256i) -> __m256i { _mm256_and_si256(x, y) }
        fn nor(x: __m256i, y: __m256i) -> __m256i {
            _mm256_xor_si256(_mm256_or_si256(x, y), _mm256_set1_epi16(-1))
        }
        fn any(m: __m256i) -> bool { _mm256_testz_si256(m, m) == 0 }
        fn put_bits(p: *mut u8, m: __m256i) { p.cast::<u16>().write_unaligned(bits_256(m)) }
        fn put_pairs(p: *mut u32, x: __m256i, y: __m256i, m: __m256i) -> u32 {
            let mut words = [[0u16; 16]; 2];
            _mm256_storeu_si256(words[0].as_mut_ptr().cast(), x);
            _mm256_storeu_si256(words[1].as_mut_ptr().cast(), y);
            let (mut bits, mut count) = (bits_256(m), 0u32);
            while bits != 0 {
                let at = bits.trailing_zeros() as usize % 16;
                p.add(count as usize).write(u32::from(words[0][at]) | u32::from(words[1][at]) << 16);
                count += 1;
                bits &= bits - 1;
            }
            count
        }
    }
}

#[derive(Clone, Copy)]
struct Avx512;

impl Lanes for Avx512 {
    const WIDTH: usize = 16;
    type F = __m512;
    type N = __m512i;

    lanes::methods! {
        fn zero() -> __m512 { _mm512_setzero_ps() }
        fn none() -> __m512i { _mm512_setzero_si512() }
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(p: *const f32) -> __m512 { _mm512_load_ps(p) }
        fn loadu(p: *const f32) -> __m512 { _mm512_loadu_ps(p) }
        fn storeu(p: *mut f32, x: __m512) { _mm512_storeu_ps(p, x) }
        fn fetch(p: *const u8) { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
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
        fn write_f32(out: *mut u8, v: [__m512; 2], old: *const u8, seen: &mut Seen<Avx512>) -> [__m512; 2] {
            for (half, x) in v.iter().enumerate() {
                let bits = _mm512_castps_si512(*x);
                let before = _mm512_loadu_si512(old.add(64 * half).cast());
                let same = _mm512_cmpeq_epi32_mask(bits, before);
                seen.still = _mm512_mask_add_epi32(seen.still, same, seen.still, _mm512_set1_epi32(1));
                seen.top = _mm512_max_epu32(seen.top, _mm512_and_si512(bits, _mm512_set1_epi32(SIZE32)));
                _mm512_storeu_si512(out.add(64 * half).cast(), bits);
            }
            v
        }
        fn write_f16(out: *mut u8, v: [__m512; 2], old: *const u8, seen: &mut Seen<Avx512>) -> [__m512; 2] {
            let h = [_mm512_cvtps_ph::<NEAREST>(v[0]), _mm512_cvtps_ph::<NEAREST>(v[1])];
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(h[0]), h[1]);
            note16_512(both, both, _mm512_loadu_si512(old.cast()), seen);
            _mm512_storeu_si512(out.cast(), both);
            [_mm512_cvtph_ps(h[0]), _mm512_cvtph_ps(h[1])]
        }
        fn write_bf16(out: *mut u8, v: [__m512; 2], old: *const u8, seen: &mut Seen<Avx512>) -> [__m512; 2] {
            let [upper, both] = round_512(v);
            note16_512(both, upper, _mm512_loadu_si512(old.cast()), seen);
            _mm512_storeu_si512(out.cast(), both);
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(HIGH));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
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
        fn below16(n: __m512i, limit: i16) -> bool {
            _mm512_cmplt_epi16_mask(n, _mm512_set1_epi16(limit)) == u32::MAX
        }
        fn below32(n: __m512i, limit: i32) -> bool {
            _mm512_cmplt_epi32_mask(n, _mm512_set1_epi32(limit)) == u16::MAX
        }
    }
}

impl Packed for Avx512 {
    type M = __mmask32;

    lanes::methods! {
        fn mul(x: __m512, y: __m512) -> __m512 { _mm512_mul_ps(x, y) }
        fn load16(p: *const u8) -> __m512i { _mm512_loadu_si512(p.cast()) }
        fn store16(p: *mut u8, x: __m512i) { _mm512_storeu_si512(p.cast(), x) }
        fn split16(x: __m512i) -> [__m512; 2] {
            let odd = _mm512_and_si512(x, _mm512_set1_epi32(HIGH));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)), _mm512_castsi512_ps(odd)]
        }
        fn round16(v: [__m512; 2]) -> [__m512i; 2] { round_512(v) }
        fn add16(x: __m512i, by: i16) -> __m512i { _mm512_add_epi16(x, _mm512_set1_epi16(by)) }
        fn top16(top: __m512i, x: __m512i) -> __m512i {
            _mm512_max_epu16(top, _mm512_and_si512(x, _mm512_set1_epi16(SIZE16)))
        }
        fn equal16(x: __m512i, y: __m512i) -> __mmask32 { _mm512_cmpeq_epi16_mask(x, y) }
        fn zero16(x: __m512i) -> __mmask32 { _mm512_testn_epi16_mask(x, _mm512_set1_epi16(SIZE16)) }
        fn far_below16(x: __m512i, y: __m512i) -> __mmask32 {
            let size = _mm512_set1_epi16(SIZE16);
            let limit = _mm512_subs_epu16(_mm512_and_si512(y, size), _mm512_set1_epi16(FAR));
            let limit = _mm512_max_epu16(limit, _mm512_set1_epi16(NONE_SMALLER));
            _mm512_cmple_epu16_mask(_mm512_and_si512(x, size), limit)
        }
        fn clear16(x: __m512i, m: __mmask32) -> __m512i { _mm512_maskz_mov_epi16(_knot_mask32(m), x) }
        fn never() -> __mmask32 { _cvtu32_mask32(0) }
        fn or(x: __mmask32, y: __mmask32) -> __mmask32 { _kor_mask32(x, y) }
        fn and(x: __mmask32, y: __mmask32) -> __mmask32 { _kand_mask32(x, y) }
        fn nor(x: __mmask32, y: __mmask32) -> __mmask32 { _knot_mask32(_kor_mask32(x, y)) }
        fn any(m: __mmask32) -> bool { _kortestz_mask32_u8(m, m) == 0 }
        fn first(count: usize) -> __mmask32 {
            _cvtu32_mask32(if count < 32 { (1 << count) - 1 } else { u32::MAX })
        }
        fn put_bits(p: *mut u8, m: __mmask32) { p.cast::<u32>().write_unaligned(m) }
        fn put_pairs(p: *mut u32, x: __m512i, y: __m512i, m: __mmask32) -> u32 {
            // Words of x and y in turns: of columns 0 to 15, and 16 to 31.
            let low = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let low = _mm512_or_si512(low, _mm512_slli_epi32::<16>(_mm512_add_epi32(low, _mm512_set1_epi32(32))));
            let high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
            let bits = _cvtmask32_u32(m);
            let first = _mm512_maskz_compress_epi32(bits as u16, _mm512_permutex2var_epi16(x, low, y));
            let second = _mm512_maskz_compress_epi32((bits >> 16) as u16, _mm512_permutex2var_epi16(x, high, y));
            let count = (bits & 0xffff).count_ones();
            _mm512_storeu_si512(p.cast(), first);
            _mm512_storeu_si512(p.add(count as usize).cast(), second);
            bits.count_ones()
        }
    }
}
