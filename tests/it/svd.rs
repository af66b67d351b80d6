//! Truncated decompositions against planted ones: matrices of known singular values, made in f64, whose optimal errors
//! are sums of their squares.

use std::ops::Range;

use lora_tool::error::{Kind, Result};
use lora_tool::kernels::{Depth, Kernels, RowSource, Truncated, Wanted, present};
use lora_tool::linalg::svd;
use ndarray::{Array1, Array2, ArrayViewMut2, s};

// --- planted matrices -------------------------------------------------------------------------------------------

/// Roughly normal numbers from a xorshift generator.
fn normals(seed: u64, dim: (usize, usize)) -> Array2<f64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bits = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    };
    Array2::from_shape_simple_fn(dim, || (0..12).map(|_| bits()).sum::<f64>() - 6.0)
}

/// Orthonormal columns, by Gram and Schmidt twice over.
fn orthonormal(seed: u64, m: usize, k: usize) -> Array2<f64> {
    let mut q = normals(seed, (m, k));
    for j in 0..k {
        let (before, mut rest) = q.view_mut().split_at(ndarray::Axis(1), j);
        let mut column = rest.column_mut(0);
        for _ in 0..2 {
            let along = before.t().dot(&column);
            let off = before.dot(&along);
            column -= &off;
        }
        let length = column.dot(&column).sqrt();
        column /= length;
    }
    q
}

/// U · diag(s) · Vᵀ, rounded to f32.
fn planted(seed: u64, (m, n): (usize, usize), s: &[f64]) -> Array2<f32> {
    let u = orthonormal(seed, m, s.len()) * Array1::from(s.to_vec());
    u.dot(&orthonormal(seed + 1, n, s.len()).t()).mapv(|v| v as f32)
}

fn energy(s: &[f64]) -> f64 {
    s.iter().map(|s| s * s).sum()
}

/// Ways for singular values to fall.
fn spectra(short: usize) -> Vec<(&'static str, Vec<f64>)> {
    let each = |f: &dyn Fn(f64) -> f64| (1..=short).map(|k| f(k as f64)).collect();
    vec![
        ("rank 6 and noise", each(&|k| if k < 7.0 { 2.0 - 0.1 * k } else { 1e-4 * (1.0 - k / 1e3) })),
        ("rank 6 and much noise", each(&|k| if k < 7.0 { 2.0 - 0.1 * k } else { 0.2 * (1.0 - k / 1e3) })),
        ("k^-1/2", each(&|k| k.powf(-0.5))),
        ("k^-1", each(&|k| k.recip())),
        ("k^-2", each(&|k| k.powi(-2))),
        ("2^-k/2", each(&|k| 0.5f64.powf(k / 2.0))),
        ("flat", each(&|k| 1.0 - 0.5 * k / short as f64)),
        ("steps", each(&|k| 10f64.powi(-(k as i32 / 10)))),
    ]
}

const SHAPES: [(usize, usize); 5] = [(240, 200), (150, 420), (600, 130), (128, 128), (300, 300)];

/// Every backend that can run here but the reference, which is slow.
fn fast() -> Vec<Box<dyn Kernels>> {
    present().into_iter().filter(|kernels| kernels.name() != "reference").collect()
}

// --- what a result has to hold ------------------------------------------------------------------------------------

fn rank(rank: usize) -> Wanted {
    Wanted { depth: Depth::Rank(rank), ceiling: usize::MAX, tolerance: 1e-2, seed: 1 }
}

/// ‖d − u · s · vt‖², in f64.
fn left(d: &Array2<f32>, found: &Truncated) -> f64 {
    let us = found.u.mapv(f64::from) * Array1::from(found.s.clone());
    let off = d.mapv(f64::from) - us.dot(&found.vt.mapv(f64::from));
    off.iter().map(|v| v * v).sum()
}

/// Largest entry of |x · xᵀ − 1|.
fn skew(x: &Array2<f64>) -> f64 {
    (x.dot(&x.t()) - Array2::<f64>::eye(x.nrows())).iter().fold(0.0, |a: f64, v| a.max(v.abs()))
}

