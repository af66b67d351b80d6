//! NumPy's random numbers (`numpy.random.default_rng`), for adapters that store a seed in place of what was drawn with it.
//!
//! The generator is PCG64 (O'Neill 2014: PCG XSL RR 128/64), seeded through `SeedSequence`. A choice draws below a
//! bound by Lemire's way (<https://arxiv.org/abs/1805.10941>), a shuffle by masking bits. Sources: numpy/numpy, `numpy/random/bit_generator.pyx`,
//! `numpy/random/_generator.pyx`, `numpy/random/src/pcg64/pcg64.h`. Not for cryptography, not for numbers of our own.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::limits;

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
/// Above this, a choice of more than a fiftieth shuffles all candidates; below it, it remembers what was taken.
const LARGE_CHOICE: usize = 10_000;

/// A generator in the state that `default_rng(seed)` has.
#[derive(Clone, Debug)]
pub struct NumpyRng {
    state: u128,
    increment: u128,
    /// The upper half of the last 64 bits, where only the lower was used.
    half: Option<u32>,
}

impl NumpyRng {
    /// Seeds the generator.
    pub fn new(seed: u64) -> NumpyRng {
        let words = seed_sequence(seed);
        let wide = |i: usize| u64::from(words[i + 1]) << 32 | u64::from(words[i]);
        let start = u128::from(wide(0)) << 64 | u128::from(wide(2));
        let increment = (u128::from(wide(4)) << 64 | u128::from(wide(6))) << 1 | 1;
        let mut rng = NumpyRng { state: 0, increment, half: None };
        rng.step();
        rng.state = rng.state.wrapping_add(start);
        rng.step();
        rng
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// The next 32 bits: the lower half of 64, then the upper.
    pub fn next_u32(&mut self) -> u32 {
        if let Some(upper) = self.half.take() {
            return upper;
        }
        let both = self.next_u64();
        self.half = Some((both >> 32) as u32);
        both as u32
    }

    /// A number from 0 to `last`, both included.
    fn up_to(&mut self, last: u32) -> u32 {
        if last == 0 {
            return 0;
        }
        let Some(count) = last.checked_add(1) else { return self.next_u32() };
        let mut product = u64::from(self.next_u32()) * u64::from(count);
        if (product as u32) < count {
            let threshold = count.wrapping_neg() % count;
            while (product as u32) < threshold {
                product = u64::from(self.next_u32()) * u64::from(count);
            }
        }
        (product >> 32) as u32
    }

    /// The same in another way: bits are drawn until they make a number that is not too large.
    fn masked_up_to(&mut self, last: u32) -> u32 {
        let mask = u32::MAX.checked_shr(last.leading_zeros()).unwrap_or(0);
        loop {
            let value = if last == 0 { 0 } else { self.next_u32() & mask };
            if value <= last {
                return value;
            }
        }
    }

    /// `shuffle(values)`.
    pub fn shuffle(&mut self, values: &mut [u32]) -> Result<()> {
        limit(values.len())?;
        for i in (1..values.len()).rev() {
            let j = self.masked_up_to(i as u32) as usize;
            values.swap(i, j);
        }
        Ok(())
    }

    /// Settles the elements of a choice from `first` on.
    fn shuffle_tail(&mut self, values: &mut [u32], first: usize) {
        for i in (first..values.len()).rev() {
            let j = self.up_to(i as u32) as usize;
            values.swap(i, j);
        }
    }

    /// `choice(candidates, size=count, replace=False)`.
    pub fn choice(&mut self, candidates: usize, count: usize) -> Result<Vec<u32>> {
        limit(candidates)?;
        if count > candidates {
            return Err(Error::mismatch(format!("{count} of {candidates} candidates")));
        }
        if candidates > LARGE_CHOICE && count > candidates / 50 {
            let mut all: Vec<u32> = (0..candidates as u32).collect();
            self.shuffle_tail(&mut all, (candidates - count).max(1));
            return Ok(all.split_off(candidates - count));
        }
        // Floyd's: where a candidate was taken already, the newest one is.
        let mut taken = HashSet::with_capacity(count);
        let mut out = Vec::with_capacity(count);
        for newest in (candidates - count) as u32..candidates as u32 {
            let drawn = self.up_to(newest);
            let value = if taken.insert(drawn) { drawn } else { newest };
            taken.insert(value);
            out.push(value);
        }
        self.shuffle_tail(&mut out, 1);
        Ok(out)
    }
}

/// Beyond 32 bits the draws take another way, which no adapter reaches.
fn limit(count: usize) -> Result<()> {
    if count <= limits::CHOICE { Ok(()) } else { Err(Error::limit(format!("{count} random places"), limits::CHOICE)) }
}

/// Eight words of `SeedSequence(seed).generate_state`.
fn seed_sequence(seed: u64) -> [u32; 8] {
    let entropy = [seed as u32, (seed >> 32) as u32]; // missing words count as zero
    let mut constant = 0x43b0_d7e5u32;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let value = value.wrapping_mul(constant);
        value ^ value >> 16
    };
    let mix = |x: u32, y: u32| {
        let mixed = 0xca01_f9ddu32.wrapping_mul(x).wrapping_sub(0x4973_f715u32.wrapping_mul(y));
        mixed ^ mixed >> 16
    };
    let mut pool = [0u32; 4];
    for (i, word) in pool.iter_mut().enumerate() {
        *word = hash(entropy.get(i).copied().unwrap_or(0));
    }
    for from in 0..4 {
        for to in (0..4).filter(|&to| to != from) {
            pool[to] = mix(pool[to], hash(pool[from]));
        }
    }
    let mut constant = 0x8b51_f9ddu32;
    std::array::from_fn(|i| {
        let value = pool[i % 4] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let value = value.wrapping_mul(constant);
        value ^ value >> 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // All expected values: NumPy's `default_rng`.

    #[test]
    fn bits_are_those_of_numpy() {
        let mut rng = NumpyRng::new(42);
        let expected = [0xc621_fbcd_16d9_2688, 0x705a_5661_a791_ffc1, 0xdbcd_12c2_6eda_1624];
        assert_eq!(expected.map(|_| rng.next_u64()), expected);
    }

    #[test]
    fn choices_are_those_of_numpy() {
        assert_eq!(NumpyRng::new(0).choice(50, 7).unwrap(), [3, 2, 12, 23, 14, 28, 37]);
        // A large choice, and a seed of more than 32 bits; then a choice of all.
        let mut rng = NumpyRng::new((1 << 40) + 7);
        assert_eq!(rng.choice(20_000, 600).unwrap()[595..], [340, 5105, 12_188, 16_595, 4130]);
        assert_eq!(rng.choice(9, 9).unwrap(), [5, 7, 4, 1, 2, 6, 8, 0, 3]);
    }

    #[test]
    fn shuffles_are_those_of_numpy() {
        let mut values: Vec<u32> = (0..12).collect();
        NumpyRng::new(3).shuffle(&mut values).unwrap();
        assert_eq!(values, [11, 7, 2, 10, 0, 1, 4, 6, 9, 5, 3, 8]);
    }
}
