//! 64-bit ARM. Every such processor has these instructions; the conversions of half precision among them.

use std::arch::aarch64::*;
use std::arch::asm;

use super::lanes::{self, Lanes, Seen};
use super::{Moved, Step, strips};

/// Six rows by 16 columns: 24 sums, 4 vectors of a and one of b in 32 registers.
#[target_feature(enable = "neon")]
pub(super) fn neon(step: Step) -> Moved {
    // SAFETY: the features are those of this function; the step has been checked where it was made.
    unsafe { strips::run::<Neon, 6, 4>(step) }
}

/// The upper half of 32 bits.
const HIGH: u32 = 0xffff_0000;

/// Bits of which the upper 16 are the bf16: adding half a unit, less one where the last bit is even, carries into them.
#[inline]
#[target_feature(enable = "neon")]
fn round(v: float32x4_t) -> uint32x4_t {
    let bits = vreinterpretq_u32_f32(v);
    let last = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
    vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), last)
}

/// Half precision to single. The intrinsic needs a type that is not stable yet.
#[inline]
#[target_feature(enable = "neon")]
fn widen(h: uint16x4_t) -> float32x4_t {
    let out;
    // SAFETY: reads and writes registers only.
    unsafe { asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) out, in(vreg) h, options(pure, nomem, nostack)) };
    out
}

/// Single precision to half, in the mode of the processor, which is to nearest even unless a program changes it.
#[inline]
#[target_feature(enable = "neon")]
fn narrow(v: float32x4_t) -> uint16x4_t {
    let out;
    // SAFETY: reads and writes registers only.
    unsafe { asm!("fcvtn {0:v}.4h, {1:v}.4s", out(vreg) out, in(vreg) v, options(pure, nomem, nostack)) };
    out
}

#[derive(Clone, Copy)]
struct Neon;

impl Lanes for Neon {
    const WIDTH: usize = 4;
    type F = float32x4_t;
    type N = uint32x4_t;