/// The error is at most so much above the optimum: but for what f32 leaves of factors, up to 1e-6 of the norm.
#[track_caller]
fn is_near(what: &str, d: &Array2<f32>, found: &Truncated, optimum: f64, tolerance: f64) {
    let (error, rounding) = (left(d, found).sqrt(), 1e-6 * found.energy.sqrt());
    let most = optimum.sqrt() * (1.0 + tolerance) + rounding;
    assert!(error <= most, "{what}: error {error:e} against {:e}", optimum.sqrt());
}

#[track_caller]
fn is_well_formed(what: &str, d: &Array2<f32>, found: &Truncated) {
    let k = found.s.len();
    assert_eq!((found.u.dim(), found.vt.dim()), ((d.nrows(), k), (k, d.ncols())), "{what}");
    assert!(found.s.windows(2).all(|w| w[0] >= w[1]) && found.s.iter().all(|s| *s > 0.0), "{what}: {:?}", found.s);
    let (u, vt) = (found.u.t().mapv(f64::from), found.vt.mapv(f64::from));
    assert!(skew(&u) < 2e-5 && skew(&vt) < 2e-5, "{what}: {:e} {:e}", skew(&u), skew(&vt));
    for row in vt.rows() {
        let largest = row.iter().fold(0.0f64, |best, &v| if v.abs() > best.abs() { v } else { best });
        assert!(largest > 0.0, "{what}: sign of a right vector");
    }
    let size: f64 = d.iter().map(|&v| f64::from(v).powi(2)).sum();
    assert!((found.energy - size).abs() <= 1e-7 * size, "{what}: energy {} of {size}", found.energy);
    let lost = left(d, found);
    assert!((found.lost - lost).abs() <= 1e-3 * lost + 1e-12 * size, "{what}: lost {:e} of {lost:e}", found.lost);
}

// --- errors -------------------------------------------------------------------------------------------------------

