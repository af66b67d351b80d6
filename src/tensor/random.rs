//! PyTorch's random numbers on the CPU, for adapters that store a seed in place of what was drawn with it.
//!
//! The generator is the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998) seeded as `torch.Generator` does; the
//! distributions follow pytorch/pytorch, `aten/src/ATen/native/TensorFactories.cpp` (randperm) and
//! `aten/src/ATen/core/TransformationHelper.h` (uniform). Not for cryptography, not for numbers of our own.

use std::collections::HashMap;

use crate::error::{Error, Kind, Result};

const N: usize = 624;
const M: usize = 397;

/// From this length on, PyTorch permutes with another algorithm and 64-bit draws.
const LONG_PERMUTATION: usize = (u32::MAX / 20) as usize;
/// Longest permutation that is drawn: two draws for each element take about a minute.
const MAX_PERMUTATION: usize = 1 << 33;

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

    /// A number in `[lo, hi)` as `uniform_` draws it into a float32 tensor: 24 bits.
    pub fn uniform_f32(&mut self, lo: f32, hi: f32) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * 2f32.powi(-24) * (hi - lo) + lo
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
        if n > MAX_PERMUTATION {
            return Err(Error::new(
                Kind::Limit,
                format!("a random permutation of {n} elements, at most {MAX_PERMUTATION} are drawn"),
            ));
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