    lanes::methods! {
        fn zero() -> float32x4_t { vdupq_n_f32(0.0) }
        fn none() -> uint32x4_t { vdupq_n_u32(0) }
        fn splat(x: f32) -> float32x4_t { vdupq_n_f32(x) }
        fn load(p: *const f32) -> float32x4_t { vld1q_f32(p) }
        fn loadu(p: *const f32) -> float32x4_t { vld1q_f32(p) }
        fn storeu(p: *mut f32, x: float32x4_t) { vst1q_f32(p, x) }
        fn fetch(p: *const u8) {
            asm!("prfm pldl1keep, [{}]", in(reg) p, options(nostack, preserves_flags, readonly));
        }
        fn add(x: float32x4_t, y: float32x4_t) -> float32x4_t { vaddq_f32(x, y) }
        fn sub(x: float32x4_t, y: float32x4_t) -> float32x4_t { vsubq_f32(x, y) }
        fn fma(x: float32x4_t, y: float32x4_t, z: float32x4_t) -> float32x4_t { vfmaq_f32(z, x, y) }
        fn finite(x: float32x4_t) -> bool {
            vminvq_u32(vceqq_f32(vsubq_f32(x, x), vdupq_n_f32(0.0))) != 0
        }
        fn deinterleave(pair: [float32x4_t; 2]) -> [float32x4_t; 2] {
            [vuzp1q_f32(pair[0], pair[1]), vuzp2q_f32(pair[0], pair[1])]
        }
        fn interleave(pair: [float32x4_t; 2]) -> [float32x4_t; 2] {
            [vzip1q_f32(pair[0], pair[1]), vzip2q_f32(pair[0], pair[1])]
        }
        fn read_f32(p: *const u8) -> [float32x4_t; 2] {
            [vreinterpretq_f32_u8(vld1q_u8(p)), vreinterpretq_f32_u8(vld1q_u8(p.add(16)))]
        }
        fn read_f16(p: *const u8) -> [float32x4_t; 2] {
            [widen(vreinterpret_u16_u8(vld1_u8(p))), widen(vreinterpret_u16_u8(vld1_u8(p.add(8))))]
        }
        fn read_bf16(p: *const u8) -> [float32x4_t; 2] {
            let both = vreinterpretq_u32_u8(vld1q_u8(p));
            let odd = vandq_u32(both, vdupq_n_u32(HIGH));
            [vreinterpretq_f32_u32(vshlq_n_u32::<16>(both)), vreinterpretq_f32_u32(odd)]
        }
        fn write_f32(out: *mut u8, v: [float32x4_t; 2], old: *const u8, seen: &mut Seen<Neon>) -> [float32x4_t; 2] {
            for (half, x) in v.iter().enumerate() {
                let bits = vreinterpretq_u32_f32(*x);
                let before = vreinterpretq_u32_u8(vld1q_u8(old.add(16 * half)));
                seen.still = vsubq_u32(seen.still, vceqq_u32(bits, before));
                seen.top = vmaxq_u32(seen.top, vandq_u32(bits, vdupq_n_u32(0x7fff_ffff)));
                vst1q_u8(out.add(16 * half), vreinterpretq_u8_u32(bits));
            }
            v
        }
        fn write_f16(out: *mut u8, v: [float32x4_t; 2], old: *const u8, seen: &mut Seen<Neon>) -> [float32x4_t; 2] {
            let (first, second) = (narrow(v[0]), narrow(v[1]));
            let both = vcombine_u16(first, second);
            put(out, both, both, old, seen);
            [widen(first), widen(second)]
        }
        fn write_bf16(out: *mut u8, v: [float32x4_t; 2], old: *const u8, seen: &mut Seen<Neon>) -> [float32x4_t; 2] {
            let (even, odd) = (round(v[0]), round(v[1]));
            // Shifts the even ones into the lower halves of the odd ones.
            let both = vsriq_n_u32::<16>(odd, even);
            let upper = vsriq_n_u32::<16>(vreinterpretq_u32_f32(v[1]), vreinterpretq_u32_f32(v[0]));
            put(out, vreinterpretq_u16_u32(both), vreinterpretq_u16_u32(upper), old, seen);
            let high = vdupq_n_u32(HIGH);
            [vreinterpretq_f32_u32(vandq_u32(even, high)), vreinterpretq_f32_u32(vandq_u32(odd, high))]
        }
        fn count16(n: uint32x4_t) -> u64 { u64::from(vaddlvq_u16(vreinterpretq_u16_u32(n))) }
        fn count32(n: uint32x4_t) -> u64 { vaddlvq_u32(n) }
        fn below16(n: uint32x4_t, limit: i16) -> bool { i32::from(vmaxvq_u16(vreinterpretq_u16_u32(n))) < limit.into() }
        fn below32(n: uint32x4_t, limit: i32) -> bool { i64::from(vmaxvq_u32(n)) < limit.into() }
    }
}

/// Stores eight elements of 16 bits, and notes which are in `old` already and how large they are.
///
/// # Safety
///
/// Both pointers are good for 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn put(out: *mut u8, both: uint16x8_t, size: uint16x8_t, old: *const u8, seen: &mut Seen<Neon>) {
    // SAFETY: the caller's promise.
    let before = unsafe { vreinterpretq_u16_u8(vld1q_u8(old)) };
    let still = vsubq_u16(vreinterpretq_u16_u32(seen.still), vceqq_u16(both, before));
    let top = vmaxq_u16(vreinterpretq_u16_u32(seen.top), vandq_u16(size, vdupq_n_u16(0x7fff)));
    (seen.still, seen.top) = (vreinterpretq_u32_u16(still), vreinterpretq_u32_u16(top));
    // SAFETY: the caller's promise.
    unsafe { vst1q_u8(out, vreinterpretq_u8_u16(both)) };
}
