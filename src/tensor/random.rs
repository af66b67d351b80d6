//! PyTorch's random numbers on the CPU, for adapters that store a seed in place of what was drawn with it.
//!
//! The generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998) seeded as `torch.Generator` does; the
//! distributions follow pytorch/pytorch, `aten/src/ATen/native/TensorFactories.cpp` (randperm) and
//! `aten/src/ATen/core/TransformationHelper.h` (uniform) and `aten/src/ATen/native/cpu/DistributionTemplates.h` (normal). Not for cryptography, not for numbers of our own.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::limits;

const N: usize = 624;
const M: usize = 397;

/// From this length on, PyTorch permutes with another algorithm and 64-bit draws.
const LONG_PERMUTATION: usize = (u32::MAX / 20) as usize;

/// A generator in the state that `torch.Generator().manual_seed(seed)` has.
#[derive(Clone, Debug)]
pub struct TorchRng {
    state: [u32; N],
    next: usize,
}

impl TorchRng {
    /// Seeds the generator. As in PyTorch, only the lower 32 bits count; a negative seed is its two's complement.
    pub fn new(seed: u64) -> TorchRng {
        let mut state = [seed as u32; N];
        for i in 1..N {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        TorchRng { state, next: N }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next 64 bits: two draws, the first on top.
    pub fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    /// A number in `[lo, hi)` as `uniform_` draws it into a float32 tensor: 24 bits, and one rounding for product and
    /// sum, as PyTorch's builds for current processors have it.
    pub fn uniform_f32(&mut self, lo: f32, hi: f32) -> f32 {
        self.uniform_rounded(lo, hi, |v| v)
    }

    /// The same for a bfloat16 tensor: drawn as for float32, then rounded.
    pub fn uniform_bf16(&mut self, lo: f32, hi: f32) -> f32 {
        self.uniform_rounded(lo, hi, |v| half::bf16::from_f32(v).to_f32())
    }

    fn uniform_rounded(&mut self, lo: f32, hi: f32, round: impl Fn(f32) -> f32) -> f32 {
        let unit = (self.next_u32() & 0x00ff_ffff) as f32 * 2f32.powi(-24);
        let value = round(unit.mul_add(hi - lo, lo));
        // The upper bound is not part of the range: what is rounded up to it becomes the lower one.
        if value == round(hi) { round(lo) } else { value }
    }

    /// `normal_(mean, deviation)` of a float32 tensor with this many elements.
    pub fn normal_f32(&mut self, count: usize, mean: f64, deviation: f64) -> Vec<f32> {
        if count < 16 {
            let mut pair = None;
            return (0..count).map(|_| (self.next_normal(&mut pair) * deviation + mean) as f32).collect();
        }
        // Groups of sixteen; a rest draws the last sixteen anew.
        let mut out: Vec<f32> = (0..count).map(|_| self.uniform_f32(0.0, 1.0)).collect();
        let (mean, deviation) = (mean as f32, deviation as f32);
        let whole = count / 16 * 16;
        out[..whole].chunks_mut(16).for_each(|group| box_muller(group, mean, deviation));
        if whole < count {
            let last = &mut out[count - 16..];
            last.iter_mut().for_each(|v| *v = self.uniform_f32(0.0, 1.0));
            box_muller(last, mean, deviation);
        }
        out
    }

    /// One of a pair of normal numbers in f64; `spare` holds the other for the next call.
    fn next_normal(&mut self, spare: &mut Option<f64>) -> f64 {
        if let Some(second) = spare.take() {
            return second;
        }
        let mut unit = || (self.next_u64() & ((1 << 53) - 1)) as f64 * 2f64.powi(-53);
        let (first, second) = (unit(), unit());
        let radius = (-2.0 * (-second).ln_1p()).sqrt();
        let angle = 2.0 * std::f64::consts::PI * first;
        *spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// `torch.randperm(n)`.
    pub fn permutation(&mut self, n: usize) -> Result<Vec<usize>> {
        if n >= LONG_PERMUTATION {
            return self.permutation_head(n, n);
        }
        let mut out: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            let z = self.next_u32() as usize % (n - i);
            out.swap(i, i + z);
        }
        Ok(out)
    }

    /// The first `count` elements of `torch.randperm(n)`, in memory for those only. The generator is left after the
    /// last draw these elements need, which is not where PyTorch leaves it.
    pub fn permutation_head(&mut self, n: usize, count: usize) -> Result<Vec<usize>> {
        if count > n {
            return Err(Error::mismatch(format!("{count} positions in a tensor of {n} elements")));
        }
        if n > limits::PERMUTATION {
            return Err(Error::limit(format!("a random permutation of {n} elements"), limits::PERMUTATION));
        }
        if n < LONG_PERMUTATION { Ok(self.head_of_short(n, count)) } else { Ok(self.head_of_long(n, count)) }
    }

    /// Forward shuffle: element `i` is settled by draw `i`. Only what was moved is remembered.
    fn head_of_short(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut moved: HashMap<usize, usize> = HashMap::new();
        let mut out = Vec::with_capacity(count);
        for i in 0..count {
            // The last element of a permutation takes no draw.
            let z = if i + 1 < n { i + self.next_u32() as usize % (n - i) } else { i };
            let here = moved.get(&i).copied().unwrap_or(i);
            out.push(moved.insert(z, here).unwrap_or(z));
            // z = i put `here` back at i, where nobody looks again, and took it out at once: the same value.
        }
        out
    }

    /// Inside-out shuffle: every draw may still replace one of the first elements.
    fn head_of_long(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut out: Vec<usize> = Vec::with_capacity(count);
        for i in 0..n {
            let z = (self.next_u64() % (i as u64 + 1)) as usize;
            if i < count {
                out.push(i);
                out[i] = out[z];
                out[z] = i;
            } else if z < count {
                out[z] = i;
            }
        }
        out
    }

    fn twist(&mut self) {
        for i in 0..N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
            let odd = if y & 1 == 0 { 0 } else { 0x9908_b0df };
            self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Box-Muller on sixteen uniform numbers, the first eight with the last eight.
fn box_muller(group: &mut [f32], mean: f32, deviation: f32) {
    let (first, second) = group.split_at_mut(8);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = 2.0 * std::f32::consts::PI * *b;
        *a = radius * angle.cos() * deviation + mean;
        *b = radius * angle.sin() * deviation + mean;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // All expected values: PyTorch 2.15 on the CPU.

    #[test]
    fn draws_are_those_of_torch() {
        let mut rng = TorchRng::new(3);
        let expected = [-0.496_802_36, -0.420_822_98, -0.285_618_13, -0.479_783_9, -0.146_289_23, -0.454_912_78];
        for value in expected {
            assert_eq!(rng.uniform_f32(-0.5, 0.25), value);
        }
    }

    #[test]
    fn product_and_sum_are_rounded_once() {
        let mut rng = TorchRng::new(1);
        let last = (0..200).map(|_| rng.uniform_f32(-0.3, 0.3)).skip(195).collect::<Vec<_>>();
        assert_eq!(last, [-0.211_027_13, 0.140_881_9, 0.192_732_42, 0.293_459_18, -0.209_979_28]);
        // Where floats are far apart, the upper bound would often be rounded to.
        let mut rng = TorchRng::new(1);
        assert!((0..2000).all(|_| rng.uniform_f32(1e6, 1e6 + 1.0) < 1e6 + 1.0));
    }

    #[test]
    fn draws_in_bfloat16_are_those_of_torch() {
        let mut rng = TorchRng::new(7);
        for value in [0.020_996_094, -0.180_664_06, 0.095_703_125, 0.094_238_28, -0.160_156_25, -0.044_921_875] {
            assert_eq!(rng.uniform_bf16(-0.3, 0.3), value);
        }
    }

    #[test]
    fn normal_numbers_are_those_of_torch() {
        let few = TorchRng::new(3).normal_f32(7, 0.0, 0.5);
        let many = TorchRng::new(3).normal_f32(21, 0.0, 0.5);
        let expected_few =
            [0.401_638, 0.087_416_69, 0.044_489_05, -0.306_859, 0.023_091_225, -0.684_129_6, 0.168_747_54];
        let expected_many = [
            -0.038_322_147,
            0.179_940_76,
            -0.391_008_4,
            0.035_763_867,
            0.332_419_7,
            0.261_093_5,
            -0.083_404_58,
            0.026_516_7,
            0.202_303_57,
            0.305_649_8,
            0.380_195_2,
            -0.016_821_63,
            -0.172_422_66,
            0.229_590_22,
            1.218_198_5,
            -0.073_404_09,
            0.242_557,
            0.102_617_19,
            0.169_214_1,
            0.676_377,
            0.186_817_69,
        ];
        // PyTorch's vectorised logarithm and cosine may differ from the library's in the last bits.
        for (found, expected) in few.iter().chain(&many).zip(expected_few.iter().chain(&expected_many)) {
            assert!((found - expected).abs() < 1e-6, "{found} against {expected}");
        }
    }

    #[test]
    fn permutations_are_those_of_torch() {
        let expected = [15, 0, 9, 11, 3, 7, 5, 1, 19, 13, 4, 6, 18, 14, 12, 2, 10, 17, 16, 8];
        assert_eq!(TorchRng::new(777).permutation(20).unwrap(), expected);
        for count in 0..=20 {
            assert_eq!(TorchRng::new(777).permutation_head(20, count).unwrap(), expected[..count]);
        }
        let head = TorchRng::new(42).permutation_head(1 << 20, 8).unwrap();
        assert_eq!(head, [121_958, 674_418, 139_722, 368_094, 271_174, 660_137, 124_986, 749_295]);
    }

    #[test]
    fn only_the_lower_half_of_a_seed_counts() {
        let of = |seed: i64| TorchRng::new(seed as u64).permutation(10).unwrap();
        assert_eq!(of(-1), [1, 4, 6, 2, 0, 5, 8, 7, 9, 3]);
        assert_eq!(of(0x1_0000_0007), [5, 0, 3, 4, 1, 7, 9, 6, 8, 2]);
        assert_eq!(of(7), of(0x1_0000_0007));
    }

    #[test]
    fn long_permutations_draw_another_way() {
        let before = TorchRng::new(777).permutation_head(214_748_363, 6).unwrap();
        assert_eq!(before, [11_440_646, 199_500_216, 10_121_607, 3_119_241, 51_696_020, 155_711_086]);
        let after = TorchRng::new(777).permutation_head(214_748_364, 6).unwrap();
        assert_eq!(after, [150_358_698, 199_533_091, 83_306_822, 145_970_095, 40_813_261, 111_338_416]);
    }

    #[test]
    fn hostile_lengths_are_refused() {
        assert!(TorchRng::new(1).permutation_head(3, 4).is_err());
        assert!(TorchRng::new(1).permutation_head(1 << 40, 4).is_err());
    }
}
