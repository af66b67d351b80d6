//! The inverse wavelet transform of one level that WaveFT uses, one coefficient at a time (huggingface/peft,
//! `src/peft/tuners/waveft/{layer,waverec2d,wavelet}.py`; filters: Daubechies, *Ten Lectures on Wavelets*, 1992).
//!
//! The coefficients form a matrix of the weight's size, padded by the filter's reach to even sizes and cut into four
//! bands. A coefficient at (i, j) of its band adds the outer product of two filters at (2i, 2j) of the result, which is
//! then trimmed back to the weight's size. Which filter runs along the rows is said by the half the *column* lies in.

use crate::error::{Error, Result};

/// A low-pass reconstruction filter.
#[derive(Clone, Debug, PartialEq)]
pub struct Wavelet {
    low: Vec<f64>,
}

impl Wavelet {
    /// The wavelet of a name, where the filter has a closed form: Daubechies' first three, under all their names.
    pub fn named(name: &str) -> Result<Wavelet> {
        let r = f64::sqrt;
        let low = match name {
            "db1" | "haar" => vec![r(0.5), r(0.5)],
            "db2" | "sym2" => {
                [1.0 + r(3.0), 3.0 + r(3.0), 3.0 - r(3.0), 1.0 - r(3.0)].map(|v| v / (4.0 * r(2.0))).to_vec()
            }
            "db3" | "sym3" => {
                let (a, b) = (r(10.0), r(5.0 + 2.0 * r(10.0)));
                let taps = [
                    1.0 + a + b,
                    5.0 + a + 3.0 * b,
                    10.0 - 2.0 * a + 2.0 * b,
                    10.0 - 2.0 * a - 2.0 * b,
                    5.0 + a - 3.0 * b,
                    1.0 + a - b,
                ];
                taps.map(|v| v / (16.0 * r(2.0))).to_vec()
            }
            other => {
                return Err(Error::unsupported(format!("wavelet `{other}`; known: db1, haar, db2, sym2, db3, sym3"))
                    .at_key("wavelet_family"));
            }
        };
        Ok(Wavelet { low })
    }

    /// One of its names.
    pub fn name(&self) -> String {
        format!("db{}", self.low.len() / 2)
    }

    /// What a coefficient of value one at (row, col) adds to a weight of this size: (row, col, value).
    pub fn spread(&self, (row, col): (usize, usize), (rows, cols): (usize, usize)) -> Vec<(usize, usize, f64)> {
        let (down, across) = (Axis::new(self, row, rows), Axis::new(self, col, cols));
        let along_rows = down.taps(self, across.second_half);
        let along_cols = across.taps(self, down.second_half);
        let pairs = along_rows.iter().flat_map(|&(i, v)| along_cols.iter().map(move |&(j, w)| (i, j, v * w)));
        pairs.collect()
    }

    /// The high-pass filter: the low-pass one backwards, every second sign turned.
    fn high(&self) -> Vec<f64> {
        self.low.iter().rev().enumerate().map(|(i, v)| if i % 2 == 0 { *v } else { -v }).collect()
    }
}

/// Where a coefficient lies along one axis.
struct Axis {
    second_half: bool,
    /// Twice its index in the band: where its filter starts before trimming.
    start: usize,
    /// What is cut off at the beginning.
    trim: usize,
    len: usize,
}

impl Axis {
    fn new(wavelet: &Wavelet, at: usize, len: usize) -> Axis {
        let reach = wavelet.low.len() - 2;
        let padded = (len + reach).next_multiple_of(2);
        let (at, half) = (at + (padded - len) / 2, padded / 2);
        // The transform cuts off `reach` on both sides; a row too many is cut at the end.
        let trim = reach + (padded - reach - len) / 2;
        Axis { second_half: at >= half, start: 2 * (at % half), trim, len }
    }

    fn taps(&self, wavelet: &Wavelet, high: bool) -> Vec<(usize, f64)> {
        let filter = if high { wavelet.high() } else { wavelet.low.clone() };
        let placed =
            filter.into_iter().zip(self.start..).filter(|(_, i)| (self.trim..self.trim + self.len).contains(i));
        placed.map(|(v, i)| (i - self.trim, v)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_those_of_the_tables() {
        // Daubechies 1992, table 6.1.
        let db2 = [0.482_962_913_145, 0.836_516_303_738, 0.224_143_868_042, -0.129_409_522_551];
        let db3 = [
            0.332_670_552_950,
            0.806_891_509_311,
            0.459_877_502_118,
            -0.135_011_020_010,
            -0.085_441_273_882,
            0.035_226_291_882,
        ];
        for (name, expected) in [("db2", &db2[..]), ("sym3", &db3[..])] {
            let found = Wavelet::named(name).unwrap().low;
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-11), "{name}: {found:?}");
        }
        assert!(Wavelet::named("coif1").is_err());
    }
}
