//! Sums over rows in a fixed order that the compiler can turn into vector code: lanes side by side, added up at the end.

/// Lanes of a sum.
const LANES: usize = 8;

/// Σ v², in f64.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f64; LANES];
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(v) * f64::from(v);
        }
    }
    let rest: f64 = rest.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_counts_once() {
        for n in [0, 1, 7, 8, 9, 64, 100] {
            let values: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            let n = f64::from(n);
            assert_eq!(sum_of_squares(&values), n * (n + 1.0) * (2.0 * n + 1.0) / 6.0);
        }
    }
}