#[test]
fn errors_are_within_the_tolerance_of_the_optimum() {
    for blas in fast() {
        let blas = blas.as_ref();
        for (i, dim) in SHAPES.into_iter().enumerate() {
            for (what, s) in spectra(dim.0.min(dim.1)) {
                let d = planted(100 + i as u64, dim, &s);
                for k in [1, 5, 8, 10] {
                    for tolerance in [1e-2, 1e-3] {
                        let what = format!("{what} {dim:?} rank {k} tolerance {tolerance}");
                        let found = blas.truncated_svd(&d, &Wanted { tolerance, ..rank(k) }).unwrap();
                        assert_eq!(found.s.len(), k, "{what}");
                        is_well_formed(&what, &d, &found);
                        is_near(&what, &d, &found, energy(&s[k..]), tolerance);
                        assert!(found.excess <= tolerance && found.passes >= 1, "{what}");
                        // No singular value is above its own, and none far below.
                        let first = s[0] * 2e-7;
                        assert!(found.s.iter().zip(&s).all(|(found, s)| *found <= s * (1.0 + 2e-6) + first), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_high_rank_is_as_near() {
    for blas in fast() {
        let blas = blas.as_ref();
        let dim = (640, 500);
        // More equal values than a block has vectors: an iteration by itself takes the first it finds for all.
        let plateaus = ("plateaus", (0..500).map(|k| 10f64.powi(-(k / 100))).collect());
        for (what, s) in spectra(500).into_iter().chain([plateaus]) {
            let d = planted(7, dim, &s);
            let found = blas.truncated_svd(&d, &rank(64)).unwrap();
            is_near(what, &d, &found, energy(&s[64..]), 1e-2);
            is_well_formed(what, &d, &found);
        }
    }
}

#[test]
fn every_backend_comes_as_near() {
    let dim = (140, 160);
    for (what, s) in spectra(140) {
        let d = planted(8, dim, &s);
        for kernels in present() {
            let kernels = kernels.as_ref();
            let found = kernels.truncated_svd(&d, &rank(8)).unwrap();
            is_near(&format!("{what} {}", kernels.name()), &d, &found, energy(&s[8..]), 1e-2);
            is_well_formed(what, &d, &found);
        }
    }
}

#[test]
fn the_exact_route_is_the_optimum() {
    for dim in [(60, 40), (40, 60), (33, 33), (200, 12), (1, 9), (9, 1), (300, 210)] {
        for (what, s) in spectra(dim.0.min(dim.1)) {
            let d = planted(9, dim, &s);
            for kernels in present() {
                let kernels = kernels.as_ref();
                if kernels.name() == "reference" && s.len() > 60 {
                    continue; // slow
                }
                for k in [1, 3, s.len() / 2, s.len()] {
                    let what = format!("{} {what} {dim:?} rank {k}", kernels.name());
                    let found = svd::exact(kernels, &d, Depth::Rank(k), usize::MAX).unwrap();
                    is_near(&what, &d, &found, energy(&s[k.min(s.len())..]), 1e-5);
                    is_well_formed(&what, &d, &found);
                    assert_eq!(found.excess, 0.0);
                    let close = |(found, s): (&f64, &f64)| (found - s).abs() <= 1e-6 * s + 3e-7;
                    assert!(found.s.iter().zip(&s).all(close), "{what}: {:?}", found.s);
                }
            }
        }
    }
}

/// The expected error of a sketch with k + p random vectors is at most √(1 + k/(p − 1)) of the optimum (Halko,
/// Martinsson and Tropp 2011, theorem 10.5). One look is not all there is, so every seed has to be below it.
#[test]
fn no_seed_is_above_the_bound_of_a_sketch() {
    for blas in fast() {
        let blas = blas.as_ref();
        let (dim, k) = ((150, 130), 8);
        for (what, s) in spectra(130) {
            let d = planted(10, dim, &s);
            for seed in 0..6 {
                let found = blas.truncated_svd(&d, &Wanted { seed, tolerance: 1.0, ..rank(k) }).unwrap();
                let bound = (1.0 + k as f64 / 7.0).sqrt() - 1.0;
                is_near(&format!("{what} seed {seed}"), &d, &found, energy(&s[k..]), bound);
            }
        }
    }
}

// --- depth --------------------------------------------------------------------------------------------------------

#[test]
fn the_energy_rule_takes_the_least_rank_or_one_more() {
    for blas in fast() {
        let blas = blas.as_ref();
        for dim in [(300, 260), (60, 300)] {
            for (what, s) in spectra(dim.0.min(dim.1)) {
                let d = planted(11, dim, &s);
                for share in [0.3, 0.5, 0.9, 0.99] {
                    let least = (0..s.len()).find(|&k| energy(&s[..k]) >= share * energy(&s)).unwrap();
                    let depth = Depth::Energy(share);
                    let found = blas.truncated_svd(&d, &Wanted { depth, ..rank(0) }).unwrap();
                    let what = format!("{what} {dim:?} {share}: {} of {least}", found.s.len());
                    // On flat spectra a hundredth of the error is a few ranks.
                    let slack = if what.starts_with("flat") { 1 + least / 50 } else { 1 };
                    assert!((least..=least + slack).contains(&found.s.len()), "{what}");
                    assert!(1.0 - left(&d, &found) / found.energy >= share - 1e-6, "{what}");
                    is_well_formed(&what, &d, &found);
                    let capped = blas.truncated_svd(&d, &Wanted { depth, ceiling: 4, ..rank(0) }).unwrap();
                    assert_eq!(capped.s.len(), found.s.len().min(4), "{what}");
                }
            }
        }
    }
}

#[test]
fn a_ratio_takes_all_down_to_it() {
    for blas in fast() {
        let blas = blas.as_ref();
        let s: Vec<f64> = (0..200).map(|k| 0.9f64.powi(k)).collect();
        let d = planted(12, (250, 200), &s);
        for share in [0.5, 0.1, 0.02] {
            let count = s.iter().filter(|&&s| s >= share).count();
            let found = blas.truncated_svd(&d, &Wanted { depth: Depth::Ratio(share), ..rank(0) }).unwrap();
            assert_eq!(found.s.len(), count, "{share}");
        }
    }
}

#[test]
fn what_stands_out_of_noise_is_found() {
    for blas in fast() {
        let blas = blas.as_ref();
        for (dim, count) in [((400, 300), 5), ((200, 600), 20), ((300, 300), 0), ((60, 40), 3)] {
            // Noise of deviation 1 ends at √m + √n.
            let edge = (dim.0 as f64).sqrt() + (dim.1 as f64).sqrt();
            let s: Vec<f64> = (0..count).map(|k| edge * (1.6 + 0.1 * k as f64)).rev().collect();
            let d = planted(13, dim, &s) + normals(15, dim).mapv(|v| v as f32);
            let found = blas.truncated_svd(&d, &Wanted { depth: Depth::Noise, ..rank(0) }).unwrap();
            assert_eq!(found.s.len(), count, "{dim:?}: {:?}", found.s);
        }
    }
}

// --- edges --------------------------------------------------------------------------------------------------------

#[test]
fn what_is_empty_or_zero_has_no_singular_values() {
    for blas in fast() {
        let blas = blas.as_ref();
        for dim in [(0, 5), (5, 0), (0, 0), (1, 1), (3, 7), (300, 200)] {
            let d = Array2::<f32>::zeros(dim);
            for depth in [Depth::Rank(4), Depth::Energy(0.9), Depth::Ratio(0.1), Depth::Noise] {
                let found = blas.truncated_svd(&d, &Wanted { depth, ..rank(0) }).unwrap();
                assert_eq!((found.s.len(), found.energy, found.lost), (0, 0.0, 0.0), "{dim:?} {depth:?}");
                is_well_formed("zeros", &d, &found);
            }
        }
        let d = planted(1, (150, 130), &[3.0, 2.0]);
        let none = blas.truncated_svd(&d, &rank(0)).unwrap();
        assert_eq!(none.s.len(), 0);
        assert!((none.lost - 13.0).abs() < 1e-4 && (none.energy - 13.0).abs() < 1e-4);
    }
}

#[test]
fn a_rank_that_is_not_there_is_not_invented() {
    for blas in fast() {
        let blas = blas.as_ref();
        // Five directions of 200: the others are rounding, and small.
        let d = planted(16, (250, 200), &[5.0, 4.0, 3.0, 2.0, 1.0]);
        let found = blas.truncated_svd(&d, &rank(16)).unwrap();
        is_well_formed("rank 5", &d, &found);
        assert!(found.s.iter().skip(5).all(|s| *s < 1e-5), "{:?}", found.s);
        is_near("rank 5", &d, &found, 0.0, 1e-2);
        let all = blas.truncated_svd(&planted(17, (6, 4), &[4.0, 3.0, 2.0, 1.0]), &rank(usize::MAX)).unwrap();
        assert_eq!(all.s.len(), 4);
        let energy = Wanted { depth: Depth::Energy(1.0), ..rank(0) };
        assert!((5..=16).contains(&blas.truncated_svd(&d, &energy).unwrap().s.len()));
    }
}

#[test]
fn sizes_at_the_ends_of_f32_are_no_matter() {
    for blas in fast() {
        let blas = blas.as_ref();
        let s: Vec<f64> = (1..=200).map(|k| f64::from(k).recip()).collect();
        let d = planted(18, (220, 200), &s);
        for unit in [1e-30f32, 1e-18, 1.0, 1e18, 1e30] {
            let scaled = &d * unit;
            for found in [
                blas.truncated_svd(&scaled, &rank(8)).unwrap(),
                svd::exact(blas, &scaled, Depth::Rank(8), usize::MAX).unwrap(),
            ] {
                let unit = f64::from(unit);
                assert!((found.s[0] / unit - 1.0).abs() < 1e-5, "{unit:e}: {:?}", found.s);
                let (lost, best) = (found.lost / unit / unit, energy(&s[8..]));
                assert!(lost > best * 0.999 && lost < best * 1.02, "{unit:e}: {lost} {best}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_an_error_that_names_the_row() {
    for blas in fast() {
        let blas = blas.as_ref();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (dim, row) in [((300, 200), 277), ((20, 30), 3), ((30, 20), 29)] {
                let mut d = planted(19, dim, &[1.0]);
                d[[row, 7]] = bad;
                for error in [
                    blas.truncated_svd(&d, &rank(4)).unwrap_err(),
                    svd::exact(blas, &d, Depth::Rank(4), usize::MAX).unwrap_err(),
                ] {
                    assert_eq!(error.kind(), Kind::Nonfinite);
                    assert!(error.what().contains(&format!("row {row} ")), "{error}");
                }
            }
        }
    }
}

/// Gives the rows of a matrix and counts them.
struct Counted(Array2<f32>, std::sync::atomic::AtomicUsize);

impl RowSource for Counted {
    fn dim(&self) -> (usize, usize) {
        self.0.dim()
    }

    fn read(&self, rows: Range<usize>, out: ArrayViewMut2<f32>) -> Result<()> {
        self.1.fetch_add(rows.len(), std::sync::atomic::Ordering::Relaxed);
        self.0.read(rows, out)
    }
}

#[test]
fn passes_are_counted_and_few_of_an_easy_matrix() {
    for blas in fast() {
        let blas = blas.as_ref();
        let s: Vec<f64> = (0..200).map(|k| if k < 8 { 1.0 } else { 1e-3 }).collect();
        for (wanted, exact) in [(rank(8), false), (rank(8), true)] {
            let d = Counted(planted(20, (3000, 200), &s), std::sync::atomic::AtomicUsize::new(0));
            let found =
                if exact { svd::exact(blas, &d, wanted.depth, 8) } else { svd::truncated(blas, &d, &wanted) }.unwrap();
            // A device reads a matrix that it can hold once.
            let times = if blas.name() == "cuda" { 1 } else { found.passes };
            assert_eq!(d.1.load(std::sync::atomic::Ordering::Relaxed), 3000 * times);
            assert!(found.passes <= 3, "{}", found.passes);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_thread() {
    for blas in fast() {
        let blas = blas.as_ref();
        let s: Vec<f64> = (1..=200).map(|k| f64::from(k).powf(-0.5)).collect();
        let d = planted(21, (260, 200), &s);
        let once = |seed| blas.truncated_svd(&d, &Wanted { seed, ..rank(8) }).unwrap();
        let first = once(3);
        let others: Vec<Truncated> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..3).map(|_| scope.spawn(|| once(3))).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        for other in others {
            assert_eq!((&first.u, &first.s, &first.vt), (&other.u, &other.s, &other.vt));
            assert_eq!((first.lost, first.energy, first.excess), (other.lost, other.energy, other.excess));
        }
        assert!(once(4).u != first.u);
    }
}

// --- products -----------------------------------------------------------------------------------------------------

#[test]
fn a_product_is_decomposed_from_its_factors() {
    let (m, n, r) = (90, 70, 12);
    let s: Vec<f64> = (0..r).map(|k| 0.6f64.powi(k as i32)).collect();
    // b = U·s·G and a = G⁻¹·Vᵀ for a turn G.
    let turn = orthonormal(22, r, r);
    let b = (orthonormal(23, m, r) * Array1::from(s.clone())).dot(&turn).mapv(|v| v as f32);
    let a = turn.t().dot(&orthonormal(24, n, r).t()).mapv(|v| v as f32);
    for kernels in present() {
        let kernels = kernels.as_ref();
        let whole = svd::of_product(kernels, b.view(), a.view(), 2.0).unwrap();
        let d = (2.0 * b.mapv(f64::from).dot(&a.mapv(f64::from))).mapv(|v| v as f32);
        is_well_formed(kernels.name(), &d, &whole);
        assert!(whole.s.iter().zip(&s).all(|(found, s)| (found - 2.0 * s).abs() < 1e-6), "{:?}", whole.s);
        let found = svd::cut(whole, 5);
        is_well_formed(kernels.name(), &d, &found);
        is_near(kernels.name(), &d, &found, 4.0 * energy(&s[5..]), 1e-5);
        let (left, right) = svd::balanced(&found);
        let sizes = |x: &Array2<f32>| x.iter().map(|v| v * v).sum::<f32>();
        assert!((sizes(&left) / sizes(&right) - 1.0).abs() < 1e-4);
        assert_eq!(found.u.slice(s![..1, ..]).dim(), (1, 5));
    }
}
