//! Numbers for the start of the iteration: roughly normal, the same on every machine, found by position.
//!
//! The bits are those of SplitMix64 (Steele, Lea and Flood 2014), which hashes a counter; four sums of 16 bits make a
//! number (Irwin–Hall), so no function of a mathematical library is asked.

use ndarray::Array2;

/// A matrix of numbers of mean zero and deviation one. `stream` tells the matrices of one seed apart.
pub fn normals(seed: u64, stream: u64, (rows, cols): (usize, usize)) -> Array2<f32> {
    let mut state = start(seed, stream);
    Array2::from_shape_simple_fn((rows, cols), || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = mixed(state);
        let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
        // Four uniform numbers of variance 1/12 about 65535/2 each.
        (sum as f32 / 65_535.0 - 2.0) * 3f32.sqrt()
    })
}

/// Where the counter starts.
pub fn start(seed: u64, stream: u64) -> u64 {
    mixed(seed ^ mixed(stream.wrapping_add(0x6a09_e667_f3bc_c909)))
}

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_normal_numbers() {
        let x = normals(1, 0, (1000, 100)).mapv(f64::from);
        let moment = |p: i32| x.iter().map(|v| v.powi(p)).sum::<f64>() / 1e5;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02, "{} {}", moment(1), moment(2));
        // Kurtosis of the sum of four uniform numbers: 3 − 6/(5·4).
        assert!(moment(3).abs() < 0.05 && (moment(4) - 2.7).abs() < 0.08, "{} {}", moment(3), moment(4));
    }

    #[test]
    fn seeds_and_streams_differ() {
        let one = normals(1, 0, (2, 5));
        assert_eq!(one, normals(1, 0, (2, 5)));
        assert!(one != normals(2, 0, (2, 5)) && one != normals(1, 1, (2, 5)));
    }
}
