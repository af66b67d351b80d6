//! Where a [`Depth`] cuts, given the largest singular values and the norm.

use super::Depth;

/// Captured energy is known to about this share of all of it, so that no rule can ask for more.
const RESOLUTION: f64 = 1e-8;

/// How many singular values a rule wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// So many of those that are known.
    pub rank: usize,
    /// The rule stops among those that are known; otherwise it might want more.
    pub settled: bool,
}

impl Depth {
    /// Cuts `s`, the largest singular values of a matrix of `dim`, largest first, at most at `ceiling`. `energy` is the
    /// squared norm of the whole matrix.
    pub fn cut(self, s: &[f64], energy: f64, dim: (usize, usize), ceiling: usize) -> Cut {
        let short = dim.0.min(dim.1);
        let most = ceiling.min(short);
        let (rank, known) = match self {
            Depth::Rank(rank) => (rank.min(most), s.len()),
            Depth::Energy(share) => match least_with(s, share.min(1.0 - RESOLUTION) * energy) {
                Some(rank) => (rank, s.len()),
                None => (most, s.len()),
            },
            Depth::Ratio(share) => {
                let edge = share * s.first().copied().unwrap_or(0.0);
                below(s.iter().take_while(|&&s| s >= edge && s > 0.0).count(), s.len(), short)
            }
            Depth::Noise => below(noise_rank(s, energy, dim), s.len(), short),
        };
        let rank = rank.min(most);
        Cut { rank: rank.min(s.len()), settled: rank <= known }
    }
}

/// A rule that takes all down to some edge knows where it stops only if one below the edge is known.
fn below(count: usize, known: usize, short: usize) -> (usize, usize) {
    if count < known || known >= short { (count, known) } else { (known + 1, known) }
}

fn least_with(s: &[f64], wanted: f64) -> Option<usize> {
    if wanted <= 0.0 {
        return Some(0);
    }
    let mut sum = 0.0;
    s.iter()
        .position(|s| {
            sum += s * s;
            sum >= wanted
        })
        .map(|i| i + 1)
}

/// How many singular values stand out of noise.
///
/// A matrix [m, n] of independent noise of deviation σ has its singular values below about `σ·(√m + √n)`, the edge of
/// Marchenko and Pastur's law; its largest scatters about that by little (Johnstone 2001, *On the distribution of the
/// largest eigenvalue in principal components analysis*). What lies above the edge is no noise; the rest is, and says
/// what σ is: `σ² = (‖d‖² − Σ s²) / ((m − r)·(n − r))`. Taking more out lowers the edge, so that this ends at a fixed
/// point.
pub fn noise_rank(s: &[f64], energy: f64, dim: (usize, usize)) -> usize {
    let mut rank = 0;
    let mut rest = energy;
    loop {
        let edge = noise_edge(rest, dim, rank);
        let next = s.iter().take_while(|&&s| s > edge && s * s > RESOLUTION * energy).count();
        if next <= rank {
            return rank;
        }
        rest = (rest - s[rank..next].iter().map(|s| s * s).sum::<f64>()).max(0.0);
        rank = next;
    }
}

/// The singular value that noise stays below, 98 times in a hundred, if `rest` is the energy of a matrix of `dim`
/// without `rank` directions that are none.
pub fn noise_edge(rest: f64, (m, n): (usize, usize), rank: usize) -> f64 {
    let (m, n) = (m.saturating_sub(rank) as f64, n.saturating_sub(rank) as f64);
    if m == 0.0 || n == 0.0 {
        return 0.0;
    }
    let deviation = (rest / (m * n)).sqrt();
    let (roots, inverse) = (m.sqrt() + n.sqrt(), m.sqrt().recip() + n.sqrt().recip());
    // The 98 % point of the Tracy–Widom law of order 1 is 1.6.
    deviation * (roots * roots + 1.6 * roots * inverse.cbrt()).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIM: (usize, usize) = (100, 50);

    fn cut(depth: Depth, s: &[f64], ceiling: usize) -> (usize, bool) {
        let Cut { rank, settled } = depth.cut(s, 100.0, DIM, ceiling);
        (rank, settled)
    }

    #[test]
    fn energy_takes_the_least_rank_that_holds_it() {
        let s = [8.0, 5.0, 3.0]; // 64 + 25 + 9 = 98 of 100
        assert_eq!(cut(Depth::Energy(0.64), &s, 50), (1, true));
        assert_eq!(cut(Depth::Energy(0.65), &s, 50), (2, true));
        assert_eq!(cut(Depth::Energy(0.98), &s, 50), (3, true));
        assert_eq!(cut(Depth::Energy(0.99), &s, 50), (3, false));
        assert_eq!(cut(Depth::Energy(0.99), &s, 3), (3, true));
        assert_eq!(cut(Depth::Energy(0.99), &s, 2), (2, true));
        assert_eq!(cut(Depth::Energy(0.0), &s, 50), (0, true));
    }

    #[test]
    fn a_ratio_is_settled_once_one_below_it_is_known() {
        let s = [8.0, 5.0, 3.0];
        assert_eq!(cut(Depth::Ratio(0.5), &s, 50), (2, true));
        assert_eq!(cut(Depth::Ratio(0.3), &s, 50), (3, false));
        assert_eq!(cut(Depth::Ratio(0.3), &s, 2), (2, true));
        assert_eq!(cut(Depth::Ratio(0.3), &[0.0; 50], 50), (0, true));
        assert_eq!(cut(Depth::Rank(7), &s, 50), (3, false));
        assert_eq!(cut(Depth::Rank(2), &s, 50), (2, true));
    }

    #[test]
    fn what_stands_out_of_noise_is_counted() {
        // Noise of deviation 1 on 100 x 50 ends at about √100 + √50 = 17.07.
        let noise = 5000.0;
        let s = [40.0, 25.0, 19.0, 16.5, 16.0];
        let energy = noise + s[..3].iter().map(|s| s * s).sum::<f64>();
        assert_eq!(noise_rank(&s, energy, DIM), 3);
        assert_eq!(noise_rank(&s[3..], noise, DIM), 0);
        assert_eq!(noise_rank(&[], 0.0, DIM), 0);
        assert_eq!(noise_rank(&[10.0, 0.0], 100.0, DIM), 1);
    }
}
